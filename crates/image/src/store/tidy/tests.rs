use super::*;
use crate::download::Downloaded;
use crate::download::site::Site;
use crate::progress::Reporter;
use crate::store::bundles::BundlePull;
use crate::store::carry::tests::bundle;
use crate::store::tests::place;
use banger_proto::reference::Digest;
use sha2::{Digest as _, Sha256};

/// How many files went of each part, in the order in which they are told.
fn files(parts: &[CachePart]) -> Vec<u64> {
    parts.iter().map(|part| part.files).collect()
}

#[test]
fn what_nobody_uses_goes_and_the_rest_stays() {
    let place = place();
    let config = place.store.shared.config.clone();
    let templates = disk::templates(&config.cache_dir);
    std::fs::create_dir_all(&templates).unwrap();
    let old = config.catalogs().join("7");
    std::fs::create_dir(&old).unwrap();
    std::fs::write(old.join("catalog.toml"), [b'x'; 5000]).unwrap();
    let put = |path: std::path::PathBuf| {
        std::fs::write(&path, [b'x'; 10_000]).unwrap();
        path
    };
    let free = [
        put(config.downloads().join("whole")),
        put(config.downloads().join("broken.part")),
        put(config.oci().join("layer")),
        put(templates.join("ext4-v1-1.img")),
    ];
    let used = put(config.downloads().join("used"));
    let _used = Downloaded::new(used.clone(), File::open(&used).unwrap());
    let coming = put(config.oci().join("coming.part"));
    let _coming = File::open(&coming).unwrap();
    flock(&_coming, FlockOperation::LockExclusive).unwrap();
    let draft = put(templates.join(".template-x"));

    let told = place.store.prune_cache(Pruning::Dry).unwrap();
    assert_eq!(files(&told), [2, 1, 1, 1]);
    assert!(free.iter().all(|path| path.exists()) && old.exists());
    let gone = place.store.prune_cache(Pruning::Real).unwrap();
    assert_eq!(gone, told);
    assert!(free.iter().all(|path| !path.exists()) && !old.exists());
    assert!(used.exists() && coming.exists() && draft.exists());
    assert!(told[0].freed.bytes() >= 20_000 && told[0].in_use.bytes() >= 10_000);
    assert!(told[1].in_use.bytes() >= 10_000 && told[3].freed.bytes() >= 5_000);
    // What is no longer used goes the next time.
    drop((_used, _coming));
    let gone = place.store.prune_cache(Pruning::Real).unwrap();
    assert_eq!(files(&gone), [1, 1, 0, 0]);
    assert!(!used.exists() && !coming.exists());
}

#[tokio::test]
async fn a_pull_that_goes_on_keeps_what_it_has() {
    let (place, site) = (place(), Site::start().await);
    let sent = bundle(&[("vmlinux", b"\x7fELF .. Linux version 6.9.1-me (x) ..")]);
    site.put("/mine.tar.zst", sent.clone());
    site.hold_after(10);
    let pull = BundlePull {
        url: site.url("/mine.tar.zst").parse().unwrap(),
        sha256: Digest::of(Sha256::digest(&sent).into()),
        name: None,
        kernel: None,
    };
    let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
    let store = place.store.clone();
    let pulling = tokio::spawn(async move {
        let progress = Reporter::new(move |progress| {
            let _ = begun.send(progress);
        });
        store.pull_kernel_bundle(&pull, &progress).await
    });
    begins.recv().await.unwrap();
    let gone = place.store.prune_cache(Pruning::Real).unwrap();
    assert_eq!(files(&gone), [0, 0, 0, 0]);
    assert!(gone[0].in_use.bytes() > 0);
    site.let_go();
    let kernel = pulling.await.unwrap().unwrap();
    assert_eq!(kernel.manifest.release, "6.9.1-me");
    assert_eq!(site.asked().len(), 2, "nothing was fetched anew");
}

#[test]
fn disks_are_made_while_their_templates_go() {
    if crate::tool::MKE2FS.find().is_err() {
        eprintln!("skipped: e2fsprogs is not installed");
        return;
    }
    let place = place();
    let cache = place.store.shared.config.cache_dir.clone();
    let size = ByteSize::from_mib(16);
    let ended = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ended = &ended;
        let store = &place.store;
        scope.spawn(move || {
            while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                store.prune_cache(Pruning::Real).unwrap();
            }
        });
        for number in 0..10 {
            let to = place.home.path().join(format!("disk-{number}"));
            let made = disk::clone_blank(&cache, size, &to);
            let length = std::fs::metadata(&to).map(|found| found.len());
            if made.is_err() || number == 9 {
                ended.store(true, std::sync::atomic::Ordering::Relaxed);
            }
            made.unwrap();
            assert_eq!(length.unwrap(), size.bytes());
        }
    });
}

use super::*;
use crate::elsewhere::tests::filesystem;
use crate::progress::Reporter;
use crate::store::tests::place;
use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

fn source(bytes: &[u8]) -> BundleSource<&[u8]> {
    BundleSource {
        from: bytes,
        sha256: None,
        cancel: CancellationToken::new(),
        progress: Reporter::silent(),
        what: "a test".to_owned(),
    }
}

pub(in crate::store) fn manifest(length: u64) -> String {
    serde_json::json!({
        "id": ImageId::new(), "name": "base", "digest": "sha256:0", "source": "a test",
        "distro": "debian 12", "arch": std::env::consts::ARCH,
        "created_at": "2026-01-01T00:00:00Z", "size": 1, "rootfs_length": length,
        "kernel": "generic-6.12", "env": {"A": "b"},
    })
    .to_string()
}

pub(in crate::store) fn bundle(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut packer = Packer::new(Vec::new()).unwrap();
    for (name, content) in parts {
        packer
            .add(Path::new(name), content.len() as u64, *content)
            .unwrap();
    }
    packer.finish().unwrap()
}

pub(in crate::store) fn disk() -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    filesystem(&path, 0);
    std::fs::read(path).unwrap()
}

#[test]
fn an_image_comes_back_as_it_went() {
    let (here, there) = (place(), place());
    let disk = disk();
    let json = manifest(disk.len() as u64);
    let sent = bundle(&[
        ("manifest.json", json.as_bytes()),
        ("rootfs.ext4", &disk),
        ("work-seed.ext4", &disk),
    ]);
    let first = here.store.import_image(source(&sent), None).unwrap();
    let mut carried = Vec::new();
    here.store.export(&first, &mut carried).unwrap();
    let name = "other".parse().unwrap();
    let second = there
        .store
        .import_image(source(&carried), Some(name))
        .unwrap();
    assert_eq!(std::fs::read(&second.rootfs).unwrap(), disk);
    assert_eq!(std::fs::read(second.work_seed.unwrap()).unwrap(), disk);
    assert_eq!(second.manifest.name.as_str(), "other");
    assert_eq!(second.manifest.env, first.manifest.env);
    assert_ne!(second.manifest.id, first.manifest.id);
}

#[test]
fn what_is_not_exactly_a_bundle_is_refused_and_leaves_nothing() {
    let home = place();
    let disk = disk();
    let json = manifest(disk.len() as u64);
    let json = json.as_bytes();
    let elsewhere = {
        let mut value: serde_json::Value = serde_json::from_slice(json).unwrap();
        value["elsewhere"] = serde_json::json!({"rootfs": "/etc/shadow"});
        value.to_string()
    };
    let whole = bundle(&[("manifest.json", json), ("rootfs.ext4", &disk)]);
    let wrong_length = manifest(1);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("no zstd", b"hello".to_vec()),
        ("no manifest", bundle(&[("rootfs.ext4", &disk)])),
        ("no rootfs", bundle(&[("manifest.json", json)])),
        ("no json", bundle(&[("manifest.json", b"{")])),
        (
            "files elsewhere",
            bundle(&[("manifest.json", elsewhere.as_bytes())]),
        ),
        (
            "another length",
            bundle(&[
                ("manifest.json", wrong_length.as_bytes()),
                ("rootfs.ext4", &disk),
            ]),
        ),
        (
            "no file system",
            bundle(&[
                ("manifest.json", json),
                ("rootfs.ext4", &vec![1; disk.len()]),
            ]),
        ),
        (
            "a stranger",
            bundle(&[("manifest.json", json), ("rootfs.ext4", &disk), ("x", b"")]),
        ),
        (
            "twice",
            bundle(&[
                ("manifest.json", json),
                ("rootfs.ext4", &disk),
                ("./rootfs.ext4", &disk),
            ]),
        ),
        (
            "below",
            bundle(&[("manifest.json", json), ("a/rootfs.ext4", &disk)]),
        ),
        (
            "too long",
            bundle(&[
                ("manifest.json", &vec![b' '; 2 << 20]),
                ("rootfs.ext4", &disk),
            ]),
        ),
    ];
    let mut told = String::new();
    for (case, bytes) in cases {
        let error = home.store.import_image(source(&bytes), None).unwrap_err();
        let mut text = error.to_string();
        let mut next = std::error::Error::source(&error);
        while let Some(error) = next {
            text.push_str(&format!(": {error}"));
            next = error.source();
        }
        let state = home.home.path().display().to_string();
        let text = match text.find(".banger-draft-") {
            // The draft's name is made up.
            Some(at) => format!(
                "{}…`{}",
                &text[..at],
                text[at..].split_once('/').map_or("", |(_, rest)| rest)
            ),
            None => text,
        };
        told.push_str(&format!("{case}: {}\n", text.replace(&state, "/state")));
    }
    insta::assert_snapshot!(told, @"
    empty: the bundle's archive makes no sense: the archive ends early
    no zstd: the bundle's archive makes no sense: the archive ends early
    no manifest: the bundle does not begin with `manifest.json`
    no rootfs: the bundle holds no `rootfs.ext4`
    no json: the bundle's `manifest.json` makes no sense: EOF while parsing an object at line 1 column 1
    files elsewhere: the bundle's `manifest.json` makes no sense: it names files of another host
    another length: the bundle's `manifest.json` makes no sense: `rootfs_length` is 1, and `rootfs.ext4` has 8192 bytes
    no file system: `/state/state/images/…`rootfs.ext4` is not an ext4 file system
    a stranger: the bundle holds `x`, which does not belong into it
    twice: the bundle holds `rootfs.ext4` twice
    below: the bundle holds `a/rootfs.ext4`, which does not belong into it
    too long: the bundle's `manifest.json` has 2097152 bytes, and may have 1048576
    ");
    for end in [1, whole.len() / 2, whole.len() - 1] {
        let cut_short = home.store.import_image(source(&whole[..end]), None);
        assert!(
            cut_short.is_err(),
            "the first {end} of {} bytes",
            whole.len()
        );
    }
    let wrong_hash = BundleSource {
        sha256: Some([7; 32]),
        ..source(&whole)
    };
    let error = home.store.import_image(wrong_hash, None).unwrap_err();
    assert!(matches!(
        error,
        ImportError::Bundle(BundleError::WrongHash { .. })
    ));
    let called_off = source(&whole);
    called_off.cancel.cancel();
    home.store.import_image(called_off, None).unwrap_err();
    let images = home.store.shared.config.images();
    assert_eq!(std::fs::read_dir(images).unwrap().count(), 0);
    home.store.import_image(source(&whole), None).unwrap();
    let taken = home.store.import_image(source(&whole), None).unwrap_err();
    insta::assert_snapshot!(format!("{taken} ({})", taken.hint().unwrap()), @"there is an image `base` already (choose another name, or `banger image delete base` first)");
}

#[test]
fn a_kernel_that_is_none_or_has_anothers_modules_is_refused() {
    let home = place();
    let name: ArtifactName = "mine".parse().unwrap();
    let vmlinux = b"\x7fELF .. Linux version 6.9.1-me (x) ..";
    let refused = |parts: &[(&str, &[u8])]| {
        let imported = home
            .store
            .import_kernel(source(&bundle(parts)), &name, "a test");
        let error = imported.unwrap_err();
        format!("{error} ({})", error.hint().unwrap_or_default())
    };
    let module = b"\x7fELF\0vermagic=6.9.2 SMP\0".as_slice();
    let told = [
        refused(&[]),
        refused(&[("vmlinux", b"\x7fELF nothing")]),
        refused(&[("vmlinux", vmlinux), ("modules/6.9.2/kernel/a.ko", module)]),
        refused(&[
            ("vmlinux", vmlinux),
            ("modules/kernel/a.ko", module),
            ("modules/x", b""),
        ]),
        refused(&[("vmlinux", vmlinux), ("etc/passwd", b"")]),
    ];
    insta::assert_snapshot!(told.join("\n"), @"
    the bundle holds no `vmlinux` ()
    `vmlinux` does not say which release of Linux it is (take the kernel's own file: `vmlinux` of its build, or a distribution's `vmlinuz`)
    the modules are of 6.9.2, and the kernel is 6.9.1-me (take the modules of this kernel: `/lib/modules/6.9.1-me`)
    the modules are of 6.9.2, and the kernel is 6.9.1-me (take the modules of this kernel: `/lib/modules/6.9.1-me`)
    the bundle holds `etc/passwd`, which does not belong into it ()
    ");
    let kernels = home.store.shared.config.kernels();
    assert_eq!(std::fs::read_dir(kernels).unwrap().count(), 0);
}

#[test]
fn a_kernel_with_everything_built_in_needs_no_modules() {
    let home = place();
    let name: ArtifactName = "mine".parse().unwrap();
    let vmlinux = b"\x7fELF .. Linux version 6.9.1-me (x) ..";
    let sent = bundle(&[("vmlinux", vmlinux), ("initrd.img", b"extra")]);
    let kernel = home
        .store
        .import_kernel(source(&sent), &name, "a test")
        .unwrap();
    assert_eq!(kernel.manifest.release, "6.9.1-me");
    assert_eq!(std::fs::read(kernel.vmlinux).unwrap(), vmlinux);
    let agent = home.home.path().join("agent");
    std::fs::write(&agent, "agent").unwrap();
    let initrd = kernel::initramfs(&kernel.directory, &agent, &[1; 32]).unwrap();
    let bytes = std::fs::read(initrd).unwrap();
    assert_eq!(
        &bytes[..14],
        b"extra\x00\x00\x00070701",
        "banger's comes after it, aligned"
    );
    let again = home
        .store
        .import_kernel(source(&sent), &name, "a test")
        .unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Conflict);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_bytes_are_too_odd(bytes in proptest::collection::vec(any::<u8>(), 0..2048), packed in any::<bool>()) {
        let home = place();
        let bytes = match packed {
            true => zstd::encode_all(&bytes[..], 1).unwrap(),
            false => bytes,
        };
        prop_assert!(home.store.import_image(source(&bytes), None).is_err());
        let name: ArtifactName = "odd".parse().unwrap();
        prop_assert!(home.store.import_kernel(source(&bytes), &name, "a test").is_err());
    }

    #[test]
    fn no_manifest_is_too_odd(text in "\\PC{0,200}") {
        let _ = parse_manifest(text.as_bytes());
    }
}

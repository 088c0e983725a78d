//! What the store finds, and what it says of artifacts that are not whole. The artifacts are
//! written by hand; making real ones is for `tests/real.rs`.

use banger_proto::error::ApiError;
use banger_proto::size::ByteSize;

use super::*;
use crate::manifest;

pub(super) struct Place {
    pub(super) home: tempfile::TempDir,
    pub(super) store: Store,
}

pub(super) fn config(home: &Path) -> StoreConfig {
    StoreConfig {
        state_dir: home.join("state"),
        cache_dir: home.join("cache"),
        agent: home.join("agent"),
        debian_mirror: None,
        ubuntu_mirror: None,
        catalog: None,
    }
}

pub(super) fn place() -> Place {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("agent"), "agent 1").unwrap();
    let store = Store::open(config(home.path())).unwrap();
    Place { home, store }
}

fn name(text: &str) -> ArtifactName {
    text.parse().unwrap()
}

impl Place {
    pub(super) fn add_image(&self, image: &str, created_at: &str) -> PathBuf {
        let id = ImageId::new();
        let directory = self.home.path().join("state/images").join(id.as_str());
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("rootfs.ext4"), "0123456789").unwrap();
        let manifest = Manifest {
            id,
            name: name(image),
            digest: "sha256:0".to_owned(),
            source: "a test".to_owned(),
            distro: "none".to_owned(),
            arch: "x86_64".to_owned(),
            created_at: created_at.to_owned(),
            size: ByteSize::from_bytes(10),
            rootfs_length: 10,
            kernel: name("generic-6.12"),
            env: [].into(),
            user: None,
            workdir: None,
            entrypoint: Vec::new(),
            cmd: Vec::new(),
            reference: None,
            labels: [].into(),
            elsewhere: None,
        };
        manifest::write(&manifest, &directory).unwrap();
        directory
    }

    pub(super) fn add_kernel(&self) -> PathBuf {
        let directory = self.home.path().join("state/kernels/generic-6.12");
        std::fs::create_dir_all(directory.join("boot")).unwrap();
        std::fs::write(directory.join("vmlinux"), "vmlinux").unwrap();
        std::fs::write(directory.join("modules.ext4"), "modules").unwrap();
        std::fs::write(directory.join("boot/a.ko"), "module").unwrap();
        std::fs::write(directory.join("modules.load"), "a.ko\n").unwrap();
        let manifest = KernelManifest {
            name: name("generic-6.12"),
            release: "6.12.1".to_owned(),
            digest: "sha256:0".to_owned(),
            source: "a test".to_owned(),
            created_at: "2026-01-01T00:00:00Z".to_owned(),
            size: ByteSize::from_bytes(10),
            vmlinux_length: 7,
            modules_length: 7,
        };
        manifest::write(&manifest, &directory).unwrap();
        directory
    }
}

#[tokio::test]
async fn what_is_there_is_found_without_any_work() {
    let place = place();
    place.add_image("debian-bookworm", "2026-01-01T00:00:00Z");
    let newer = place.add_image("debian-bookworm", "2026-02-01T00:00:00Z");
    place.add_kernel();
    let image = place
        .store
        .ensure_image(&name("debian-bookworm"), &Reporter::silent())
        .await
        .unwrap();
    assert_eq!(image.rootfs, newer.join("rootfs.ext4"));
    let by_id = place
        .store
        .image_by_id(&image.manifest.id)
        .unwrap()
        .unwrap();
    assert_eq!(by_id.manifest, image.manifest);
    assert!(place.store.image_by_id(&ImageId::new()).unwrap().is_none());
    let kernel = place
        .store
        .ensure_kernel(&name("generic-6.12"), &Reporter::silent())
        .await
        .unwrap();
    assert_eq!(kernel.manifest.release, "6.12.1");
    assert_eq!(place.store.images().unwrap().len(), 2);
    assert_eq!(place.store.kernels().unwrap().len(), 1);
}

#[tokio::test]
async fn a_name_that_is_unknown_tells_those_that_are_known() {
    let place = place();
    let error = place
        .store
        .ensure_image(&name("debian-warty"), &Reporter::silent())
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "there is no image `debian-warty`");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(
        error.hint().unwrap(),
        "there are: debian-bookworm, debian-bookworm-slim, debian-agents, debian-trixie, ubuntu-24.04, \
         alpine, fedora, void"
    );
    let error = place.store.require_known(&name("debian-bokworm"));
    let hint = error.unwrap_err().hint().unwrap();
    assert!(
        hint.starts_with("did you mean `debian-bookworm`? There are: alpine, "),
        "{hint}"
    );
    assert!(place.store.require_known(&name("debian-bookworm")).is_ok());
    place.add_image("my-own", "2026-01-01T00:00:00Z");
    assert!(place.store.require_known(&name("my-own")).is_ok());
    let error = place
        .store
        .ensure_kernel(&name("generic-2.4"), &Reporter::silent())
        .await
        .unwrap_err();
    assert_eq!(
        error.hint().unwrap(),
        "there are: generic-6.12, generic-6.1"
    );
}

#[test]
fn a_damaged_artifact_is_named_with_what_to_do() {
    let place = place();
    let image = place.add_image("debian-bookworm", "2026-01-01T00:00:00Z");
    std::fs::write(image.join("rootfs.ext4"), "cut").unwrap();
    let error = place.store.image(&name("debian-bookworm")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the image `debian-bookworm` is damaged: rootfs.ext4 is 3 bytes long, not 10"
    );
    assert!(
        error
            .hint()
            .unwrap()
            .starts_with(&format!("put the files in {} back", image.display()))
    );

    let kernel = place.add_kernel();
    std::fs::remove_file(kernel.join("vmlinux")).unwrap();
    let error = place.store.kernel(&name("generic-6.12")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the kernel `generic-6.12` is damaged: cannot read vmlinux: No such file or directory (os error 2)"
    );
    std::fs::write(kernel.join("manifest.json"), "{").unwrap();
    let error = place.store.kernel(&name("generic-6.12")).unwrap_err();
    assert!(
        error.to_string().contains("manifest.json makes no sense"),
        "{error}"
    );
    assert!(place.store.kernels().unwrap().is_empty());
}

#[tokio::test]
async fn the_initramfs_follows_the_agent() {
    let place = place();
    place.add_kernel();
    let kernel = place.store.kernel(&name("generic-6.12")).unwrap().unwrap();
    let first = place.store.initramfs(&kernel).await.unwrap();
    assert_eq!(place.store.initramfs(&kernel).await.unwrap(), first);
    std::fs::write(place.home.path().join("agent"), "agent 2, longer").unwrap();
    let second = place.store.initramfs(&kernel).await.unwrap();
    assert_ne!(first, second);
    let contains = |path: &Path, text: &str| {
        let bytes = std::fs::read(path).unwrap();
        bytes
            .windows(text.len())
            .any(|window| window == text.as_bytes())
    };
    assert!(contains(&first, "agent 1") && contains(&second, "agent 2, longer"));
    assert!(contains(&second, "/banger/modules/a.ko\n"));
}

#[tokio::test]
async fn a_missing_agent_is_named_with_what_to_do() {
    let place = place();
    place.add_kernel();
    let kernel = place.store.kernel(&name("generic-6.12")).unwrap().unwrap();
    std::fs::remove_file(place.home.path().join("agent")).unwrap();
    let error = place.store.initramfs(&kernel).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Precondition);
    assert!(error.hint().unwrap().contains("make install"));
}

#[tokio::test]
async fn a_mirror_that_does_not_answer_is_named_with_all_that_was_tried() {
    if let Err(error) = crate::tool::DEPMOD.find() {
        eprintln!("skipped: {error}");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let config = StoreConfig {
        // Nobody listens on this port of the loopback.
        debian_mirror: Some("http://127.0.0.1:1/debian".to_owned()),
        ..config(home.path())
    };
    let store = Store::open(config).unwrap();
    let error = store
        .ensure_kernel(&name("generic-6.12"), &Reporter::silent())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.hint().unwrap().contains("debian_mirror"));
    let told = ApiError::new(error.kind(), "no").caused_by(&error);
    insta::assert_snapshot!(told.causes.join("\n"), @r"
    none of the sources of the kernel `generic-6.12` could be had
    `linux-image-6.12-cloud-amd64` in bookworm-security: no archive is known for the suite bookworm-security
    `linux-image-cloud-amd64` in trixie-security: no archive is known for the suite trixie-security
    `linux-image-cloud-amd64` in trixie: could not download http://127.0.0.1:1/debian/dists/trixie/InRelease: error sending request: client error (Connect): tcp connect error: Connection refused (os error 111)
    ");
    assert_eq!(
        std::fs::read_dir(home.path().join("state/kernels"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn opening_removes_what_dead_makers_left() {
    let place = place();
    let dead = place.home.path().join("state/images/.banger-draft-dead");
    std::fs::create_dir_all(dead.join("build")).unwrap();
    let store = Store::open(config(place.home.path())).unwrap();
    assert!(!dead.exists());
    assert!(store.images().unwrap().is_empty());
}

#[test]
fn a_state_directory_that_cannot_be_made_is_an_error() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("state"), "a file").unwrap();
    let error = Store::open(config(home.path())).map(drop).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("could not make the directory `"),
        "{error}"
    );
}

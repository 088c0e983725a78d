//! The real thing: Debian's kernel and a Debian image, fetched from the mirror and checked
//! with the file system's own tools. Runs only with `BANGER_TEST_NETWORK=1`, as it takes
//! minutes; `BANGER_TEST_HOME` names a directory whose artifacts are kept and reused, and
//! `BANGER_TEST_AGENT` the agent that goes into the initramfs.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;

use banger_image::{Reporter, Store, StoreConfig};
use banger_proto::name::ArtifactName;

/// A store in the test's directory, which is removed at the end unless the environment names
/// one; `None` if the network is not to be used.
fn store() -> Option<(Store, PathBuf, Option<tempfile::TempDir>)> {
    if std::env::var_os("BANGER_TEST_NETWORK").is_none() {
        eprintln!("skipped: BANGER_TEST_NETWORK is not set");
        return None;
    }
    let (home, guard) = match std::env::var_os("BANGER_TEST_HOME") {
        Some(home) => (PathBuf::from(home), None),
        None => {
            let guard = tempfile::tempdir().unwrap();
            (guard.path().to_owned(), Some(guard))
        }
    };
    std::fs::create_dir_all(&home).unwrap();
    let agent =
        std::env::var_os("BANGER_TEST_AGENT").map_or_else(|| home.join("agent"), PathBuf::from);
    if !agent.exists() {
        std::fs::write(&agent, "\x7fELF not really").unwrap();
    }
    let config = StoreConfig {
        state_dir: home.join("state"),
        cache_dir: home.join("cache"),
        agent,
        debian_mirror: None,
    };
    Some((Store::open(config).unwrap(), home, guard))
}

fn reporter() -> Reporter {
    Reporter::new(|progress| {
        let total = progress
            .total
            .map_or_else(String::new, |total| format!(" of {total}"));
        eprintln!("{}: {}{total}", progress.what, progress.done);
    })
}

fn name(text: &str) -> ArtifactName {
    text.parse().unwrap()
}

fn output(program: &str, arguments: &[&str], path: &Path) -> String {
    let output = Command::new(program)
        .args(arguments)
        .arg(path)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{program}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn require_clean(disk: &Path) {
    output("/usr/sbin/e2fsck", &["-f", "-n"], disk);
}

fn require_no_drafts(home: &Path) {
    for directory in ["state/images", "state/kernels"] {
        for entry in std::fs::read_dir(home.join(directory)).unwrap() {
            let entry = entry.unwrap().file_name();
            assert!(
                !entry.to_string_lossy().starts_with('.'),
                "{entry:?} is left over"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kernel_comes_from_debian_with_its_modules_and_an_initramfs() {
    let Some((store, home, _guard)) = store() else {
        return;
    };
    let kernel = store
        .ensure_kernel(&name("generic-6.12"), &reporter())
        .await
        .unwrap();
    let release = kernel.manifest.release.clone();
    assert!(release.starts_with("6.12."), "{release}");
    let vmlinux = std::fs::read(&kernel.vmlinux).unwrap();
    assert!(vmlinux.starts_with(b"\x7fELF"));
    require_clean(&kernel.modules_disk);
    let listing = output(
        "/usr/sbin/debugfs",
        &["-R", &format!("ls -p /{release}")],
        &kernel.modules_disk,
    );
    for file in [
        "kernel",
        "modules.dep",
        "modules.dep.bin",
        "modules.builtin",
    ] {
        assert!(
            listing.contains(&format!("/{file}/")),
            "{file} is missing in {listing}"
        );
    }

    let initramfs = store.initramfs(&kernel).await.unwrap();
    let files = Command::new("cpio")
        .args(["--list", "--quiet", "-F"])
        .arg(&initramfs)
        .output()
        .unwrap();
    let files = String::from_utf8(files.stdout).unwrap();
    for file in [
        "init",
        "banger/modules.load",
        "banger/modules/virtio_blk.ko",
        "banger/modules/overlay.ko",
    ] {
        assert!(
            files.lines().any(|line| line == file),
            "{file} is missing in {files}"
        );
    }
    assert_eq!(store.initramfs(&kernel).await.unwrap(), initramfs);
    assert_eq!(store.kernels().unwrap()[0].release, release);
    require_no_drafts(&home);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slim_image_is_built_by_mmdebstrap_into_a_clean_file_system() {
    let Some((store, home, _guard)) = store() else {
        return;
    };
    let image = store
        .ensure_image(&name("debian-bookworm-slim"), &reporter())
        .await
        .unwrap();
    require_clean(&image.rootfs);
    let stat = |path: &str| {
        output(
            "/usr/sbin/debugfs",
            &["-R", &format!("stat {path}")],
            &image.rootfs,
        )
    };
    assert!(stat("/etc/machine-id").contains("Size: 0"));
    assert!(stat("/usr/bin/git").contains("Type: regular"));
    assert!(stat("/usr/bin/su").contains("Mode:  04755"));
    assert!(
        stat("/usr/bin/ping").contains("security.capability"),
        "{}",
        stat("/usr/bin/ping")
    );
    assert!(stat("/sbin/init").contains("Type: symlink"));
    assert!(stat("/dev/null").contains("character special"));
    let sources = output(
        "/usr/sbin/debugfs",
        &["-R", "cat /etc/apt/sources.list"],
        &image.rootfs,
    );
    assert!(sources.contains("bookworm main"), "{sources}");
    assert!(sources.contains("bookworm-security main"), "{sources}");
    assert_eq!(store.images().unwrap().len(), 1);
    require_no_drafts(&home);
}

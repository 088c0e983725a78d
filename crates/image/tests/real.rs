//! The real thing: Debian's kernel and a Debian image, fetched from the mirror and checked
//! with the file system's own tools. Runs only with `BANGER_TEST_NETWORK=1`, as it takes
//! minutes; `BANGER_TEST_HOME` names a directory whose artifacts are kept and reused, and
//! `BANGER_TEST_AGENT` the agent that goes into the initramfs.

#![expect(clippy::disallowed_methods, reason = "tests start what they test")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use banger_image::{Reporter, Store, StoreConfig};
use banger_proto::name::ArtifactName;
use tokio::sync::Notify;

/// A stage of a build in which mmdebstrap has a tree of files and runs programs in it.
const MIDDLE: &str = "install the essential packages";
/// Tells the test binary to be the process that is killed.
const CHILD: &str = "BANGER_TEST_CHILD";

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
        ubuntu_mirror: None,
        catalog: None,
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

#[tokio::test(flavor = "multi_thread")]
async fn the_default_image_has_what_developers_need() {
    let Some((store, _home, _guard)) = store() else {
        return;
    };
    if std::env::var_os("BANGER_TEST_SLOW").is_none() {
        eprintln!("skipped: BANGER_TEST_SLOW is not set");
        return;
    }
    let image = store
        .ensure_image(&name("debian-bookworm"), &reporter())
        .await
        .unwrap();
    require_clean(&image.rootfs);
    for program in [
        "docker", "gcc", "git", "jq", "make", "python3", "rsync", "tmux", "vim",
    ] {
        let stat = output(
            "/usr/sbin/debugfs",
            &["-R", &format!("stat /usr/bin/{program}")],
            &image.rootfs,
        );
        assert!(stat.contains("Inode:"), "{program} is missing");
    }
    assert_eq!(image.manifest.kernel, name("generic-6.12"));
}

/// A store of its own, so that a build really happens.
fn fresh_store(home: &Path) -> Store {
    let config = StoreConfig {
        state_dir: home.join("state"),
        cache_dir: home.join("cache"),
        agent: home.join("agent"),
        debian_mirror: None,
        ubuntu_mirror: None,
        catalog: None,
    };
    Store::open(config).unwrap()
}

/// Waits until no mmdebstrap works for `home` any more.
async fn require_no_builders(home: &Path) {
    for _ in 0..300 {
        if !std::fs::read_dir("/proc")
            .unwrap()
            .any(|entry| is_builder(&entry.unwrap().path(), home))
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("mmdebstrap still runs");
}

/// Whether the process is mmdebstrap and has its tree below `home`, or where ordinary users
/// have it.
fn is_builder(process: &Path, home: &Path) -> bool {
    let read = |file: &str| {
        let bytes = std::fs::read(process.join(file)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let environment = read("environ");
    let is_ours = environment.contains(&format!("TMPDIR={}", home.display()))
        || environment.contains("TMPDIR=/var/tmp/.banger-draft-");
    is_ours && read("cmdline").contains("mmdebstrap")
}

fn require_nothing_left(home: &Path) {
    require_no_drafts(home);
    assert_eq!(
        std::fs::read_dir(home.join("state/images"))
            .unwrap()
            .count(),
        0
    );
    let drafts: Vec<_> = std::fs::read_dir("/var/tmp")
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().starts_with(".banger-draft-"))
        .collect();
    assert!(drafts.is_empty(), "{drafts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_nobody_waits_for_any_more_ends_and_leaves_nothing() {
    if store().is_none() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let store = fresh_store(home.path());
    let middle = Arc::new(Notify::new());
    let reporter = {
        let middle = Arc::clone(&middle);
        Reporter::new(move |progress| {
            if progress.what.contains(MIDDLE) {
                middle.notify_one();
            }
        })
    };
    let name = name("debian-bookworm-slim");
    tokio::select! {
        outcome = store.ensure_image(&name, &reporter) => panic!("it ended: {outcome:?}"),
        () = middle.notified() => {}
    }
    for _ in 0..300 {
        if std::fs::read_dir(home.path().join("state/images"))
            .unwrap()
            .count()
            == 0
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    require_no_builders(home.path()).await;
    require_nothing_left(home.path());
}

/// Not a test by itself: the process that `a_build_that_is_killed…` kills.
#[tokio::test(flavor = "multi_thread")]
async fn child_that_builds() {
    let Some(home) = std::env::var_os(CHILD) else {
        return;
    };
    let store = fresh_store(Path::new(&home));
    let outcome = store
        .ensure_image(&name("debian-bookworm-slim"), &reporter())
        .await;
    panic!("it ended: {outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_is_killed_leaves_nothing_after_the_next_start() {
    if store().is_none() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_builds", "--nocapture"])
        .env(CHILD, home.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let talk = BufReader::new(child.stderr.take().unwrap());
    let reached = talk.lines().any(|line| line.unwrap().contains(MIDDLE));
    assert!(reached, "the build did not get that far");
    child.kill().unwrap();
    child.wait().unwrap();
    require_no_builders(home.path()).await;
    fresh_store(home.path());
    require_nothing_left(home.path());
}

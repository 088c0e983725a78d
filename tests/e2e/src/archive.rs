//! Images for the tests, as archives that `docker save` could have written.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Home, Invocation, skip};

/// Of the Debian package `busybox-static`.
const BUSYBOX: &str = "/bin/busybox";
/// What its archives call their image.
pub const TAG: &str = "made:1";

/// An image whose files `make` puts into a directory; all of it is root's.
pub fn archive(home: &Home, make: impl Fn(&Path)) -> PathBuf {
    let path = |name: &str| home.path().join("tree").join(name);
    fs::create_dir_all(path("root")).expect("the home can be written to");
    make(&path("root"));
    tar(&path("root"), &path("layer.tar"), &["."]);
    let image = archive_of(home, &path("layer.tar"));
    fs::remove_dir_all(home.path().join("tree")).expect("it was just made");
    image
}

/// An image of the system `name` that `cargo xtask test` made; `None`, after saying why, without
/// it.
pub fn system(home: &Home, name: &str) -> Option<PathBuf> {
    let artifacts = PathBuf::from(std::env::var_os("BANGER_TEST_ARTIFACTS")?);
    let layer = artifacts.join(format!("{name}.tar"));
    if !layer.is_file() {
        skip(&format!(
            "there is no {}: run `cargo xtask test --only image`",
            layer.display()
        ));
        return None;
    }
    Some(archive_of(home, &layer))
}

/// An image of one layer, tagged [`TAG`].
fn archive_of(home: &Home, layer: &Path) -> PathBuf {
    let path = |name: &str| home.path().join("made").join(name);
    let write = |name: &str, value: serde_json::Value| {
        fs::write(path(name), value.to_string()).expect("the home can be written to");
    };
    fs::create_dir_all(home.path().join("made")).expect("the home can be written to");
    fs::copy(layer, path("layer.tar")).expect("the home can be written to");
    let mut sum = Command::new("sha256sum");
    sum.arg(layer);
    let sum = Invocation::new(sum).run().text();
    let digest = sum.split_whitespace().next().unwrap_or_default();
    write(
        "config.json",
        serde_json::json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
        }),
    );
    write(
        "manifest.json",
        serde_json::json!([
            {"Config": "config.json", "RepoTags": [TAG], "Layers": ["layer.tar"]}
        ]),
    );
    let whole = home.path().join("image.tar");
    tar(
        &home.path().join("made"),
        &whole,
        &["manifest.json", "config.json", "layer.tar"],
    );
    fs::remove_dir_all(home.path().join("made")).expect("it was just made");
    home.hand_over();
    whole
}

/// Packs what is in a directory as root's.
fn tar(directory: &Path, into: &Path, names: &[&str]) {
    let mut tar = Command::new("tar");
    tar.args(["--create", "--numeric-owner", "--owner=0", "--group=0"]);
    tar.arg("--file").arg(into);
    tar.arg("--directory").arg(directory).args(names);
    Invocation::new(tar).run().exited_with(0);
}

/// Puts a shell and a few programs into the directory `root`.
pub fn busybox(root: &Path) {
    for directory in [
        "bin", "sbin", "etc", "proc", "sys", "dev", "run", "tmp", "var", "root",
    ] {
        fs::create_dir(root.join(directory)).expect("the tree can be written to");
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).expect("busybox can be read");
    for applet in [
        "sh", "cat", "echo", "true", "sleep", "setsid", "ls", "sync", "ps", "stat", "nc", "df",
    ] {
        symlink("busybox", root.join("bin").join(applet)).expect("the tree can be written to");
    }
}

/// Whether [`busybox`] can be used; says so if not.
pub fn has_busybox() -> bool {
    let has = Path::new(BUSYBOX).exists();
    if !has {
        skip("busybox-static is not installed");
    }
    has
}

//! Images with every kind of init, and with none: each boots, works, and goes down by its own
//! ways. Those of Debian's packages are made by `cargo xtask test`.

#![expect(clippy::disallowed_methods, reason = "tests start what they test")]
#![expect(
    clippy::unwrap_used,
    reason = "what makes the images is a part of the tests"
)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use banger_e2e::{Home, Invocation, skip};

const BUSYBOX: &str = "/bin/busybox";

/// Packs what is in a directory as root's.
fn tar(directory: &Path, into: &Path, names: &[&str]) {
    let mut tar = Command::new("tar");
    tar.args(["--create", "--numeric-owner", "--owner=0", "--group=0"]);
    tar.arg("--file").arg(into);
    tar.arg("--directory").arg(directory).args(names);
    Invocation::new(tar).run().exited_with(0);
}

/// An image whose files `make` puts into a directory.
fn archive(home: &Home, make: impl Fn(&Path)) -> PathBuf {
    let path = |name: &str| home.path().join("tree").join(name);
    fs::create_dir_all(path("root")).unwrap();
    make(&path("root"));
    tar(&path("root"), &path("layer.tar"), &["."]);
    let image = image_of(home, &path("layer.tar"));
    fs::remove_dir_all(home.path().join("tree")).unwrap();
    image
}

/// An image of one layer, as `docker save` would write it.
fn image_of(home: &Home, layer: &Path) -> PathBuf {
    let path = |name: &str| home.path().join("made").join(name);
    fs::create_dir_all(home.path().join("made")).unwrap();
    fs::copy(layer, path("layer.tar")).unwrap();
    let mut sum = Command::new("sha256sum");
    sum.arg(layer);
    let sum = Invocation::new(sum).run().text();
    let digest = sum.split_whitespace().next().unwrap();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    fs::write(path("config.json"), config.to_string()).unwrap();
    let manifest = serde_json::json!([
        {"Config": "config.json", "RepoTags": null, "Layers": ["layer.tar"]}
    ]);
    fs::write(path("manifest.json"), manifest.to_string()).unwrap();
    let whole = home.path().join("image.tar");
    tar(
        &home.path().join("made"),
        &whole,
        &["manifest.json", "config.json", "layer.tar"],
    );
    fs::remove_dir_all(home.path().join("made")).unwrap();
    home.hand_over();
    whole
}

/// An image of one of the systems that `cargo xtask test` made; `None`, after saying why,
/// without it.
fn made(home: &Home, name: &str) -> Option<PathBuf> {
    let artifacts = PathBuf::from(std::env::var_os("BANGER_TEST_ARTIFACTS")?);
    let archive = artifacts.join("inits").join(format!("{name}.tar"));
    if !archive.is_file() {
        skip(&format!(
            "there is no {}: run `cargo xtask test --only image`",
            archive.display()
        ));
        return None;
    }
    Some(image_of(home, &archive))
}

/// Boots an image, uses it in all ways, stops it, starts it again. `said` is what the console
/// says of a clean end, where the init says something.
fn works(home: &Home, archive: &Path, init: &str, said: Option<&str>) {
    let source = format!("docker-archive:{}", archive.display());
    home.banger(["image", "pull", &source, "--name", "tested"])
        .run()
        .exited_with(0);
    home.banger(["vm", "create", "--name", "vm", "--image", "tested"])
        .run()
        .exited_with(0);
    let exec = |script: &str| {
        let output = home
            .banger(["vm", "exec", "vm", "--", "/bin/sh", "-c", script])
            .run();
        output.exited_with(0).text()
    };
    assert_eq!(exec("cat /proc/1/comm"), init);
    assert_eq!(exec("cat /proc/sys/kernel/hostname"), "vm");
    assert!(exec("cat /proc/net/route").contains("eth0"), "no network");
    assert!(exec("cat /etc/resolv.conf").contains("nameserver"));
    let ssh = home
        .banger(["vm", "ssh", "vm", "--", "echo over ssh"])
        .run();
    assert_eq!(ssh.text(), "over ssh");
    exec("echo kept >/root/mine; echo kept >/var/mine");
    home.banger(["vm", "stop", "vm"]).run().exited_with(0);
    let console = home.banger(["vm", "logs", "vm", "--console"]).run().text();
    assert!(console.contains("Power down"), "{console}");
    if let Some(said) = said {
        assert!(console.contains(said), "{console}");
    }
    home.banger(["vm", "start", "vm"]).run().exited_with(0);
    assert_eq!(exec("cat /root/mine /var/mine"), "kept\nkept");
    home.banger(["vm", "delete", "vm"]).run().exited_with(0);
    home.wait_for_no_vm();
}

#[test]
fn openrc_boots_and_goes_down() {
    let Some(home) = Home::with_vms() else { return };
    let Some(archive) = made(&home, "openrc") else {
        return;
    };
    works(&home, &archive, "init", Some("Will now halt"));
}

#[test]
fn sysvinit_boots_and_goes_down() {
    let Some(home) = Home::with_vms() else { return };
    let Some(archive) = made(&home, "sysvinit") else {
        return;
    };
    works(&home, &archive, "init", Some("Will now halt"));
}

#[test]
fn runit_boots_and_goes_down() {
    let Some(home) = Home::with_vms() else { return };
    let Some(archive) = made(&home, "runit") else {
        return;
    };
    works(&home, &archive, "runit", None);
}

fn busybox(root: &Path) {
    for directory in [
        "bin", "sbin", "etc", "proc", "sys", "dev", "run", "tmp", "var", "root",
    ] {
        fs::create_dir(root.join(directory)).unwrap();
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
    for applet in [
        "sh", "cat", "echo", "true", "sleep", "setsid", "ls", "sync", "ps",
    ] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
}

fn has_busybox() -> bool {
    let has = Path::new(BUSYBOX).exists();
    if !has {
        skip("busybox-static is not installed");
    }
    has
}

#[test]
fn busyboxs_init_boots_and_runs_its_shutdown_actions() {
    let Some(home) = Home::with_vms() else { return };
    if !has_busybox() {
        return;
    }
    let archive = archive(&home, |root| {
        busybox(root);
        symlink("../bin/busybox", root.join("sbin/init")).unwrap();
        let table = "::sysinit:/bin/true\n::shutdown:/bin/echo went down properly\n";
        fs::write(root.join("etc/inittab"), table).unwrap();
    });
    works(&home, &archive, "init", Some("went down properly"));
}

#[test]
fn without_an_init_banger_stays_and_reaps_orphans() {
    let Some(home) = Home::with_vms() else { return };
    if !has_busybox() {
        return;
    }
    let archive = archive(&home, busybox);
    let source = format!("docker-archive:{}", archive.display());
    home.banger(["image", "pull", &source, "--name", "bare"])
        .run()
        .exited_with(0);
    let orphan = "(setsid sh -c 'sleep 0.2; exit 3' &) ; sleep 1; \
                  for s in /proc/[0-9]*/stat; do cat $s 2>/dev/null; done";
    let stats = home
        .banger([
            "vm", "run", "--rm", "--image", "bare", "--", "/bin/sh", "-c", orphan,
        ])
        .run()
        .text();
    assert!(!stats.contains(") Z "), "a zombie is left: {stats}");
    home.wait_for_no_vm();
    works(&home, &archive, "init", None);
}

#[test]
fn one_static_program_is_image_enough() {
    let Some(home) = Home::with_vms() else { return };
    // The agent is such a program, and says its version.
    let agent = home.programs().join("banger-vsock-agent");
    let archive = archive(&home, |root| {
        fs::copy(&agent, root.join("app")).unwrap();
    });
    let source = format!("docker-archive:{}", archive.display());
    home.banger(["image", "pull", &source, "--name", "app"])
        .run()
        .exited_with(0);
    let said = home
        .banger([
            "vm",
            "run",
            "--name",
            "vm",
            "--image",
            "app",
            "--",
            "/app",
            "--version",
        ])
        .run()
        .text();
    assert!(said.contains(banger_proto::VERSION), "{said}");
    home.banger(["vm", "stop", "vm"]).run().exited_with(0);
    home.banger(["vm", "start", "vm"]).run().exited_with(0);
    home.banger(["vm", "exec", "vm", "--", "/app", "--version"])
        .run()
        .exited_with(0);
    home.banger(["vm", "delete", "vm"]).run().exited_with(0);
    home.wait_for_no_vm();
}

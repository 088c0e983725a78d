//! Images with every kind of init, and with none: each boots, works, and goes down by its own
//! ways. Those of Debian's packages are made by `cargo xtask test`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use banger_e2e::{Home, archive, busybox, has_busybox, system};

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
    // A kernel whose machine has no power switch halts instead.
    let end = match Home::engine().as_str() {
        "firecracker" => "reboot: System halted",
        _ => "reboot: Power down",
    };
    assert!(console.contains(end), "{console}");
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
    let Some(archive) = system(&home, "inits/openrc") else {
        return;
    };
    works(&home, &archive, "init", Some("Will now halt"));
}

#[test]
fn sysvinit_boots_and_goes_down() {
    let Some(home) = Home::with_vms() else { return };
    let Some(archive) = system(&home, "inits/sysvinit") else {
        return;
    };
    works(&home, &archive, "init", Some("Will now halt"));
}

#[test]
fn runit_boots_and_goes_down() {
    let Some(home) = Home::with_vms() else { return };
    let Some(archive) = system(&home, "inits/runit") else {
        return;
    };
    works(&home, &archive, "runit", None);
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

//! Commands around a VM's life, with real VMs: copies, waiting, stats, events, and a guest that
//! is frozen.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::Duration;

use banger_e2e::Home;
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn files_go_into_a_vm_and_out_with_modes_owners_and_links() {
    let Some(home) = Home::with_vms() else { return };
    home.banger(["vm", "create", "--name", "a"])
        .run()
        .exited_with(0);
    let sh = |script: &str| {
        home.banger(["vm", "exec", "a", "--", "sh", "-c", script])
            .run()
            .text()
    };
    let here = home.path().join("here");
    let tree = here.join("tree");
    fs::create_dir_all(tree.join("sub/empty")).unwrap();
    fs::write(tree.join("run"), "#!/bin/sh\necho it runs\n").unwrap();
    fs::set_permissions(tree.join("run"), PermissionsExt::from_mode(0o750)).unwrap();
    fs::hard_link(tree.join("run"), tree.join("sub/same")).unwrap();
    symlink("../run", tree.join("sub/link")).unwrap();
    let large: Vec<u8> = (0..20_000_003u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    fs::write(tree.join("large"), &large).unwrap();
    let path = |name: &str| here.join(name).display().to_string();
    let cp = |from: &str, to: &str| home.banger(["vm", "cp", from, to]).run();

    cp(&path("tree"), "a:").exited_with(0);
    assert_eq!(
        sh("cd /root/tree && ./run && stat -c '%a %h %U' run && readlink sub/link && ls sub"),
        "it runs\n750 2 root\n../run\nempty\nlink\nsame"
    );
    assert_eq!(sh("wc -c </root/tree/large"), large.len().to_string());
    // A second copy goes below the first one, as `cp -r` has it; its contents over it.
    cp(&path("tree"), "a:tree").exited_with(0);
    cp(&path("tree/."), "a:tree").exited_with(0);
    assert_eq!(sh("ls -d /root/tree/tree/sub"), "/root/tree/tree/sub");

    cp("a:tree/tree", &path("back")).exited_with(0);
    assert!(
        fs::read(here.join("back/large")).unwrap() == large,
        "bytes differ"
    );
    let run = fs::metadata(here.join("back/run")).unwrap();
    let original = fs::metadata(tree.join("run")).unwrap();
    assert_eq!((run.mode(), run.nlink()), (original.mode(), 2));
    assert_eq!(run.uid(), original.uid());
    let link = fs::read_link(here.join("back/sub/link")).unwrap();
    assert_eq!(link.to_str(), Some("../run"));

    cp("a:/etc/os-release", &path("release")).exited_with(0);
    cp("a:/no/such", &path("x")).exited_with(1).says("no/such");
    cp(&path("release"), "a:/no/such/")
        .exited_with(1)
        .says("there is no directory `/no/such/`");
    cp(&path("release"), "a:/proc/x").exited_with(1);
    let archive = cp("a:/etc/os-release", "-").exited_with(0);
    home.banger(["vm", "cp", "-", "a:/srv"])
        .stdin(archive.stdout)
        .run()
        .exited_with(0);
    assert_eq!(
        sh("cmp /srv/os-release /etc/os-release && echo same"),
        "same"
    );
    home.banger(["vm", "delete", "a"]).run().exited_with(0);
    home.assert_no_vm_left();
}

#[test]
fn a_vm_can_be_waited_for_watched_and_left_while_it_is_frozen() {
    let Some(home) = Home::with_vms() else { return };
    let begun = home
        .banger(["vm", "create", "--name", "a", "--no-wait"])
        .run()
        .text();
    let (operation, name) = begun.split_once(' ').unwrap();
    assert_eq!((operation.len(), name), (32, "a"));
    let wait = ["vm", "wait", "a", "--for", "healthy", "--timeout", "5m"];
    home.banger(wait)
        .limit(Duration::from_secs(320))
        .run()
        .exited_with(0);
    let show = ["operation", "show", operation, "--json"];
    let operation = home.banger(show).run().json();
    assert_eq!(operation["state"], "succeeded");

    let stats = home.banger(["vm", "stats", "a", "--json"]).run().json();
    assert!(stats[0]["host"]["cpu_us"].as_u64() > Some(0), "{stats}");
    assert!(
        stats[0]["guest"]["memory_total"].as_u64() > Some(0),
        "{stats}"
    );
    let table = home.banger(["vm", "stats"]).run().text();
    assert!(table.contains("% "), "{table}");
    let events = home.banger(["events", "--vm", "a"]).run().text();
    assert!(events.contains("VM a is running"), "{events}");

    let exec = [
        "vm",
        "exec",
        "a",
        "--",
        "sh",
        "-c",
        "echo up; exec sleep 1000",
    ];
    let mut running = home.banger(exec).start();
    running.expect_stdout("up");
    let pid = home.banger(["vm", "show", "a", "--json"]).run().json()["pid"].clone();
    let engine = Pid::from_raw(i32::try_from(pid.as_i64().unwrap()).unwrap()).unwrap();
    kill_process(engine, Signal::STOP).unwrap();
    running.signal(Signal::TERM);
    let left = running.wait();
    kill_process(engine, Signal::CONT).unwrap();
    left.exited_with(143).says("does not answer");
    home.banger(["vm", "delete", "a"]).run().exited_with(0);
    home.assert_no_vm_left();
}

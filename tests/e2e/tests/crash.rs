//! Whatever dies, and whenever: no VM is lost with the daemon, and nothing is left behind.

use banger_e2e::Home;
use rustix::process::{Pid, Signal, kill_process};

fn pid_of(home: &Home, vm: &str) -> Pid {
    let shown = home.banger(["vm", "show", vm, "--json"]).run().json();
    let pid = shown["pid"].as_i64().expect("it runs");
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.expect("it is a process id")
}

#[test]
fn a_vm_outlives_its_killed_daemon_and_is_adopted() {
    let Some(home) = Home::new() else { return };
    home.banger([
        "vm",
        "run",
        "--name",
        "survivor",
        "--",
        "touch",
        "/root/before",
    ])
    .run()
    .exited_with(0);
    let engine = pid_of(&home, "survivor");

    home.kill_daemon();
    assert!(!banger_e2e::pid_exits_within(
        engine,
        std::time::Duration::ZERO
    ));

    // The next command starts a daemon, which takes the VM over as it is.
    let exec = ["vm", "exec", "survivor", "--", "ls", "/root/before"];
    assert_eq!(home.banger(exec).run().text(), "/root/before");
    assert_eq!(pid_of(&home, "survivor"), engine);

    home.kill_daemon();
    home.banger(["vm", "delete", "survivor"])
        .run()
        .exited_with(0);
    home.assert_no_vm_left();
    home.assert_no_vm_known();
}

#[test]
fn a_graceful_end_of_the_daemon_keeps_the_vm_too() {
    let Some(home) = Home::new() else { return };
    home.banger(["vm", "create", "--name", "calm"])
        .run()
        .exited_with(0);
    let engine = pid_of(&home, "calm");
    home.banger(["daemon", "restart"]).run().exited_with(0);
    assert_eq!(pid_of(&home, "calm"), engine);
    home.banger(["daemon", "stop"]).run().exited_with(0);
    assert!(!banger_e2e::pid_exits_within(
        engine,
        std::time::Duration::ZERO
    ));
    home.banger(["vm", "exec", "calm", "--", "true"])
        .run()
        .exited_with(0);
    home.banger(["vm", "delete", "calm"]).run().exited_with(0);
    home.assert_no_vm_left();
}

#[test]
fn a_daemon_killed_in_the_middle_of_a_start_leaves_nothing() {
    let Some(home) = Home::with_vms() else { return };
    let mut run = home.banger(["vm", "run", "--rm", "--", "true"]).start();
    run.expect_stderr("engine");
    home.kill_daemon();
    let output = run.wait();
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    home.banger(["daemon", "start"]).run().exited_with(0);
    home.wait_for_no_vm();
    home.assert_no_vm_known();
}

#[test]
fn a_dead_engine_is_noticed_and_the_vm_starts_again() {
    let Some(home) = Home::new() else { return };
    home.banger([
        "vm",
        "run",
        "--name",
        "phoenix",
        "--",
        "sh",
        "-c",
        "echo kept >/root/kept; sync",
    ])
    .run()
    .exited_with(0);
    let mut exec = home
        .banger([
            "vm",
            "exec",
            "phoenix",
            "--",
            "sh",
            "-c",
            "echo ready; exec sleep 600",
        ])
        .start();
    exec.expect_stdout("ready");
    kill_process(pid_of(&home, "phoenix"), Signal::KILL).unwrap();
    let output = exec.wait();
    assert_eq!(output.status.code(), Some(125), "{output:?}");

    home.wait_for_state("phoenix", "failed");
    let shown = home
        .banger(["vm", "show", "phoenix", "--json"])
        .run()
        .json();
    assert!(shown["failure"]["message"].is_string(), "{shown:#}");
    home.banger(["vm", "start", "phoenix"]).run().exited_with(0);
    let exec = ["vm", "exec", "phoenix", "--", "cat", "/root/kept"];
    assert_eq!(home.banger(exec).run().text(), "kept");
    home.banger(["vm", "delete", "phoenix"])
        .run()
        .exited_with(0);
    home.assert_no_vm_left();
}

#[test]
fn a_start_without_an_engine_says_so_and_leaves_nothing() {
    let Some(home) = Home::with_vms() else { return };
    let engine = Home::engine();
    home.configure(&format!("{engine}_bin = \"/nonexistent/{engine}\"\n"));
    home.banger(["vm", "run", "--rm", "--", "true"])
        .run()
        .exited_with(125)
        .says(&format!("/nonexistent/{engine}"));
    home.assert_no_vm_known();
    home.assert_no_vm_left();
}

#[test]
fn a_guest_that_never_comes_up_is_reported_with_its_console() {
    let Some(home) = Home::with_vms() else { return };
    // No file system where the base image was: init cannot go on.
    for rootfs in home.files_named("rootfs.ext4") {
        let length = std::fs::metadata(&rootfs).unwrap().len();
        // A new file: the old one is shared with the other tests.
        std::fs::remove_file(&rootfs).unwrap();
        std::fs::File::create(&rootfs)
            .unwrap()
            .set_len(length)
            .unwrap();
        home.hand_over();
    }
    let output = home
        .banger(["vm", "run", "--rm", "--", "true"])
        .run()
        .exited_with(125);
    assert!(output.stderr.contains("error: "), "{output:?}");
    home.wait_for_no_vm();
    home.assert_no_vm_known();
}

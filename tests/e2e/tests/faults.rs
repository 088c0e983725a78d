//! What guests and hosts do wrong while a VM runs, and what becomes of the VM: its state is the
//! truth, every command ends, and what was synced is there after the next start.

use std::fs;
use std::time::{Duration, Instant};

use banger_e2e::{Home, Output};

/// How long a command may take to end that is about a guest that does not answer. Without
/// hardware virtualisation banger waits longest, for a new command 60 s.
const BOUND: Duration = Duration::from_secs(120);

/// Runs a script in a VM.
fn script(home: &Home, vm: &str, script: &str) -> Output {
    home.banger(["vm", "exec", vm, "--", "sh", "-c", script])
        .limit(BOUND)
        .run()
}

fn run(home: &Home, command: &str, vm: &str) -> Output {
    home.banger(["vm", command, vm]).limit(BOUND).run()
}

#[test]
fn a_guest_whose_kernel_panics_is_failed_says_so_and_starts_again() {
    let Some(home) = Home::with_vms() else { return };
    home.banger(["vm", "create", "--name", "panicky"])
        .run()
        .exited_with(0);
    let crash = "echo kept >/root/kept; sync; echo c >/proc/sysrq-trigger";
    script(&home, "panicky", crash).exited_with(125);
    home.wait_for_state("panicky", "failed");
    let shown = home
        .banger(["vm", "show", "panicky", "--json"])
        .run()
        .json();
    let failure = shown["failure"].to_string();
    let words = "Kernel panic - not syncing: sysrq triggered crash";
    assert!(failure.contains(words), "{failure}");
    assert!(!failure.contains("RIP:"), "{failure}");
    run(&home, "start", "panicky").exited_with(0);
    assert_eq!(script(&home, "panicky", "cat /root/kept").text(), "kept");
    run(&home, "delete", "panicky").exited_with(0);
    home.assert_no_vm_left();
}

#[test]
fn a_guest_whose_agent_hangs_is_not_healthy_and_its_stop_ends_in_bounded_time() {
    let Some(home) = Home::with_vms() else { return };
    home.banger(["vm", "create", "--name", "mute"])
        .run()
        .exited_with(0);
    script(&home, "mute", "echo kept >/root/kept; sync").exited_with(0);
    // It stops after the command's end has been told.
    let hang = "pid=$(grep -lz '^@banger-vsock-agent' /proc/[0-9]*/cmdline | cut -d / -f 3); \
                nohup setsid sh -c \"sleep 1; echo gone >/root/gone; sync; kill -STOP $pid\" \
                >/dev/null 2>&1 &";
    script(&home, "mute", hang).exited_with(0);
    // Until then it answers: each look is a request, which is what is waited for.
    let deadline = Instant::now() + BOUND;
    let ill = loop {
        let health = run(&home, "health", "mute");
        if health.status.code() != Some(0) {
            break health;
        }
        assert!(Instant::now() < deadline, "still healthy: {health:?}");
    };
    let told = String::from_utf8_lossy(&ill.stdout).into_owned();
    assert!(told.contains("no answer"), "{ill:?}");
    let shown = home.banger(["vm", "show", "mute", "--json"]).run().json();
    assert_eq!(shown["state"], "running", "{shown:#}");

    let begin = Instant::now();
    run(&home, "stop", "mute").exited_with(0);
    assert!(begin.elapsed() < BOUND, "{:?}", begin.elapsed());
    let shown = home.banger(["vm", "show", "mute", "--json"]).run().json();
    assert_eq!(shown["state"], "stopped", "{shown:#}");
    run(&home, "start", "mute").exited_with(0);
    let kept = script(&home, "mute", "cat /root/kept /root/gone").text();
    assert_eq!(kept, "kept\ngone");
    run(&home, "delete", "mute").exited_with(0);
    home.assert_no_vm_left();
}

#[test]
fn a_host_without_room_costs_a_running_guest_nothing_that_was_synced() {
    let Some(home) = Home::with_vms() else { return };
    let vms = home.paths().vms();
    if !home.limit_size(&vms, "128m") {
        return;
    }
    home.banger(["vm", "create", "--name", "cramped"])
        .run()
        .exited_with(0);
    script(&home, "cramped", "echo kept >/root/kept; sync").exited_with(0);
    // What takes the room is the host's, so that all of a guest's writes fail from here on.
    let filler = vms.join("filler");
    let _ = fs::write(&filler, vec![1; 256 << 20]);
    let write = "dd if=/dev/urandom of=/root/much bs=1M count=32 conv=fsync 2>&1";
    let output = script(&home, "cramped", write);
    assert_ne!(output.status.code(), Some(0), "{output:?}");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        told.contains("Input/output error") || told.contains("Read-only file system"),
        "{output:?}"
    );
    let shown = home
        .banger(["vm", "show", "cramped", "--json"])
        .run()
        .json();
    assert_eq!(shown["state"], "running", "{shown:#}");

    fs::remove_file(&filler).unwrap();
    run(&home, "stop", "cramped").exited_with(0);
    run(&home, "start", "cramped").exited_with(0);
    let after = "cat /root/kept; echo more >/root/more; sync; cat /root/more";
    assert_eq!(script(&home, "cramped", after).text(), "kept\nmore");
    run(&home, "delete", "cramped").exited_with(0);
    home.assert_no_vm_left();
}

#[test]
fn a_daemon_with_few_descriptors_says_what_is_wanting_and_serves_on() {
    let Some(home) = Home::with_vms() else { return };
    let mut limited = home.command("prlimit");
    // A daemon at rest has 17 open and 4 more for each VM; a start takes some for a while.
    limited.args(["--nofile=26:26", "--"]);
    limited.arg(home.programs().join("banger"));
    limited.args(["daemon", "start"]);
    let status = limited.status().unwrap();
    assert!(status.success(), "{status}");

    let mut refused = 0;
    for name in ["one", "two", "three"] {
        let created = home.banger(["vm", "create", "--name", name]).run();
        if created.status.code() == Some(0) {
            script(&home, name, "true").exited_with(0);
        } else {
            created.says("error: ").says("Too many open files");
            refused += 1;
        }
    }
    assert!(refused > 0, "the limit was not reached");
    // It serves on, and what was not made has left nothing.
    for listed in home
        .banger(["vm", "list", "--json"])
        .run()
        .json()
        .as_array()
        .unwrap()
    {
        assert_eq!(listed["state"], "running", "{listed:#}");
        run(&home, "delete", listed["name"].as_str().unwrap()).exited_with(0);
    }
    home.assert_no_vm_known();
    home.assert_no_vm_left();
}

//! `vm run`, `vm create` and the commands that take several VMs.

use std::process::Stdio;

use rustix::process::Signal;

use crate::daemon::{CreateVmSummary, Daemon, Deed};
use crate::process::{Running, banger, run};

fn created(name: Option<&str>, leased: bool) -> Deed {
    Deed::Created(Box::new(CreateVmSummary {
        name: name.map(str::to_owned),
        leased,
    }))
}

#[test]
fn run_makes_a_vm_runs_the_command_and_says_that_the_vm_is_kept() {
    let daemon = Daemon::start();
    let said = run(daemon.home(), &["vm", "run", "--", "exit", "3"]);
    assert_eq!((said.status, said.stdout()), (Some(3), ""));
    insta::with_settings!({filters => vec![(r"after \d+ ms", "after [time]")]}, {
        insta::assert_snapshot!(said.stderr, @r"
        creating VM `new-vm`
          download kernel: 1.0M of 2.0M
          disks 12 ms
        VM `new-vm` is ready after [time]
        VM `new-vm` goes on running
          come back: banger vm exec new-vm
          stop:      banger vm stop new-vm
          delete:    banger vm delete new-vm
        ");
    });
    assert_eq!(daemon.deed(), created(None, false));
}

#[test]
fn quiet_leaves_only_what_the_guest_says() {
    let daemon = Daemon::start();
    let said = run(daemon.home(), &["vm", "run", "--quiet", "--", "both"]);
    assert_eq!((said.stdout(), said.stderr.as_str()), ("out\n", "err\n"));
}

#[test]
fn with_rm_the_vm_hangs_on_a_lease_that_ends_with_banger() {
    let daemon = Daemon::start();
    let said = run(daemon.home(), &["vm", "run", "--rm", "--", "exit", "0"]);
    assert_eq!(said.status, Some(0));
    assert!(!said.stderr.contains("goes on"), "{}", said.stderr);
    assert_eq!(daemon.deed(), Deed::LeaseTaken);
    assert_eq!(daemon.deed(), created(None, true));
    let mut ends = [daemon.deed(), daemon.deed()];
    ends.sort_by_key(|deed| *deed == Deed::LeaseEnded);
    assert_eq!(ends, [Deed::ExecEnded("exited".into()), Deed::LeaseEnded]);
}

#[test]
fn the_lease_ends_even_if_banger_is_killed() {
    let daemon = Daemon::start();
    let mut running = Running::start(banger(daemon.home(), &["vm", "run", "--rm", "--", "sleep"]));
    assert_eq!(running.line(), "asleep\n");
    assert_eq!(
        (daemon.deed(), daemon.deed()),
        (Deed::LeaseTaken, created(None, true))
    );
    running.signal(Signal::KILL);
    let mut ends = [daemon.deed(), daemon.deed()];
    ends.sort_by_key(|deed| *deed == Deed::LeaseEnded);
    assert_eq!(
        ends,
        [Deed::ExecEnded("client gone".into()), Deed::LeaseEnded]
    );
}

#[test]
fn a_signal_during_the_creation_calls_it_off_and_waits_for_the_clean_up() {
    let daemon = Daemon::start();
    for (command, signal, status) in [("run", Signal::INT, 130), ("create", Signal::TERM, 143)] {
        let mut running = Running::start(banger(daemon.home(), &["vm", command, "--name", "slow"]));
        assert_eq!(running.error_line(), "creating VM `slow`\n");
        assert_eq!(running.error_line(), "  download kernel: 1.0M of 2.0M\n");
        running.signal(signal);
        let said = running.wait();
        assert_eq!((said.status, said.stdout()), (Some(status), ""));
        let told = "  called off, cleaning up\ncancelled; nothing of the VM is left\n";
        assert!(said.stderr.ends_with(told), "{}", said.stderr);
        assert_eq!(daemon.deed(), created(Some("slow"), false));
        assert_eq!(daemon.deed(), Deed::CalledOff);
    }
}

#[test]
fn a_failed_creation_says_why_and_is_bangers_own_failure() {
    let daemon = Daemon::start();
    let said = run(
        daemon.home(),
        &["vm", "run", "-q", "--name", "broken", "--", "exit", "0"],
    );
    assert_eq!(said.status, Some(125));
    insta::assert_snapshot!(said.stderr, @r"
    error: could not start VM `broken`: stage disks
      caused by: the disk is full
    ");
    let said = run(daemon.home(), &["vm", "create", "-q", "--name", "broken"]);
    assert_eq!(said.status, Some(1));
}

#[test]
fn create_prints_the_name_alone() {
    let daemon = Daemon::start();
    let said = run(daemon.home(), &["vm", "create", "--name", "fresh"]);
    assert_eq!((said.status, said.stdout()), (Some(0), "fresh\n"));
    let said = run(
        daemon.home(),
        &["vm", "create", "--name", "fresh2", "--json", "-q"],
    );
    let vm: banger_proto::api::Vm = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(vm.name.as_str(), "fresh2");
}

#[test]
fn what_can_be_deleted_is_deleted_if_another_cannot() {
    let daemon = Daemon::start();
    let said = run(
        daemon.home(),
        &["vm", "delete", "-q", "calm-otter", "nobody", "devbox"],
    );
    assert_eq!(said.status, Some(1));
    assert_eq!(
        said.stderr,
        "error: no VM `nobody`\nhint: `banger vm list` lists the VMs\n"
    );
    let mut deleted = [daemon.deed(), daemon.deed()];
    deleted.sort_by_key(|deed| format!("{deed:?}"));
    assert_eq!(
        deleted,
        [
            Deed::Deleted("calm-otter".into()),
            Deed::Deleted("devbox".into())
        ]
    );
}

#[test]
fn a_vm_that_is_named_twice_is_stopped_once() {
    let daemon = Daemon::start();
    let said = run(daemon.home(), &["vm", "stop", "calm-otter", "calm-otter"]);
    assert_eq!(said.status, Some(0));
    assert_eq!(
        said.stderr.matches("is stopped").count(),
        1,
        "{}",
        said.stderr
    );
}

#[test]
fn a_closed_standard_error_does_not_matter() {
    let daemon = Daemon::start();
    let mut command = banger(daemon.home(), &["vm", "run", "--", "both"]);
    command.stderr(Stdio::piped());
    let mut running = Running::start(command);
    drop(running.child.stderr.take());
    let said = running.wait();
    assert_eq!((said.status, said.stdout()), (Some(0), "out\n"));
}

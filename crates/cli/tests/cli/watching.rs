//! Commands that watch: wait, events, operation, stats, health; and what is said of a config
//! that the daemon has not read.

use banger_proto::api::{Operation, VmState, VmStats};

use crate::daemon::{Daemon, Deed};
use crate::process::{Running, banger, run};

fn start(daemon: &Daemon, words: &[&str]) -> Running {
    Running::start(banger(daemon.home(), words))
}

#[test]
fn wait_ends_with_the_state_that_was_waited_for() {
    let daemon = Daemon::start();
    let said = run(daemon.home(), &["vm", "wait", "calm-otter", "devbox"]);
    assert_eq!(
        (said.status, said.stderr.as_str()),
        (
            Some(0),
            "VM `calm-otter` is running\nVM `devbox` is running\n"
        )
    );
    let waiting = start(&daemon, &["vm", "wait", "calm-otter", "--for", "stopped"]);
    daemon.wait_for_follower();
    daemon.enter("calm-otter", VmState::Stopping);
    daemon.enter("calm-otter", VmState::Stopped);
    // However short the state was.
    daemon.enter("calm-otter", VmState::Starting);
    assert_eq!(waiting.wait().status, Some(0));
    let waiting = start(
        &daemon,
        &["vm", "wait", "-q", "calm-otter", "--for", "deleted"],
    );
    daemon.wait_for_follower();
    daemon.forget("calm-otter");
    let said = waiting.wait();
    assert_eq!((said.status, said.stderr.as_str()), (Some(0), ""));
}

#[test]
fn wait_fails_when_the_state_cannot_come_any_more() {
    let daemon = Daemon::start();
    daemon.enter("calm-otter", VmState::Starting);
    let waiting = start(&daemon, &["vm", "wait", "calm-otter"]);
    daemon.wait_for_follower();
    daemon.enter("calm-otter", VmState::Failed);
    let said = waiting.wait();
    assert_eq!(said.status, Some(1));
    insta::assert_snapshot!(said.stderr, @r"
    error: VM `calm-otter` failed, so it does not get running
      caused by: the engine died
    hint: run `banger vm show calm-otter` and `banger vm logs calm-otter`
    ");
    let waiting = start(&daemon, &["vm", "wait", "devbox", "--for", "stopped"]);
    daemon.wait_for_follower();
    daemon.forget("devbox");
    let said = waiting.wait();
    assert_eq!(
        (said.status, said.stderr.as_str()),
        (
            Some(1),
            "error: VM `devbox` was deleted before it was stopped\n"
        )
    );
}

#[test]
fn who_watches_goes_on_with_the_next_daemon() {
    let daemon = Daemon::start();
    let waiting = start(&daemon, &["vm", "wait", "calm-otter", "--for", "stopped"]);
    daemon.wait_for_follower();
    let mut following = start(&daemon, &["events", "-f", "--json"]);
    daemon.wait_for_follower();
    daemon.tell(banger_proto::api::Happened::Missed);
    assert!(following.line().contains("\"missed\""));
    daemon.wait_for_follower();
    daemon.wait_for_follower();
    daemon.enter("calm-otter", VmState::Stopped);
    assert_eq!(waiting.wait().status, Some(0));
    assert!(following.line().contains("\"stopped\""));
}

#[test]
fn who_watches_starts_no_daemon_where_one_was_stopped() {
    let daemon = Daemon::start();
    let words = [
        "vm",
        "wait",
        "calm-otter",
        "--for",
        "paused",
        "--timeout",
        "2",
    ];
    let waiting = start(&daemon, &words);
    daemon.wait_for_follower();
    let _home = daemon.stop();
    // The program of the daemon is nowhere, so that to start one would be an error of its own.
    assert_eq!(waiting.wait().status, Some(124));
}

#[test]
fn wait_has_a_limit() {
    let daemon = Daemon::start();
    for (vm, wanted) in [("calm-otter", "paused"), ("devbox", "healthy")] {
        let words = ["vm", "wait", vm, "--for", wanted, "--timeout", "0.3"];
        let said = run(daemon.home(), &words);
        assert_eq!(said.status, Some(124));
        assert_eq!(
            said.stderr,
            format!(
                "error: VM `{vm}` is not {wanted} after 300 ms\nhint: `banger vm list` shows the states\n"
            )
        );
    }
    let said = run(
        daemon.home(),
        &["vm", "wait", "calm-otter", "--for", "healthy"],
    );
    assert_eq!(said.status, Some(0));
}

#[test]
fn events_are_told_from_where_one_left_off() {
    let daemon = Daemon::start();
    daemon.enter("calm-otter", VmState::Stopping);
    daemon.enter("devbox", VmState::Stopping);
    daemon.enter("calm-otter", VmState::Stopped);
    let said = run(daemon.home(), &["events"]);
    assert_eq!(
        said.stdout(),
        "2026-01-01T00:00:00Z  VM calm-otter is stopping\n\
         2026-01-01T00:00:00Z  VM devbox is stopping\n\
         2026-01-01T00:00:00Z  VM calm-otter is stopped\n"
    );
    let words = [
        "events",
        "--since-id",
        "7-1",
        "--vm",
        "calm-otter",
        "--json",
    ];
    let said = run(daemon.home(), &words);
    let event: banger_proto::api::Event = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(event.id, "7-3");
    let mut following = start(&daemon, &["events", "-f", "--since-id", "7-3"]);
    daemon.wait_for_follower();
    daemon.forget("devbox");
    assert_eq!(
        following.line(),
        "2026-01-01T00:00:00Z  VM devbox is deleted\n"
    );
}

#[test]
fn operations_are_listed_shown_followed_and_called_off() {
    let daemon = Daemon::start();
    let said = run(
        daemon.home(),
        &["vm", "create", "--name", "slow", "--no-wait"],
    );
    let id = said.stdout().split(' ').next().unwrap().to_owned();
    assert!(matches!(daemon.deed(), Deed::Created(_)));
    let said = run(daemon.home(), &["operation", "list"]);
    let line = said.stdout().lines().nth(1).unwrap();
    assert!(line.starts_with(&id[..12]), "{line}");
    let said = run(daemon.home(), &["operation", "show", &id[..6], "--json"]);
    let operation: Operation = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(operation.id.as_str(), id);
    let said = run(daemon.home(), &["operation", "cancel", &id[..12]]);
    assert_eq!(
        (said.status, said.stderr.as_str()),
        (Some(0), "creating VM `slow`: called off\n")
    );
    assert_eq!(daemon.deed(), Deed::CalledOff);
    let said = run(daemon.home(), &["operation", "follow", "-q", &id]);
    assert_eq!(
        (said.status, said.stderr.as_str()),
        (Some(1), "error: it was called off\n")
    );
    let said = run(daemon.home(), &["operation", "show", "zzz"]);
    assert_eq!(
        said.stderr,
        "error: no operation `zzz`\nhint: `banger operation list` lists them\n"
    );
}

#[test]
fn stats_are_rates_of_two_looks() {
    let daemon = Daemon::start();
    let said = run(daemon.home(), &["vm", "stats", "calm-otter"]);
    let row = said.stdout().lines().nth(1).unwrap().to_owned();
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(
        cells[..6],
        ["calm-otter", "running", "25.0%", "128M", "of", "512M"]
    );
    let said = run(daemon.home(), &["vm", "stats", "--json"]);
    let stats: Vec<VmStats> = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(stats.len(), 2);
    let mut watching = start(&daemon, &["vm", "stats", "--watch"]);
    assert!(watching.line().starts_with("NAME"));
    assert!(watching.line().starts_with("calm-otter"));
    assert!(watching.line().starts_with("devbox"));
    // In a pipe the headings come once.
    assert!(watching.line().starts_with("calm-otter"));
}

#[test]
fn health_is_a_table_and_a_status() {
    let daemon = Daemon::start();
    let said = run(daemon.home(), &["vm", "ping", "calm-otter"]);
    assert_eq!(said.status, Some(0), "{said:?}");
    let said = run(
        daemon.home(),
        &["vm", "health", "calm-otter", "devbox", "nobody"],
    );
    assert_eq!(said.status, Some(1));
    insta::assert_snapshot!(said.stdout());
    assert_eq!(
        said.stderr,
        "error: no VM `nobody`\nhint: `banger vm list` lists the VMs\n"
    );
}

#[test]
fn a_config_that_the_daemon_has_not_read_is_said_once() {
    let daemon = Daemon::start();
    std::fs::create_dir(daemon.home().join("config")).unwrap();
    std::fs::write(daemon.home().join("config/config.toml"), "vmm = \"qemu\"\n").unwrap();
    let said = run(daemon.home(), &["vm", "list", "-q"]);
    assert_eq!(
        said.stderr,
        "warning: the config file has changed since the daemon started: run `banger daemon \
         restart` to use it; VMs go on running\n"
    );
}

#[test]
fn what_can_be_told_of_several_vms_is_told_and_the_rest_is_an_error() {
    let daemon = Daemon::start();
    for words in [
        &["vm", "stats", "calm-otter", "nobody"][..],
        &["vm", "stats", "--json", "calm-otter", "nobody"],
        &["vm", "health", "calm-otter", "nobody"],
    ] {
        let said = run(daemon.home(), words);
        assert_eq!(said.status, Some(1), "{words:?}");
        assert!(said.stdout().contains("calm-otter"), "{words:?}: {said:?}");
        let told = said.stderr.matches("no VM `nobody`").count();
        assert_eq!(told, 1, "{words:?}: {}", said.stderr);
    }
    let said = run(daemon.home(), &["vm", "stats", "nobody"]);
    assert_eq!((said.status, said.stdout()), (Some(1), ""));
}

#[test]
fn health_without_a_name_is_that_of_all_that_run() {
    let daemon = Daemon::start();
    daemon.enter("devbox", VmState::Stopped);
    let said = run(daemon.home(), &["vm", "health"]);
    assert_eq!(said.status, Some(0), "{said:?}");
    assert!(said.stdout().contains("calm-otter"));
    assert!(!said.stdout().contains("devbox"));
    daemon.enter("calm-otter", VmState::Stopped);
    let said = run(daemon.home(), &["vm", "health"]);
    assert_eq!(
        (said.status, said.stderr.as_str()),
        (Some(0), "no VM runs\n")
    );
}

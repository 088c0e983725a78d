//! Commands that change VMs: restart, kill, pause, resume, set, rename, prune.

use banger_proto::api::VmState;

use crate::daemon::{Daemon, Deed};
use crate::process::{banger, run};
use crate::terminal::Terminal;

fn asked(text: &str) -> Deed {
    Deed::Asked(text.to_owned())
}

#[test]
fn each_order_asks_for_what_it_says() {
    let daemon = Daemon::start();
    let mut told = String::new();
    for (words, deed) in [
        (&["restart"][..], "POST calm-otter/restart"),
        (&["kill"], r#"POST calm-otter/kill {"signal":null}"#),
        (
            &["kill", "-s", "term"],
            r#"POST calm-otter/kill {"signal":15}"#,
        ),
        (&["pause"], "POST calm-otter/pause"),
        (&["resume"], "POST calm-otter/resume"),
        (
            &["set", "--label", "a=b", "--unlabel", "c", "--ttl", "1h"],
            r#"PATCH calm-otter {"labels":{"a":"b","c":null},"ttl_s":3600}"#,
        ),
    ] {
        let words = [&["vm"], words, &["calm-otter"]].concat();
        let said = run(daemon.home(), &words);
        assert_eq!((said.status, said.stdout()), (Some(0), ""), "{said:?}");
        assert_eq!(daemon.deed(), asked(deed));
        told.push_str(said.stderr.lines().next().unwrap());
        told.push('\n');
        told.push_str(said.stderr.lines().last().unwrap());
        told.push('\n');
    }
    insta::assert_snapshot!(told);
}

#[test]
fn a_refused_change_says_what_to_do() {
    let daemon = Daemon::start();
    let said = run(daemon.home(), &["vm", "set", "-q", "--vcpu", "2", "devbox"]);
    assert_eq!(said.status, Some(1));
    insta::assert_snapshot!(said.stderr, @r"
    error: could not change VM `devbox`
      caused by: it runs, and its CPUs can be changed only while it is down
    hint: `banger vm stop devbox` first
    ");
}

#[test]
fn a_renamed_vm_is_told_by_both_names() {
    let daemon = Daemon::start();
    let said = run(daemon.home(), &["vm", "rename", "calm-otter", "box"]);
    assert_eq!(said.status, Some(0));
    assert!(
        said.stderr.ends_with("VM `calm-otter` is now `box`\n"),
        "{}",
        said.stderr
    );
    assert_eq!(daemon.deed(), asked(r#"PATCH calm-otter {"name":"box"}"#));
    let said = run(daemon.home(), &["vm", "rename", "calm-oter", "box"]);
    assert_eq!(
        said.stderr,
        "error: no VM `calm-oter`\nhint: did you mean `calm-otter`?\n"
    );
}

#[test]
fn prune_deletes_what_does_not_run_and_is_meant() {
    let daemon = Daemon::start();
    let said = run(daemon.home(), &["vm", "prune"]);
    assert_eq!(
        (said.status, said.stderr.as_str()),
        (Some(0), "there is nothing to prune\n")
    );
    daemon.enter("calm-otter", VmState::Stopped);
    daemon.enter("devbox", VmState::Failed);
    let said = run(daemon.home(), &["vm", "prune", "--dry-run", "--json"]);
    let vms: Vec<banger_proto::api::Vm> = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(vms.len(), 2);
    let said = run(daemon.home(), &["vm", "prune"]);
    assert_eq!(said.status, Some(1));
    insta::assert_snapshot!(said.stderr, @r"
    error: there is no terminal to ask on whether 2 VMs may be deleted
    hint: `--yes` deletes without asking, `--dry-run` lists what would go
    ");
    let words = ["vm", "prune", "-q", "--yes", "--filter", "state=failed"];
    assert_eq!(run(daemon.home(), &words).status, Some(0));
    assert_eq!(daemon.deed(), Deed::Deleted("devbox".into()));
}

#[test]
fn on_a_terminal_prune_asks() {
    let daemon = Daemon::start();
    daemon.enter("calm-otter", VmState::Stopped);
    let prune = || {
        let mut command = banger(daemon.home(), &["vm", "prune"]);
        command.env("TERM", "vt220");
        let mut terminal = Terminal::of(command);
        terminal.expect("calm-otter");
        terminal.expect("delete 1 VM with all that is on disk? [y/N] ");
        terminal
    };
    let mut terminal = prune();
    terminal.type_in(b"\n");
    terminal.expect("nothing is deleted");
    assert_eq!(terminal.running.status(), Some(0));
    let mut terminal = prune();
    terminal.type_in(b"y\n");
    assert_eq!(daemon.deed(), Deed::Deleted("calm-otter".into()));
    terminal.expect("VM `calm-otter` is deleted");
    assert_eq!(terminal.running.status(), Some(0));
    // One of the same name that came while the user thought is not meant.
    let mut terminal = prune();
    daemon.change("calm-otter", |vm| vm.id = banger_proto::id::VmId::new());
    terminal.type_in(b"y\n");
    terminal.expect("VM `calm-otter` is deleted already");
    assert_eq!(terminal.running.status(), Some(1));
}

#[test]
fn filters_choose_what_is_listed() {
    let daemon = Daemon::start();
    daemon.change("devbox", |vm| {
        vm.labels.insert("team".into(), "a".into());
    });
    let list = |filters: &[&str]| {
        let words = [&["vm", "list", "--quiet"], filters].concat();
        run(daemon.home(), &words).stdout().to_owned()
    };
    assert_eq!(list(&["--filter", "label=team"]), "devbox\n");
    assert_eq!(
        list(&["--filter", "name=calm-*", "--filter", "state=running"]),
        "calm-otter\n"
    );
    assert_eq!(list(&["--filter", "state=stopped"]), "");
}

#[test]
fn create_without_waiting_names_the_operation() {
    let daemon = Daemon::start();
    let said = run(
        daemon.home(),
        &["vm", "create", "--name", "slow", "--no-wait", "--ttl", "2h"],
    );
    let (id, name) = said.stdout().trim().split_once(' ').unwrap();
    assert_eq!((said.status, name, id.len()), (Some(0), "slow", 32));
    assert_eq!(said.stderr, "");
    let said = run(daemon.home(), &["vm", "create", "--no-wait", "--json"]);
    let operation: banger_proto::api::Operation = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(operation.vm_name.unwrap().as_str(), "new-vm");
}

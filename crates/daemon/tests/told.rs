//! What is told of what nobody asked for, and of what is asked again.

#![expect(clippy::unwrap_used, reason = "these are tests")]

mod support;

use banger_proto::agent::ExecRequest;
use banger_proto::api::{
    CreateVm, Happened, LogKind, OperationEvent, OperationKind, OperationState, SetVm, VmState,
};
use banger_proto::error::ErrorKind;
use banger_proto::frame::Frame;
use support::{Daemon, Home, refusal, small, soon, succeeded};
use tokio::io::AsyncWriteExt as _;

/// The reason with which a VM was deleted; waits until it is.
async fn deleted_because(daemon: &Daemon) -> Option<String> {
    let mut events = daemon.client.daemon_events(true, None).await.unwrap();
    soon(async {
        loop {
            if let Happened::VmDeleted { reason, .. } = events.next().await.unwrap().unwrap().what {
                return reason;
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_vm_whose_time_is_over_says_so_when_it_goes() {
    let home = Home::new();
    let daemon = home.start().await;
    // Its time begins when all of it is there, however long that took.
    let created = CreateVm {
        no_start: true,
        ..small("a")
    };
    let created = daemon.begin(created).await.unwrap();
    succeeded(&daemon.end(&created.id).await);
    let short = SetVm {
        ttl_s: Some(1),
        ..SetVm::default()
    };
    let set = daemon.client.set_vm("a", &short).await.unwrap();
    succeeded(&daemon.end(&set.id).await);
    let reason = deleted_because(&daemon).await;
    assert_eq!(reason.as_deref(), Some("its time to live is over"));
    let operations = daemon.client.operations().await.unwrap();
    let delete = operations
        .iter()
        .find(|operation| operation.kind == OperationKind::DeleteVm);
    assert_eq!(delete.unwrap().reason, reason);

    // One that somebody deletes needs no reason.
    daemon.run("b").await;
    let events = daemon.client.daemon_events(true, None).await;
    let mut events = events.unwrap();
    succeeded(&daemon.delete_vm("b").await);
    let reason = soon(async {
        loop {
            if let Happened::VmDeleted {
                vm_name, reason, ..
            } = events.next().await.unwrap().unwrap().what
                && vm_name.as_str() == "b"
            {
                return reason;
            }
        }
    })
    .await;
    assert_eq!(reason, None);
}

#[tokio::test]
async fn a_create_that_its_time_to_live_ends_says_so() {
    let home = Home::new();
    let daemon = home.start_with_fault("hang:agent:half").await;
    let short = CreateVm {
        ttl_s: Some(1),
        ..small("a")
    };
    let created = daemon.begin(short).await.unwrap();
    let created = daemon.end(&created.id).await;
    assert_eq!(created.state, OperationState::Cancelled);
    let error = created.error.unwrap();
    assert!(
        error.to_string().contains("its time to live is over"),
        "{error}"
    );
}

#[tokio::test]
async fn a_create_that_is_repeated_after_the_daemons_death_finds_the_same_vm() {
    let home = Home::new();
    let daemon = home.start().await;
    let request = CreateVm {
        name: None,
        ..small("unused")
    };
    let first = daemon.client.create_vm(&request, Some("k")).await.unwrap();
    succeeded(&daemon.end(&first.id).await);
    let vm = first.vm.unwrap();
    daemon.kill().await;

    let daemon = home.start().await;
    let again = daemon.client.create_vm(&request, Some("k")).await.unwrap();
    assert_eq!(again.vm.as_ref(), Some(&vm));
    succeeded(&daemon.end(&again.id).await);
    assert_eq!(daemon.client.vms().await.unwrap().len(), 1);
    let refused = refusal(daemon.client.create_vm(&small("b"), Some("k")).await);
    assert_eq!(refused.kind, ErrorKind::Conflict);
    let other = daemon.client.create_vm(&request, Some("l")).await.unwrap();
    succeeded(&daemon.end(&other.id).await);
    assert_eq!(daemon.client.vms().await.unwrap().len(), 2);

    // A key goes with its VM.
    succeeded(&daemon.delete_vm(vm.as_str()).await);
    daemon.stop().await;
    let daemon = home.start().await;
    let anew = daemon.client.create_vm(&request, Some("k")).await.unwrap();
    succeeded(&daemon.end(&anew.id).await);
    assert_ne!(anew.vm, Some(vm));
    for vm in daemon.client.vms().await.unwrap() {
        succeeded(&daemon.delete_vm(vm.id.as_str()).await);
    }
    home.assert_clean();
}

#[tokio::test]
async fn a_create_that_the_daemons_death_cut_short_begins_anew_when_it_is_repeated() {
    let home = Home::new();
    let daemon = home.start_with_fault("hang:agent:half").await;
    let first = daemon.client.create_vm(&small("a"), Some("k")).await;
    let first = first.unwrap();
    daemon.reach(&first.id, "agent").await;
    daemon.kill().await;
    let daemon = home.start().await;
    let again = daemon.client.create_vm(&small("a"), Some("k")).await;
    let again = again.unwrap();
    succeeded(&daemon.end(&again.id).await);
    assert_ne!(again.vm, first.vm);
    succeeded(&daemon.delete_vm("a").await);
    home.assert_clean();
}

#[tokio::test]
async fn a_delete_by_force_is_tried_until_nothing_is_left() {
    let home = Home::new();
    // Written: the VM's row, that it runs, that it is to go, that it is being deleted; and the
    // fifth time the row is to go.
    let daemon = home.start_with_fault("fail:row:before:5").await;
    daemon.run("a").await;
    let delete = daemon.client.delete_vm_until_gone("a").await.unwrap();
    let delete = daemon.end(&delete.id).await;
    assert_eq!(delete.state, OperationState::Failed);
    let stuck = daemon.client.vm("a").await.unwrap();
    assert_eq!(stuck.state, VmState::Failed);
    assert!(stuck.expires_at.is_some());
    daemon.stop().await;
    // The next daemon needs no telling.
    let daemon = home.start().await;
    assert!(deleted_because(&daemon).await.is_some());
    home.assert_clean();

    daemon.run("b").await;
    let delete = daemon.client.delete_vm_until_gone("b").await.unwrap();
    succeeded(&daemon.end(&delete.id).await);
    home.assert_clean();
}

#[tokio::test]
async fn a_daemon_that_is_at_work_stops_only_when_it_is_told_twice() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    let request = ExecRequest {
        command: vec!["cat".to_owned()],
        stdin: true,
        ..ExecRequest::default()
    };
    let mut stream = daemon.client.exec("a").await.unwrap();
    let start = Frame::Start(Box::new(request)).to_bytes();
    stream.write_all(&start).await.unwrap();
    let status = daemon.client.daemon_status().await.unwrap();
    assert_eq!((status.operations, status.streams), (0, 1));
    let refused = refusal(daemon.client.stop_idle_daemon().await);
    assert_eq!(refused.kind, ErrorKind::Conflict);
    insta::assert_snapshot!(format!(
        "{refused}\nhint: {}",
        refused.hint.as_deref().unwrap()
    ));
    // What has only just ended is no work any more.
    drop(stream);
    daemon.client.stop_idle_daemon().await.unwrap();
    assert!(daemon.ended().await.success());
}

#[tokio::test]
async fn the_boot_log_is_followed_from_start_to_start() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    let log = daemon.client.logs_tail("a", LogKind::Boot, true, 1).await;
    let mut log = log.unwrap();
    let first = soon(log.next()).await.unwrap().unwrap();
    let stage = |bytes: &[u8]| -> String {
        let line = str::from_utf8(bytes).unwrap();
        line.split_whitespace().nth(2).unwrap().to_owned()
    };
    assert_eq!(stage(&first), "agent");
    succeeded(&daemon.stop_vm("a").await);
    let start = daemon.client.start_vm("a").await.unwrap();
    let mut stages = Vec::new();
    while stages.last().is_none_or(|last| last != "agent") {
        let bytes = soon(log.next()).await.unwrap().unwrap();
        stages.extend(bytes.split_inclusive(|byte| *byte == b'\n').map(stage));
    }
    let mut events = daemon.client.events(&start.id).await.unwrap();
    let mut told = Vec::new();
    while let Ok(event) = events.next().await {
        match event {
            OperationEvent::StageDone(time) => told.push(time.stage),
            OperationEvent::Done(_) => break,
            _ => {}
        }
    }
    assert_eq!(stages, told);
    // It ends with the VM.
    succeeded(&daemon.delete_vm("a").await);
    assert_eq!(soon(log.next()).await.unwrap(), None);
    let refused = daemon.client.logs("a", LogKind::Agent, true).await;
    assert_eq!(refusal(refused.map(drop)).kind, ErrorKind::NotFound);
}

#[tokio::test]
async fn the_agents_log_cannot_be_followed_and_says_so() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    let refused = daemon.client.logs("a", LogKind::Agent, true).await;
    let refused = refusal(refused.map(drop));
    insta::assert_snapshot!(format!(
        "{refused}\nhint: {}",
        refused.hint.as_deref().unwrap()
    ));
}

//! Starts that fail, are called off, or lose their daemon, at every stage: the host is clean
//! afterwards.

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use banger_client::ClientError;
use banger_proto::api::{CreateVm, OperationState, VmState};
use banger_proto::error::ErrorKind;
use support::{Daemon, Home, refusal, small, soon, succeeded};

const STAGES: [&str; 6] = ["image", "directory", "disks", "network", "engine", "agent"];

fn points() -> impl Iterator<Item = String> {
    STAGES
        .into_iter()
        .flat_map(|stage| ["before", "half"].map(|moment| format!("{stage}:{moment}")))
}

async fn assert_nothing_left(home: &Home, daemon: &Daemon) {
    let vms = daemon.client.vms().await.expect("the daemon answers");
    assert!(vms.is_empty(), "{vms:?}");
    home.assert_clean();
}

#[tokio::test]
async fn a_failure_at_any_stage_leaves_a_clean_host() {
    let home = Home::new();
    let mut words = String::new();
    for point in points() {
        let daemon = home.start_with_fault(&format!("fail:{point}")).await;
        let operation = daemon.create("a").await;
        assert_eq!(operation.state, OperationState::Failed, "{point}");
        words.push_str(&format!("{point:<16} {}\n", operation.error.unwrap()));
        assert_nothing_left(&home, &daemon).await;
        daemon.stop().await;
    }
    insta::assert_snapshot!(words);
}

#[tokio::test]
async fn a_create_that_is_called_off_at_any_stage_leaves_a_clean_host() {
    let home = Home::new();
    for point in points() {
        let daemon = home.start_with_fault(&format!("hang:{point}")).await;
        let stage = point.split(':').next().unwrap();
        let operation = daemon.begin(small("a")).await.unwrap();
        daemon.reach(&operation.id, stage).await;
        daemon.client.cancel_operation(&operation.id).await.unwrap();
        let operation = daemon.end(&operation.id).await;
        assert_eq!(operation.state, OperationState::Cancelled, "{point}");
        assert_eq!(
            operation.error.unwrap().kind,
            ErrorKind::Cancelled,
            "{point}"
        );
        assert_nothing_left(&home, &daemon).await;
        daemon.stop().await;
    }
}

#[tokio::test]
async fn a_vm_that_hangs_in_its_create_is_deleted_or_stopped_at_once() {
    let home = Home::new();
    for point in points() {
        let daemon = home.start_with_fault(&format!("hang:{point}")).await;
        let stage = point.split(':').next().unwrap();
        for stop in [false, true] {
            let created = daemon.begin(small("a")).await.unwrap();
            daemon.reach(&created.id, stage).await;
            match stop {
                // There is no VM whose disks could stay, as a stop promises.
                true => {
                    let error = daemon.stop_vm("a").await.error.unwrap();
                    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
                }
                false => succeeded(&daemon.delete_vm("a").await),
            }
            let created = daemon.end(&created.id).await;
            assert_eq!(created.error.unwrap().kind, ErrorKind::Cancelled, "{point}");
            assert_nothing_left(&home, &daemon).await;
        }
        daemon.stop().await;
    }
}

#[tokio::test]
async fn a_lease_that_ends_during_the_create_calls_it_off() {
    let home = Home::new();
    let daemon = home.start_with_fault("hang:agent:half").await;
    let lease = daemon.client.lease().await.unwrap();
    let leased = CreateVm {
        lease: Some(lease.id().clone()),
        ..small("a")
    };
    let operation = daemon.begin(leased).await.unwrap();
    daemon.reach(&operation.id, "agent").await;
    drop(lease);
    assert_eq!(
        daemon.end(&operation.id).await.error.unwrap().kind,
        ErrorKind::Cancelled
    );
    soon(async {
        while !daemon.client.vms().await.unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    home.assert_clean();
}

#[tokio::test]
async fn a_daemon_that_is_killed_at_any_stage_of_a_create_leaves_nothing_to_the_next_one() {
    let home = Home::new();
    for point in points() {
        let daemon = home.start_with_fault(&format!("kill:{point}")).await;
        // The daemon may die before it has answered.
        match daemon.begin(small("a")).await {
            Ok(_) | Err(ClientError::Transport { .. }) => {}
            Err(error) => panic!("{point}: {error}"),
        }
        assert!(!daemon.ended().await.success());
        let daemon = home.start().await;
        assert_nothing_left(&home, &daemon).await;
        daemon.stop().await;
    }
}

#[tokio::test]
async fn a_failed_start_of_an_existing_vm_keeps_its_disks_and_says_why() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.create_only("a").await;
    daemon.stop().await;
    for point in points() {
        let daemon = home.start_with_fault(&format!("fail:{point}")).await;
        let operation = daemon.start_vm("a").await;
        assert_eq!(operation.state, OperationState::Failed, "{point}");
        let vm = daemon.client.vm("a").await.unwrap();
        assert_eq!(vm.state, VmState::Failed);
        let failure = vm.failure.unwrap().to_string();
        assert!(
            failure.starts_with("could not start VM `a`: stage "),
            "{failure}"
        );
        // Those of this start, and not of one before.
        let stage = point.split(':').next().unwrap();
        let failed: Vec<_> = vm.stages.iter().filter(|time| time.failed).collect();
        assert!(
            matches!(failed[..], [time] if time.stage == stage),
            "{point}: {:?}",
            vm.stages
        );
        assert_eq!(home.leftovers().len(), 1, "its directory, after {point}");
        daemon.stop().await;
    }
    let daemon = home.start().await;
    succeeded(&daemon.start_vm("a").await);
    assert_eq!(daemon.exec("a", &["true"]).await.code(), 0);
}

#[tokio::test]
async fn a_start_is_stopped_at_any_stage_and_the_vm_can_start_again() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.create_only("a").await;
    daemon.stop().await;
    for point in points() {
        let daemon = home.start_with_fault(&format!("hang:{point}")).await;
        let started = daemon.client.start_vm("a").await.unwrap();
        daemon
            .reach(&started.id, point.split(':').next().unwrap())
            .await;
        let again = refusal(daemon.client.start_vm("a").await);
        assert!(again.to_string().contains("already starting"), "{again}");
        let unreachable = refusal(daemon.client.exec("a").await);
        assert!(
            unreachable.to_string().contains("still starting"),
            "{unreachable}"
        );
        succeeded(&daemon.stop_vm("a").await);
        assert_eq!(
            daemon.end(&started.id).await.error.unwrap().kind,
            ErrorKind::Cancelled
        );
        assert_eq!(daemon.client.vm("a").await.unwrap().state, VmState::Stopped);
        assert_eq!(home.leftovers().len(), 1, "its directory, after {point}");
        daemon.stop().await;
    }
    let daemon = home.start().await;
    succeeded(&daemon.start_vm("a").await);
}

#[tokio::test]
async fn a_daemon_that_ends_calls_off_what_is_starting() {
    let home = Home::new();
    let daemon = home.start_with_fault("hang:agent:half").await;
    let operation = daemon.begin(small("a")).await.unwrap();
    daemon.reach(&operation.id, "agent").await;
    daemon.stop().await;
    home.assert_clean();
    let daemon = home.start().await;
    assert!(daemon.client.vms().await.unwrap().is_empty());
}

#[tokio::test]
async fn an_engine_that_does_not_come_up_is_left_at_once_and_leaves_nothing() {
    let home = Home::new();
    let agent = home.path().join("agent");
    std::fs::write(&agent, "#!/bin/sh\nexec sleep 600\n").unwrap();
    std::fs::set_permissions(&agent, std::fs::Permissions::from_mode(0o700)).unwrap();
    let daemon = home
        .start_with(&[("BANGER_AGENT_BIN", agent.to_str().unwrap())])
        .await;
    for stop in [false, true] {
        let created = daemon.begin(small("a")).await.unwrap();
        daemon.reach(&created.id, "engine").await;
        while !home
            .leftovers()
            .iter()
            .any(|left| left.starts_with("process"))
        {
            tokio::task::yield_now().await;
        }
        let began = Instant::now();
        match stop {
            true => drop(daemon.stop_vm("a").await),
            false => daemon.client.cancel_operation(&created.id).await.unwrap(),
        }
        let created = daemon.end(&created.id).await;
        assert_eq!(created.error.unwrap().kind, ErrorKind::Cancelled);
        // The engine's own limit is 20 s.
        assert!(began.elapsed() < Duration::from_secs(10), "{began:?}");
        assert_nothing_left(&home, &daemon).await;
    }
}

#[tokio::test]
async fn a_vm_whose_start_could_not_be_written_down_outlives_the_daemon() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.create_only("a").await;
    daemon.stop().await;
    // The first row says that it starts, the second one that it runs.
    let daemon = home.start_with_fault("fail:row:before:2").await;
    succeeded(&daemon.start_vm("a").await);
    let log = std::fs::read_to_string(home.paths().daemon_log()).unwrap();
    assert!(log.contains("could not write the phase down"), "{log}");
    let before = daemon.client.vm("a").await.unwrap();
    assert_eq!(before.state, VmState::Running);
    daemon.stop().await;
    let daemon = home.start().await;
    let after = daemon.client.vm("a").await.unwrap();
    assert_eq!((after.state, after.pid), (VmState::Running, before.pid));
}

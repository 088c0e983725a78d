//! What a client sees of VMs that come, run, stop and go.

mod support;

use std::time::Duration;

use banger_proto::api::{CreateVm, LogKind, OperationEvent, OperationState, VmState};
use banger_proto::error::ErrorKind;
use banger_proto::frame::Frame;
use bytes::Bytes;
use support::{Home, refusal, small, soon, succeeded};
use tokio::io::AsyncWriteExt as _;

#[tokio::test]
async fn a_vm_is_created_used_stopped_started_and_deleted() {
    let home = Home::new();
    let daemon = home.start().await;
    let created = daemon.begin(small("calm-otter")).await.unwrap();
    assert_eq!(created.vm_name.as_ref().unwrap().as_str(), "calm-otter");
    let created = daemon.end(&created.id).await;
    succeeded(&created);
    let mut stages: Vec<&str> = created
        .stages
        .iter()
        .map(|time| time.stage.as_str())
        .collect();
    // Disks and network go side by side.
    stages[2..4].sort_unstable();
    assert_eq!(
        stages,
        ["image", "directory", "disks", "network", "engine", "agent"]
    );

    let vm = daemon.client.vm("calm-otter").await.unwrap();
    assert_eq!(vm.state, VmState::Running);
    assert_eq!(Some(&vm.id), created.vm.as_ref());
    assert!(vm.pid.is_some() && vm.started_at.is_some());
    assert_eq!(vm.stages.len(), 6);
    assert_eq!(
        daemon.client.vm(&vm.id.as_str()[..8]).await.unwrap().id,
        vm.id
    );

    let output = daemon
        .exec(
            "calm-otter",
            &["sh", "-c", "echo out; echo err >&2; exit 7"],
        )
        .await;
    assert_eq!(output.code(), 7);
    assert_eq!(
        (&output.stdout[..], &output.stderr[..]),
        (&b"out\n"[..], &b"err\n"[..])
    );

    succeeded(&daemon.stop_vm("calm-otter").await);
    let vm = daemon.client.vm("calm-otter").await.unwrap();
    assert_eq!((vm.state, vm.pid), (VmState::Stopped, None));
    let error = refusal(daemon.client.exec("calm-otter").await);
    assert_eq!(error.kind, ErrorKind::Conflict);
    assert_eq!(
        error.hint.as_deref(),
        Some("start it first: `banger vm start calm-otter`")
    );

    succeeded(&daemon.start_vm("calm-otter").await);
    assert_eq!(daemon.exec("calm-otter", &["true"]).await.code(), 0);
    let target = daemon.client.ssh_target("calm-otter").await.unwrap();
    let pinned = std::fs::read_to_string(&target.known_hosts_file).unwrap();
    assert!(
        pinned.starts_with("calm-otter,calm-otter.vm ssh-ed25519 "),
        "{pinned}"
    );
    assert!(std::path::Path::new(&target.identity_file).is_file());

    succeeded(&daemon.delete_vm("calm-otter").await);
    assert!(daemon.client.vms().await.unwrap().is_empty());
    home.assert_clean();
    daemon.stop().await;
    assert!(!home.paths().socket().exists());
}

#[tokio::test]
async fn a_vm_that_is_only_created_has_disks_and_runs_nothing() {
    let home = Home::new();
    let daemon = home.start().await;
    let only = CreateVm {
        no_start: true,
        ..small("a")
    };
    let operation = daemon.begin(only).await.unwrap();
    succeeded(&daemon.end(&operation.id).await);
    let vm = daemon.client.vm("a").await.unwrap();
    assert_eq!(vm.state, VmState::Created);
    assert_eq!(home.leftovers().len(), 1, "its directory");
    succeeded(&daemon.start_vm("a").await);
    succeeded(&daemon.delete_vm("a").await);
    home.assert_clean();
}

#[tokio::test]
async fn a_stream_is_binary_clean_and_its_two_directions_end_apart() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    let input: Vec<u8> = (0..8_000_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let input = Bytes::from(input);
    let output = daemon
        .exec_with_input("a", &["cat"], Some(input.clone()))
        .await;
    assert_eq!(output.code(), 0);
    assert!(
        output.stdout == input,
        "{} of {} bytes",
        output.stdout.len(),
        input.len()
    );
    // The output comes after the end of the input.
    let output = daemon
        .exec_with_input("a", &["wc", "-c"], Some(input))
        .await;
    assert_eq!(output.text().trim(), "8000000");
}

#[tokio::test]
async fn a_command_whose_client_is_gone_is_hung_up() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    let mark = home.path().join("ended");
    let script = format!(
        "trap 'touch {}; exit' HUP; echo ready; while :; do sleep 0.1; done",
        mark.display()
    );
    let request = banger_proto::agent::ExecRequest {
        command: vec!["sh".to_owned(), "-c".to_owned(), script],
        ..Default::default()
    };
    let mut stream = daemon.client.exec("a").await.unwrap();
    stream
        .write_all(&Frame::Start(Box::new(request)).to_bytes())
        .await
        .unwrap();
    let mut seen = Vec::new();
    soon(async {
        while !seen.windows(5).any(|window| window == b"ready") {
            tokio::io::AsyncReadExt::read_buf(&mut stream, &mut seen)
                .await
                .unwrap();
        }
    })
    .await;
    drop(stream);
    soon(appears(&mark)).await;
}

/// Waits for a file that another process makes.
async fn appears(path: &std::path::Path) {
    while !path.exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_before_anything_is_made() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    let name = |text: &str| Some(text.parse().unwrap());
    for (vm, kind, words) in [
        (
            CreateVm {
                name: name("a"),
                ..small("x")
            },
            ErrorKind::Conflict,
            "already a VM of this name",
        ),
        (
            CreateVm {
                vcpu: Some(0),
                ..small("x")
            },
            ErrorKind::Invalid,
            "0 CPUs",
        ),
        (
            CreateVm {
                engine: Some(banger_proto::api::EngineKind::Firecracker),
                ..small("x")
            },
            ErrorKind::Precondition,
            "Firecracker is not usable",
        ),
        (
            CreateVm {
                lease: Some(banger_proto::id::LeaseId::new()),
                ..small("x")
            },
            ErrorKind::Conflict,
            "lease has ended",
        ),
    ] {
        let error = refusal(daemon.begin(vm).await);
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(error.request_id.is_some());
    }
    for request in [
        refusal(daemon.client.vm("nobody").await),
        refusal(daemon.client.stop_vm("nobody").await),
        refusal(
            daemon
                .client
                .operation(&banger_proto::id::OperationId::new())
                .await,
        ),
    ] {
        assert_eq!(request.kind, ErrorKind::NotFound, "{request}");
        assert!(request.hint.is_some(), "{request}");
    }
    let error = refusal(daemon.client.start_vm("a").await);
    assert_eq!(
        error.to_string(),
        "could not start VM `a`: it is already running"
    );
    assert_eq!(daemon.client.vms().await.unwrap().len(), 1);
}

#[tokio::test]
async fn vms_are_created_side_by_side_and_share_nothing() {
    let home = Home::new();
    let daemon = home.start().await;
    let names = ["a", "b", "c", "d", "e", "f"];
    let created = futures_util::future::join_all(names.map(|name| daemon.create(name))).await;
    created.iter().for_each(|operation| succeeded(operation));
    let mut sockets: Vec<String> = home.leftovers();
    sockets.retain(|path| path.contains("/run/vms/"));
    assert_eq!(sockets.len(), names.len());
    for name in names {
        assert_eq!(daemon.exec(name, &["true"]).await.code(), 0);
    }
    let deleted = futures_util::future::join_all(names.map(|name| daemon.delete_vm(name))).await;
    deleted.iter().for_each(|operation| succeeded(operation));
    home.assert_clean();
}

#[tokio::test]
async fn a_vm_goes_with_the_lease_it_hangs_on() {
    let home = Home::new();
    let daemon = home.start().await;
    let lease = daemon.client.lease().await.unwrap();
    let leased = CreateVm {
        lease: Some(lease.id().clone()),
        ..small("a")
    };
    let operation = daemon.begin(leased).await.unwrap();
    succeeded(&daemon.end(&operation.id).await);
    daemon.run("stays").await;
    assert!(daemon.client.vm("a").await.unwrap().ephemeral);
    let mut log = daemon
        .client
        .logs("a", LogKind::Engine, true)
        .await
        .unwrap();
    drop(lease);
    // A followed log ends when its VM is gone.
    soon(async { while log.next().await.unwrap().is_some() {} }).await;
    soon(async {
        while daemon.client.vm("a").await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    succeeded(&daemon.delete_vm("stays").await);
    home.assert_clean();
}

#[tokio::test]
async fn a_repeated_create_is_the_same_create() {
    let home = Home::new();
    let daemon = home.start().await;
    let first = daemon
        .client
        .create_vm(&small("a"), Some("key"))
        .await
        .unwrap();
    let second = daemon
        .client
        .create_vm(&small("a"), Some("key"))
        .await
        .unwrap();
    assert_eq!(first.id, second.id);
    let other = refusal(daemon.client.create_vm(&small("b"), Some("key")).await);
    assert_eq!(other.kind, ErrorKind::Conflict);
    succeeded(&daemon.end(&first.id).await);
    assert_eq!(daemon.client.vms().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_follower_who_comes_late_sees_every_stage() {
    let home = Home::new();
    let daemon = home.start().await;
    let operation = daemon.create("a").await;
    let mut events = daemon.client.events(&operation.id).await.unwrap();
    let (mut begun, mut ended) = (0, 0);
    let done = loop {
        match events.next().await.unwrap() {
            OperationEvent::Stage { .. } => begun += 1,
            OperationEvent::StageDone(_) => ended += 1,
            OperationEvent::Progress(_) | OperationEvent::Output { .. } => {}
            OperationEvent::Done(operation) => break operation,
        }
    };
    assert_eq!(
        (begun, ended, done.state),
        (6, 6, OperationState::Succeeded)
    );
}

#[tokio::test]
async fn a_machine_that_dies_leaves_a_failed_vm_that_starts_again() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    let pid = daemon.client.vm("a").await.unwrap().pid.unwrap();
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let vm = daemon.comes_to("a", VmState::Failed).await;
    let failure = vm.failure.unwrap().to_string();
    assert!(
        failure.contains("ended unexpectedly") && failure.contains("signal 9"),
        "{failure}"
    );
    assert_eq!(home.leftovers().len(), 1, "its directory");
    succeeded(&daemon.start_vm("a").await);
    assert_eq!(daemon.client.vm("a").await.unwrap().failure, None);
}

//! Pausing, resuming, killing and restarting VMs, also when several are asked for at once.

#![expect(clippy::unwrap_used, reason = "these are tests")]

mod support;

use banger_proto::agent::ExecRequest;
use banger_proto::api::{KillVm, Operation, OperationKind, OperationState, VmState};
use banger_proto::error::ErrorKind;
use banger_proto::frame::Frame;
use support::{Daemon, Home, refusal, small, soon, succeeded};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn by(signal: i32) -> KillVm {
    KillVm {
        signal: Some(signal),
    }
}

impl Daemon {
    async fn pause(&self, vm: &str) -> Operation {
        let operation = self.client.pause_vm(vm).await.unwrap();
        self.end(&operation.id).await
    }

    async fn resume(&self, vm: &str) -> Operation {
        let operation = self.client.resume_vm(vm).await.unwrap();
        self.end(&operation.id).await
    }

    async fn kill_vm(&self, vm: &str, kill: &KillVm) -> Operation {
        let operation = self.client.kill_vm(vm, kill).await.unwrap();
        self.end(&operation.id).await
    }

    async fn restart(&self, vm: &str) -> Operation {
        let operation = self.client.restart_vm(vm).await.unwrap();
        self.end(&operation.id).await
    }

    async fn state(&self, vm: &str) -> VmState {
        self.client.vm(vm).await.unwrap().state
    }
}

#[tokio::test]
async fn a_paused_vm_stands_still_and_goes_on_where_it_was() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    let pid = daemon.client.vm("a").await.unwrap().pid;
    let mut stream = daemon.client.exec("a").await.unwrap();
    let request = ExecRequest {
        command: vec!["cat".to_owned()],
        stdin: true,
        ..ExecRequest::default()
    };
    let start = Frame::Start(Box::new(request)).to_bytes();
    stream.write_all(&start).await.unwrap();

    let paused = daemon.pause("a").await;
    succeeded(&paused);
    assert_eq!(paused.kind, OperationKind::PauseVm);
    let vm = daemon.client.vm("a").await.unwrap();
    assert_eq!((vm.state, vm.pid), (VmState::Paused, pid));
    let error = refusal(daemon.client.exec("a").await);
    assert_eq!(error.kind, ErrorKind::Conflict);
    assert_eq!(error.to_string(), "could not reach VM `a`: it is paused");
    assert_eq!(
        error.hint.as_deref(),
        Some("let it go on: `banger vm resume a`")
    );
    let again = refusal(daemon.client.pause_vm("a").await);
    assert_eq!(
        again.to_string(),
        "could not pause VM `a`: it is already paused"
    );

    let log = home.paths().vms().join(vm.id.as_str()).join("engine.log");
    let clock_is_set = || std::fs::read_to_string(&log).unwrap().contains("/v1/clock");
    assert!(!clock_is_set());
    succeeded(&daemon.resume("a").await);
    assert!(clock_is_set());
    // The agent's log names the request that began it.
    let told = std::fs::read_to_string(&log).unwrap();
    let told = told.lines().find(|line| line.contains("/v1/clock"));
    let told = told.unwrap();
    assert!(
        told.contains("id=\"") && !told.contains("id=\"-\""),
        "{told}"
    );
    assert_eq!(daemon.state("a").await, VmState::Running);
    // What ran in the guest goes on, over the same connection.
    stream
        .write_all(&Frame::Stdin(b"still here"[..].into()).to_bytes())
        .await
        .unwrap();
    let mut seen = Vec::new();
    soon(async {
        while !seen.windows(10).any(|window| window == b"still here") {
            stream.read_buf(&mut seen).await.unwrap();
        }
    })
    .await;
    let again = refusal(daemon.client.resume_vm("a").await);
    assert_eq!(
        again.to_string(),
        "could not resume VM `a`: it is not paused"
    );
}

#[tokio::test]
async fn guests_that_run_get_the_time_when_the_hosts_clock_jumps_and_others_when_they_go_on() {
    if !cfg!(feature = "faults") {
        eprintln!("skipped: only a daemon with the feature `faults` plays a jump of the clock");
        return;
    }
    let home = Home::new();
    let daemon = home.start().await;
    let mut clocks = Vec::new();
    for name in ["a", "b"] {
        daemon.run(name).await;
        let id = daemon.client.vm(name).await.unwrap().id;
        let log = home.paths().vms().join(id.as_str()).join("engine.log");
        clocks.push(move || {
            let log = std::fs::read_to_string(&log).unwrap();
            log.lines()
                .filter(|line| line.contains("/v1/clock"))
                .count()
        });
    }
    succeeded(&daemon.pause("b").await);
    let pid = rustix::process::Pid::from_raw(daemon.pid().cast_signed()).unwrap();
    for jump in 1..=2 {
        rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
        soon(async {
            while clocks[0]() < jump {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    assert_eq!(clocks[1](), 0, "it stands still");
    succeeded(&daemon.resume("b").await);
    assert_eq!(clocks[1](), 1);
}

#[tokio::test]
async fn a_paused_vm_is_stopped_in_order_restarted_killed_and_deleted() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    succeeded(&daemon.pause("a").await);
    succeeded(&daemon.stop_vm("a").await);
    assert_eq!(daemon.state("a").await, VmState::Stopped);
    // It ended by the agent's own exit and not by a signal.
    let log = std::fs::read_to_string(home.paths().daemon_log()).unwrap();
    assert!(!log.contains("its power is cut"), "{log}");

    succeeded(&daemon.start_vm("a").await);
    succeeded(&daemon.pause("a").await);
    succeeded(&daemon.restart("a").await);
    assert_eq!(daemon.exec("a", &["true"]).await.code(), 0);

    succeeded(&daemon.pause("a").await);
    succeeded(&daemon.kill_vm("a", &KillVm::default()).await);
    assert_eq!(daemon.state("a").await, VmState::Stopped);
    assert_eq!(home.leftovers().len(), 1, "its directory");

    succeeded(&daemon.start_vm("a").await);
    succeeded(&daemon.pause("a").await);
    succeeded(&daemon.delete_vm("a").await);
    home.assert_clean();
}

#[tokio::test]
async fn a_paused_vm_is_still_paused_for_the_next_daemon() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    succeeded(&daemon.pause("a").await);
    daemon.kill().await;
    let daemon = home.start().await;
    assert_eq!(daemon.state("a").await, VmState::Paused);
    succeeded(&daemon.resume("a").await);
    assert_eq!(daemon.exec("a", &["true"]).await.code(), 0);
    succeeded(&daemon.pause("a").await);
    daemon.kill().await;
    // One that was adopted while it was paused shuts down in order as well.
    let daemon = home.start().await;
    succeeded(&daemon.stop_vm("a").await);
    assert_eq!(home.leftovers().len(), 1, "its directory");
}

#[tokio::test]
async fn a_machine_that_dies_while_it_is_paused_leaves_a_failed_vm() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    succeeded(&daemon.pause("a").await);
    let pid = daemon.client.vm("a").await.unwrap().pid.unwrap();
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let vm = daemon.comes_to("a", VmState::Failed).await;
    assert!(vm.failure.is_some() && vm.pid.is_none());
}

#[tokio::test]
async fn a_killed_vm_is_stopped_with_nothing_left_and_starts_again() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    for kill in [
        KillVm::default(),
        by(libc_signal::TERM),
        by(libc_signal::USR1),
    ] {
        let killed = daemon.kill_vm("a", &kill).await;
        succeeded(&killed);
        assert_eq!(killed.kind, OperationKind::KillVm);
        let vm = daemon.client.vm("a").await.unwrap();
        assert_eq!((vm.state, vm.pid), (VmState::Stopped, None), "{kill:?}");
        assert_eq!(vm.failure, None, "it was asked for");
        assert_eq!(home.leftovers().len(), 1, "its directory");
        succeeded(&daemon.start_vm("a").await);
    }
    // A signal that does not end the engine is followed by one that does.
    let stubborn = daemon.kill_vm("a", &by(libc_signal::CONT)).await;
    succeeded(&stubborn);
    assert_eq!(daemon.state("a").await, VmState::Stopped);

    let error = refusal(daemon.client.kill_vm("a", &KillVm::default()).await);
    assert_eq!(
        error.to_string(),
        "could not kill VM `a`: it is not running"
    );
    for number in [0, -1, 9999] {
        let error = refusal(daemon.client.kill_vm("a", &by(number)).await);
        assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
        assert!(error.hint.is_some());
    }
}

/// The numbers that clients send (signal(7)).
mod libc_signal {
    pub const USR1: i32 = 10;
    pub const TERM: i32 = 15;
    pub const CONT: i32 = 18;
}

#[tokio::test]
async fn a_restart_is_one_operation_with_the_stages_of_the_start() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    let before = daemon.client.vm("a").await.unwrap();
    let restarted = daemon.restart("a").await;
    succeeded(&restarted);
    assert_eq!(restarted.kind, OperationKind::RestartVm);
    let mut stages: Vec<&str> = restarted
        .stages
        .iter()
        .map(|time| time.stage.as_str())
        .collect();
    stages[3..5].sort_unstable();
    assert_eq!(
        stages,
        [
            "stop",
            "image",
            "directory",
            "disks",
            "network",
            "engine",
            "agent"
        ]
    );
    let after = daemon.client.vm("a").await.unwrap();
    assert_eq!(after.state, VmState::Running);
    assert_ne!(after.pid, before.pid);
    assert_ne!(after.started_at, before.started_at);

    succeeded(&daemon.stop_vm("a").await);
    succeeded(&daemon.restart("a").await);
    assert_eq!(daemon.exec("a", &["true"]).await.code(), 0);
}

/// A guest that takes its time to shut down: its commands ignore what asks them to end.
async fn slow_to_stop(daemon: &Daemon, vm: &str) -> banger_client::ByteStream {
    let script = "trap '' HUP TERM INT; echo ready; while :; do sleep 0.2; done";
    let request = ExecRequest {
        command: ["sh", "-c", script].map(str::to_owned).into(),
        ..ExecRequest::default()
    };
    let mut stream = daemon.client.exec(vm).await.unwrap();
    let start = Frame::Start(Box::new(request)).to_bytes();
    stream.write_all(&start).await.unwrap();
    let mut seen = Vec::new();
    soon(async {
        while !seen.windows(5).any(|window| window == b"ready") {
            stream.read_buf(&mut seen).await.unwrap();
        }
    })
    .await;
    stream
}

fn called_off(operation: &Operation, why: &str) {
    let error = operation.error.as_ref().expect("it did not succeed");
    assert_eq!(error.kind, ErrorKind::Cancelled, "{error}");
    assert_eq!(error.causes, [why], "{error}");
}

#[tokio::test]
async fn several_requests_at_once_all_end_and_the_vm_does_what_the_last_says() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    for _ in 0..10 {
        let (client, at_once) = (&daemon.client, by(9));
        let asked = tokio::join!(
            client.pause_vm("a"),
            client.resume_vm("a"),
            client.pause_vm("a"),
            client.restart_vm("a"),
            client.pause_vm("a"),
            client.kill_vm("a", &at_once),
            client.start_vm("a"),
            client.stop_vm("a"),
            client.resume_vm("a"),
        );
        let asked = [
            asked.0, asked.1, asked.2, asked.3, asked.4, asked.5, asked.6, asked.7, asked.8,
        ];
        for operation in asked {
            match operation {
                Ok(operation) => drop(daemon.end(&operation.id).await),
                Err(error) => assert_eq!(refusal(Err::<(), _>(error)).kind, ErrorKind::Conflict),
            }
        }
        // Whatever came of it, all of it has ended, and it can be used.
        match daemon.state("a").await {
            VmState::Running => {}
            VmState::Paused => succeeded(&daemon.resume("a").await),
            VmState::Stopped => succeeded(&daemon.start_vm("a").await),
            other => panic!("{other}"),
        }
        assert_eq!(daemon.exec("a", &["true"]).await.code(), 0);
    }
    succeeded(&daemon.delete_vm("a").await);
    home.assert_clean();
}

#[tokio::test]
async fn a_stop_that_goes_on_refuses_a_pause_and_is_hurried_by_a_kill() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    let _busy = slow_to_stop(&daemon, "a").await;
    let stopping = daemon.client.stop_vm("a").await.unwrap();
    let error = refusal(daemon.client.pause_vm("a").await);
    assert_eq!(
        error.to_string(),
        "could not pause VM `a`: it is being stopped"
    );
    let error = refusal(daemon.client.restart_vm("a").await);
    assert_eq!(
        error.hint.as_deref(),
        Some("try again when it is stopped: `banger vm wait --for stopped a`")
    );
    succeeded(&daemon.kill_vm("a", &KillVm::default()).await);
    succeeded(&daemon.end(&stopping.id).await);
    assert_eq!(daemon.state("a").await, VmState::Stopped);
}

#[tokio::test]
async fn a_restart_that_is_overtaken_ends_and_what_overtook_it_happens() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    let _busy = slow_to_stop(&daemon, "a").await;
    let restarting = daemon.client.restart_vm("a").await.unwrap();
    assert_eq!(daemon.state("a").await, VmState::Stopping);
    let joined = daemon.client.restart_vm("a").await.unwrap();
    // A stop does not begin anew: it takes the one that goes on.
    let stopping = daemon.client.stop_vm("a").await.unwrap();
    for operation in [restarting, joined] {
        called_off(&daemon.end(&operation.id).await, "it is being stopped");
    }
    succeeded(&daemon.kill_vm("a", &KillVm::default()).await);
    succeeded(&daemon.end(&stopping.id).await);
    assert_eq!(daemon.state("a").await, VmState::Stopped);

    succeeded(&daemon.start_vm("a").await);
    let _busy = slow_to_stop(&daemon, "a").await;
    let restarting = daemon.client.restart_vm("a").await.unwrap();
    succeeded(&daemon.delete_vm("a").await);
    called_off(&daemon.end(&restarting.id).await, "it is being deleted");
    home.assert_clean();
}

#[tokio::test]
async fn a_start_that_hangs_is_killed_at_any_stage() {
    let home = Home::new();
    for point in ["disks:half", "engine:half", "agent:half"] {
        let daemon = home.start_with_fault(&format!("hang:{point}")).await;
        // Killing a create removes what it was to make.
        let created = daemon.begin(small("a")).await.unwrap();
        let stage = point.split(':').next().unwrap();
        daemon.reach(&created.id, stage).await;
        let killed = daemon.kill_vm("a", &KillVm::default()).await;
        assert_eq!(killed.error.unwrap().kind, ErrorKind::NotFound, "{point}");
        let created = daemon.end(&created.id).await;
        assert_eq!(created.error.unwrap().kind, ErrorKind::Cancelled, "{point}");
        home.assert_clean();
        daemon.stop().await;
    }
    let daemon = home.start().await;
    daemon.run("a").await;
    succeeded(&daemon.stop_vm("a").await);
    daemon.stop().await;
    let daemon = home.start_with_fault("hang:agent:half").await;
    let restarting = daemon.client.restart_vm("a").await.unwrap();
    daemon.reach(&restarting.id, "agent").await;
    succeeded(&daemon.kill_vm("a", &KillVm::default()).await);
    let restarting = daemon.end(&restarting.id).await;
    assert_eq!(restarting.state, OperationState::Cancelled);
    assert_eq!(daemon.state("a").await, VmState::Stopped);
    assert_eq!(home.leftovers().len(), 1, "its directory");
}

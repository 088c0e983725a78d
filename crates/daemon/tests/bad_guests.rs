//! Guests whose agent speaks rubbish or nothing: what becomes of their VMs.

#![expect(clippy::unwrap_used, reason = "these are tests")]

mod support;

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use banger_proto::api::{OperationState, VmState};
use banger_proto::error::ErrorKind;
use rustix::process::{Pid, Signal, kill_process};
use support::{Home, small, succeeded};

/// Where the agent below listens.
const SOCKET_VARIABLE: &str = "BANGER_TEST_RUBBISH";

/// Not a claim but an agent, which the tests run as a process of its own: whatever it is told,
/// it answers with rubbish.
#[test]
#[ignore = "it is a program for the other tests"]
fn an_agent_that_speaks_rubbish() {
    let listener = UnixListener::bind(std::env::var_os(SOCKET_VARIABLE).unwrap()).unwrap();
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let mut heard = [0; 4096];
        while stream.read(&mut heard).is_ok_and(|length| length > 0) {
            if stream
                .write_all(b"\xffbanger\x01 nothing of sense \x00\x01")
                .is_err()
            {
                break;
            }
        }
    }
}

/// A program that the fake engine takes for the agent.
fn rubbish_agent(home: &Home) -> PathBuf {
    let path = home.path().join("rubbish-agent");
    let own = std::env::current_exe().unwrap();
    // The engine calls it as `serve --unix SOCKET`.
    let script = format!(
        "#!/bin/sh\n{SOCKET_VARIABLE}=\"$3\" exec '{}' --ignored --exact an_agent_that_speaks_rubbish\n",
        own.display()
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

#[tokio::test]
async fn an_agent_that_speaks_rubbish_fails_the_create_in_bounded_time_and_leaves_nothing() {
    let home = Home::new();
    let agent = rubbish_agent(&home);
    let agent = agent.to_str().unwrap();
    let daemon = home.start_with(&[("BANGER_AGENT_BIN", agent)]).await;
    let begin = Instant::now();
    let created = daemon.begin(small("a")).await.unwrap();
    let created = daemon.end(&created.id).await;
    assert!(
        begin.elapsed() < Duration::from_secs(50),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(created.state, OperationState::Failed);
    insta::assert_snapshot!(created.error.unwrap());
    assert!(daemon.client.vms().await.unwrap().is_empty());
    home.assert_clean();
}

#[tokio::test]
async fn a_vm_whose_agent_is_mute_is_adopted_told_of_and_still_stopped() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    let pid = daemon.client.vm("a").await.unwrap().pid.unwrap();
    daemon.kill().await;
    let process = Pid::from_raw(pid.cast_signed()).unwrap();
    kill_process(process, Signal::STOP).unwrap();

    let daemon = home.start().await;
    let vm = daemon.client.vm("a").await.unwrap();
    assert_eq!(vm.pid, Some(pid));
    // The fake engine holds its CPUs by the same signal, so that it may be taken for paused.
    assert!(
        matches!(vm.state, VmState::Running | VmState::Paused),
        "{vm:?}"
    );
    let health = daemon.client.vm_health("a").await.unwrap();
    assert!(!health.healthy);
    let kind = health.error.unwrap().kind;
    assert!(
        matches!(
            kind,
            ErrorKind::Timeout | ErrorKind::Unavailable | ErrorKind::Conflict
        ),
        "{kind:?}"
    );
    let begin = Instant::now();
    succeeded(&daemon.stop_vm("a").await);
    assert!(
        begin.elapsed() < Duration::from_secs(50),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(daemon.client.vm("a").await.unwrap().state, VmState::Stopped);
    succeeded(&daemon.delete_vm("a").await);
    home.assert_clean();
}

#[tokio::test]
async fn the_console_of_a_guest_that_prints_without_end_stays_bounded_and_its_vm_usable() {
    const BOUND: u64 = 16 << 20;
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    let vm = daemon.client.vm("a").await.unwrap();
    let directory = home.paths().vms().join(vm.id.to_string());
    let log = directory.join("console.log");
    // As the engine has it open: it appends.
    let mut console = std::fs::File::options().append(true).open(&log).unwrap();
    let line = vec![b'y'; 1 << 20];
    for _ in 0..2 {
        for _ in 0..=BOUND >> 20 {
            console.write_all(&line).unwrap();
        }
        support::soon(async {
            while std::fs::metadata(&log).unwrap().len() > BOUND {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    let kept = std::fs::metadata(directory.join("console.log.1")).unwrap();
    assert!((1..=BOUND).contains(&kept.len()), "{}", kept.len());
    let echoed = daemon.exec("a", &["echo", "well"]).await;
    assert_eq!(echoed.text(), "well\n");
    succeeded(&daemon.delete_vm("a").await);
    home.assert_clean();
}

//! The fake engine with the real agent.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use banger_engine::{
    Access, Activity, ControlError, Engine, ExitCause, Fake, LaunchError, Mark, process,
};
use banger_proto::agent::DiskRole;
use support::{Home, look, session};

/// Longest wait for anything in here.
const LIMIT: Duration = Duration::from_secs(30);

/// The agent that `BANGER_TEST_AGENT` names, or the one that was built beside this test.
fn agent() -> Option<PathBuf> {
    let built = || {
        let test = std::env::current_exe().ok()?;
        Some(test.parent()?.parent()?.join("banger-vsock-agent"))
    };
    let path = std::env::var_os("BANGER_TEST_AGENT")
        .map(PathBuf::from)
        .or_else(built)?;
    if path.exists() {
        return Some(path);
    }
    eprintln!(
        "skipped: there is no `{}`; run `cargo build -p banger-agent`",
        path.display()
    );
    None
}

macro_rules! fake_or_skip {
    () => {
        match agent() {
            Some(agent) => Fake::new(agent),
            None => return,
        }
    };
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future)
        .await
        .expect("it happens in time")
}

#[tokio::test]
async fn a_launched_agent_listens_is_detached_and_ends_with_its_release() {
    let fake = fake_or_skip!();
    let home = Home::new();
    let machine = in_time(fake.launch(home.spec(&[]))).await.unwrap();
    in_time(machine.connect()).await.unwrap();
    let pid = machine.handle().process.pid;
    assert_eq!(session(pid), pid);
    in_time(banger_engine::release(&home.place)).await.unwrap();
    assert_eq!(
        in_time(machine.exited()).await.cause,
        ExitCause::Killed { signal: Some(9) }
    );
    home.assert_released(&fake).await;
}

#[tokio::test]
async fn the_power_button_ends_the_agent_in_order() {
    let fake = fake_or_skip!();
    let home = Home::new();
    let machine = in_time(fake.launch(home.spec(&[]))).await.unwrap();
    in_time(machine.connect()).await.unwrap();
    machine.power_button().await.unwrap();
    let exit = in_time(machine.exited()).await;
    assert_eq!(exit.cause, ExitCause::PoweredOff, "{:?}", exit.engine_log);
    assert!(matches!(machine.pause().await, Err(ControlError::Ended)));
    banger_engine::release(&home.place).await.unwrap();
    home.assert_released(&fake).await;
}

#[tokio::test]
async fn a_paused_agent_can_be_resumed_and_killed() {
    let fake = fake_or_skip!();
    let home = Home::new();
    let machine = in_time(fake.launch(home.spec(&[]))).await.unwrap();
    machine.pause().await.unwrap();
    in_time(async {
        // The signal is on its way when the order returns.
        while machine.activity().await.unwrap() != Activity::Paused {
            tokio::task::yield_now().await;
        }
    })
    .await;
    machine.resume().await.unwrap();
    in_time(async {
        while machine.activity().await.unwrap() != Activity::Running {
            tokio::task::yield_now().await;
        }
    })
    .await;
    machine.pause().await.unwrap();
    in_time(machine.kill()).await.unwrap();
    banger_engine::release(&home.place).await.unwrap();
    home.assert_released(&fake).await;
}

#[tokio::test]
async fn an_agent_is_adopted_by_its_mark() {
    let fake = fake_or_skip!();
    let home = Home::new();
    let first = in_time(fake.launch(home.spec(&[]))).await.unwrap();
    let second = banger_engine::adopt(fake.kind(), &home.place, None, &look())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(first.handle(), second.handle());
    let mark: Mark = home.place.mark();
    let found = process::marked(&home.place.instance).unwrap();
    assert!(found.iter().all(|found| found.mark == mark));
    banger_engine::release(&home.place).await.unwrap();
    in_time(second.exited()).await;
    home.assert_released(&fake).await;
}

#[tokio::test]
async fn a_vm_whose_disk_is_missing_does_not_start() {
    let fake = fake_or_skip!();
    let home = Home::new();
    let mut spec = home.spec(&[]);
    spec.disks = vec![home.disk(DiskRole::Work, Access::ReadWrite)];
    fs::remove_file(&spec.disks[0].path).unwrap();
    let error = fake.launch(spec).await.unwrap_err();
    insta::assert_snapshot!(home.shown(&error), @r"
    could not open the work disk `HOME/work`
    No such file or directory (os error 2)
    ");
    home.assert_released(&fake).await;
}

#[tokio::test]
async fn an_agent_that_does_not_start_tells_its_last_words() {
    let home = Home::new();
    let fake = Fake::new("/bin/false".into());
    let error = in_time(fake.launch(home.spec(&[]))).await.unwrap_err();
    assert!(matches!(error, LaunchError::Refused(_)));
    insta::assert_snapshot!(home.shown(&error), @r"
    the engine refused to start the machine
    `banger-vsock-agent` ended with exit status 1 and printed nothing
    ");
    let fake = Fake::new(home.path("missing"));
    let error = in_time(fake.launch(home.spec(&[]))).await.unwrap_err();
    insta::assert_snapshot!(home.shown(&error), @r"
    could not start `HOME/missing`
    No such file or directory (os error 2)
    ");
    banger_engine::release(&home.place).await.unwrap();
}

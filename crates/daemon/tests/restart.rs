//! The daemon's death and return: VMs go on, and nothing is lost or left over.

mod support;

use std::process::Stdio;

use banger_proto::api::{CreateVm, VmState};
use banger_proto::error::ErrorKind;
use support::{Home, refusal, small, soon, succeeded};

#[tokio::test]
async fn a_running_vm_outlives_a_killed_daemon_and_is_taken_over() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    let before = daemon.client.vm("a").await.unwrap();
    daemon.kill().await;
    let daemon = home.start().await;
    let after = daemon.client.vm("a").await.unwrap();
    assert_eq!(after.state, VmState::Running);
    assert_eq!((after.pid, after.id), (before.pid, before.id));
    assert_eq!(daemon.exec("a", &["true"]).await.code(), 0);
    succeeded(&daemon.delete_vm("a").await);
    home.assert_clean();
}

#[tokio::test]
async fn a_vm_without_its_handle_is_found_by_its_mark() {
    for rubbish in [
        None,
        Some("{\"engine\": "),
        Some("{\"engine\":\"fake\",\"process\":{\"pid\":1,\"start_time\":1,\"boot_id\":\"x\"}}"),
    ] {
        let home = Home::new();
        let daemon = home.start().await;
        daemon.run("a").await;
        let vm = daemon.client.vm("a").await.unwrap();
        daemon.kill().await;
        let handles = home.paths().vms().join(vm.id.as_str()).join("handles.json");
        match rubbish {
            None => std::fs::remove_file(&handles).unwrap(),
            Some(rubbish) => std::fs::write(&handles, rubbish).unwrap(),
        }
        let daemon = home.start().await;
        assert_eq!(daemon.client.vm("a").await.unwrap().pid, vm.pid);
        assert_eq!(daemon.exec("a", &["true"]).await.code(), 0);
        succeeded(&daemon.stop_vm("a").await);
        succeeded(&daemon.start_vm("a").await);
    }
}

#[tokio::test]
async fn a_daemon_that_is_stopped_leaves_vms_running() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    daemon.run("b").await;
    succeeded(&daemon.stop_vm("b").await);
    let before = daemon.client.vm("a").await.unwrap();
    daemon.stop().await;
    let daemon = home.start().await;
    assert_eq!(daemon.client.vm("a").await.unwrap().pid, before.pid);
    assert_eq!(daemon.client.vm("b").await.unwrap().state, VmState::Stopped);
    assert_eq!(daemon.exec("a", &["true"]).await.code(), 0);
    let status = daemon.client.daemon_status().await.unwrap();
    assert_eq!((status.vms, status.running), (2, 1));
}

#[tokio::test]
async fn a_vm_that_died_without_a_daemon_is_stopped_and_released() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    let vm = daemon.client.vm("a").await.unwrap();
    daemon.kill().await;
    let pid = rustix::process::Pid::from_raw(vm.pid.unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let daemon = home.start().await;
    let vm = daemon.client.vm("a").await.unwrap();
    assert_eq!((vm.state, vm.pid), (VmState::Stopped, None));
    assert_eq!(home.leftovers().len(), 1, "its directory");
    succeeded(&daemon.start_vm("a").await);
}

#[tokio::test]
async fn a_vm_whose_lease_died_with_the_daemon_is_deleted() {
    let home = Home::new();
    let daemon = home.start().await;
    let lease = daemon.client.lease().await.unwrap();
    let leased = CreateVm {
        lease: Some(lease.id().clone()),
        ..small("a")
    };
    let operation = daemon.begin(leased).await.unwrap();
    succeeded(&daemon.end(&operation.id).await);
    daemon.kill().await;
    let daemon = home.start().await;
    assert!(daemon.client.vms().await.unwrap().is_empty());
    home.assert_clean();
}

#[tokio::test]
async fn strays_are_swept_and_a_directory_without_a_row_is_left_alone() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    let vm = daemon.client.vm("a").await.unwrap();
    daemon.kill().await;
    // As if the database had been lost.
    for name in ["banger.db", "banger.db-wal", "banger.db-shm"] {
        let _ = std::fs::remove_file(home.paths().state.join(name));
    }
    let daemon = home.start().await;
    assert!(daemon.client.vms().await.unwrap().is_empty());
    let directory = home.paths().vms().join(vm.id.as_str());
    assert_eq!(home.leftovers(), [directory.display().to_string()]);
    assert!(directory.join("work.ext4").is_file());
}

#[tokio::test]
async fn a_second_daemon_says_that_there_is_one() {
    let home = Home::new();
    let _daemon = home.start().await;
    let output = soon(home.command().stderr(Stdio::null()).output())
        .await
        .unwrap();
    assert!(!output.status.success());
    let line: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(line["error"]["kind"], "conflict");
    assert!(
        line["error"]["message"]
            .as_str()
            .unwrap()
            .contains("already running")
    );
}

#[tokio::test]
async fn a_stale_socket_is_replaced() {
    let home = Home::new();
    home.start().await.kill().await;
    assert!(home.paths().socket().exists());
    let daemon = home.start().await;
    assert_eq!(daemon.client.version().await.unwrap().api, 1);
}

#[tokio::test]
async fn what_stops_a_daemon_from_starting_is_told_on_its_first_line() {
    let broken = |config: &str, database: Option<&str>| {
        let home = Home::new();
        let paths = home.paths();
        for directory in [&paths.config, &paths.state] {
            std::fs::create_dir_all(directory).unwrap();
        }
        std::fs::write(paths.config_file(), config).unwrap();
        if let Some(content) = database {
            std::fs::write(paths.database(), content).unwrap();
        }
        home
    };
    let rubbish = "no database ".repeat(1000);
    for (home, words) in [
        (broken("vmmm = \"qemu\"", None), "did you mean `vmm`"),
        (broken("", Some(&rubbish)), "is damaged"),
    ] {
        let output = soon(home.command().stderr(Stdio::null()).output())
            .await
            .unwrap();
        assert!(!output.status.success());
        let line = String::from_utf8(output.stdout).unwrap();
        assert!(
            line.starts_with("{\"error\":") && line.contains(words),
            "{line}"
        );
    }
}

#[tokio::test]
async fn doctor_and_version_need_no_daemon_and_change_nothing() {
    let home = Home::new();
    let output = soon(home.command().args(["doctor", "--json"]).output())
        .await
        .unwrap();
    let report: banger_proto::doctor::Report = serde_json::from_slice(&output.stdout).unwrap();
    let ids: Vec<&str> = report
        .checks
        .iter()
        .map(|check| check.id.as_str())
        .collect();
    for id in ["paths.state", "config", "engine.qemu", "defaults.memory"] {
        assert!(ids.contains(&id), "{ids:?}");
    }
    let failed = report.worst() == banger_proto::doctor::CheckStatus::Fail;
    assert_eq!(output.status.success(), !failed);
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
    let output = soon(home.command().args(["version", "--json"]).output())
        .await
        .unwrap();
    let version: banger_proto::api::Version = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(version.version, banger_proto::VERSION);
}

#[tokio::test]
async fn a_vm_in_the_middle_of_a_stop_is_stopped_by_the_next_daemon() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    let stopped = daemon.client.stop_vm("a").await.unwrap();
    daemon.kill().await;
    let daemon = home.start().await;
    daemon.comes_to("a", VmState::Stopped).await;
    let forgotten = refusal(daemon.client.operation(&stopped.id).await);
    assert_eq!(forgotten.kind, ErrorKind::NotFound);
    assert_eq!(home.leftovers().len(), 1, "its directory");
}

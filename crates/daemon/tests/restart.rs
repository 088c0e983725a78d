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
    // The signal may still be on its way when the daemon looks.
    let vm = daemon.comes_to("a", VmState::Stopped).await;
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
async fn a_damaged_or_lost_database_takes_no_vm_down_and_loses_none() {
    let rubbish = "no database ".repeat(1000);
    for content in [Some(rubbish.as_str()), Some(""), None] {
        let home = Home::new();
        let daemon = home.start().await;
        daemon.run("up").await;
        daemon.run("down").await;
        succeeded(&daemon.stop_vm("down").await);
        let before = daemon.client.vm("up").await.unwrap();
        daemon.kill().await;
        for name in ["banger.db", "banger.db-wal", "banger.db-shm"] {
            let _ = std::fs::remove_file(home.paths().state.join(name));
        }
        if let Some(content) = content {
            std::fs::write(home.paths().database(), content).unwrap();
        }

        let daemon = home.start().await;
        let after = daemon.client.vm("up").await.unwrap();
        assert_eq!(
            (after.state, after.pid, &after.id),
            (VmState::Running, before.pid, &before.id)
        );
        assert_eq!(
            (after.memory, after.disk_size),
            (before.memory, before.disk_size)
        );
        assert_eq!(daemon.exec("up", &["true"]).await.code(), 0);
        let down = daemon.client.vm("down").await.unwrap();
        assert_eq!(down.state, VmState::Stopped);
        let warnings = daemon
            .client
            .daemon_status()
            .await
            .unwrap()
            .warnings
            .join("\n");
        assert!(
            warnings.contains("`up`") && warnings.contains("`down`"),
            "{warnings}"
        );

        let damaged = content.is_some_and(|content| !content.is_empty());
        assert_eq!(
            warnings.contains("banger.db.damaged-"),
            damaged,
            "{warnings}"
        );
        let doctor = soon(home.command().args(["doctor", "--json"]).output())
            .await
            .unwrap();
        let report: banger_proto::doctor::Report = serde_json::from_slice(&doctor.stdout).unwrap();
        let check = report
            .checks
            .iter()
            .find(|check| check.id == "state.database");
        let check = check.unwrap();
        assert_eq!(check.fix.is_some(), damaged, "{check:?}");
        if damaged {
            let kept = check
                .detail
                .split_whitespace()
                .find(|word| word.contains(".damaged-"));
            let kept = kept.unwrap().trim_end_matches(';');
            assert_eq!(std::fs::read_to_string(kept).unwrap(), rubbish);
        }
        succeeded(&daemon.start_vm("down").await);
        for vm in ["up", "down"] {
            succeeded(&daemon.delete_vm(vm).await);
        }
        home.assert_clean();
    }
}

#[tokio::test]
async fn a_malformed_row_is_mended_by_the_vms_record_or_left_alone_with_its_machine() {
    let home = Home::new();
    let daemon = home.start().await;
    let mut pids = Vec::new();
    for name in ["a", "b"] {
        daemon.run(name).await;
        pids.push(daemon.client.vm(name).await.unwrap().pid);
    }
    let b = daemon.client.vm("b").await.unwrap().id;
    daemon.kill().await;
    let sql = |text: &str| {
        let database = rusqlite::Connection::open(home.paths().database()).unwrap();
        database.execute_batch(text).unwrap();
    };
    sql("UPDATE vm SET phase = 'flying' WHERE name = 'a';
         UPDATE vm SET memory = -1 WHERE name = 'b'");
    let record = home.paths().vms().join(b.as_str()).join("vm.json");
    let whole = std::fs::read(&record).unwrap();
    std::fs::write(&record, "{").unwrap();

    let daemon = home.start().await;
    assert_eq!(daemon.client.vm("a").await.unwrap().pid, pids[0]);
    refusal(daemon.client.vm("b").await);
    let warnings = daemon.client.daemon_status().await.unwrap().warnings;
    assert!(
        warnings
            .iter()
            .any(|text| text.contains(b.as_str()) && text.contains("malformed memory")),
        "{warnings:?}"
    );
    // A new VM gets another slot, and takes nothing from under the machine that nobody knows.
    daemon.run("c").await;
    succeeded(&daemon.delete_vm("c").await);
    daemon.kill().await;

    std::fs::write(&record, whole).unwrap();
    let daemon = home.start().await;
    let back = daemon.client.vm("b").await.unwrap();
    assert_eq!((back.pid, back.memory.mib()), (pids[1], 128));
    assert_eq!(daemon.exec("b", &["true"]).await.code(), 0);
}

#[tokio::test]
async fn a_database_that_cannot_be_written_refuses_what_is_new_and_ends_what_runs() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    daemon.stop().await;

    let daemon = home.start_with_fault("fail:row:before").await;
    let refused = refusal(daemon.begin(small("b")).await);
    assert!(refused.hint.unwrap().contains("free some space"));
    assert_eq!(daemon.client.vms().await.unwrap().len(), 1);
    succeeded(&daemon.stop_vm("a").await);
    let refused = refusal(daemon.client.start_vm("a").await);
    assert!(refused.hint.unwrap().contains("free some space"));
    assert_eq!(daemon.client.vm("a").await.unwrap().state, VmState::Stopped);
    daemon.kill().await;

    // The row says that it runs, which the next daemon knows better.
    let daemon = home.start().await;
    assert_eq!(daemon.client.vm("a").await.unwrap().state, VmState::Stopped);
    succeeded(&daemon.start_vm("a").await);
}

#[tokio::test]
async fn two_homes_never_touch_each_others_things() {
    let (one, two) = (Home::new(), Home::new());
    let daemon = one.start().await;
    daemon.run("a").await;
    let running = daemon.client.vm("a").await.unwrap();
    daemon.kill().await;
    // Nothing of the first is known to the second, whose daemons sweep at each start.
    for _ in 0..2 {
        let other = two.start().await;
        other.run("a").await;
        assert_ne!(other.client.vm("a").await.unwrap().pid, running.pid);
        succeeded(&other.delete_vm("a").await);
        other.stop().await;
        two.assert_clean();
    }
    let daemon = one.start().await;
    assert_eq!(daemon.client.vm("a").await.unwrap().pid, running.pid);
    assert_eq!(daemon.exec("a", &["true"]).await.code(), 0);
}

#[tokio::test]
async fn doctor_finds_what_was_left_over_with_and_without_a_daemon() {
    let leaks = async |home: &Home| {
        let output = soon(
            home.command()
                .args(["doctor", "--leaks", "--json"])
                .output(),
        )
        .await
        .unwrap();
        let inventory: banger_proto::doctor::Inventory =
            serde_json::from_slice(&output.stdout).unwrap();
        let left: Vec<String> = inventory.leaks().map(|leak| leak.name.clone()).collect();
        assert_eq!(inventory.unseen, [""; 0]);
        assert_eq!(output.status.success(), left.is_empty());
        (inventory.things.len(), left)
    };
    let home = Home::new();
    assert_eq!(leaks(&home).await, (0, Vec::new()));
    let daemon = home.start().await;
    daemon.run("a").await;
    let (things, left) = leaks(&home).await;
    assert_eq!(left, [""; 0]);
    assert!(things > 8, "{things}");

    // A file and a directory that nobody has, and a disk that is gone.
    let vm = daemon.client.vm("a").await.unwrap();
    let state = home.paths().state;
    let stranger = home.paths().vms().join("0123456789abcdef0123456789abcdef");
    std::fs::create_dir(&stranger).unwrap();
    std::fs::write(state.join("notes"), "").unwrap();
    let disk = home.paths().vms().join(vm.id.as_str()).join("system.ext4");
    std::fs::remove_file(&disk).unwrap();
    let expected = [stranger, state.join("notes"), disk].map(|path| path.display().to_string());
    let (_, mut left) = leaks(&home).await;
    left.sort_by_key(|name| expected.iter().position(|expected| expected == name));
    assert_eq!(left, expected);

    daemon.kill().await;
    let (_, left) = leaks(&home).await;
    // And the socket of the daemon that was killed.
    assert_eq!(left.len(), 4, "{left:?}");
    assert!(left.contains(&home.paths().socket().display().to_string()));
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
    let broken = |config: &str, database_is_directory: bool| {
        let home = Home::new();
        let paths = home.paths();
        for directory in [&paths.config, &paths.state] {
            std::fs::create_dir_all(directory).unwrap();
        }
        std::fs::write(paths.config_file(), config).unwrap();
        if database_is_directory {
            std::fs::create_dir(paths.database()).unwrap();
        }
        home
    };
    for (home, words) in [
        (broken("vmmm = \"qemu\"", false), "did you mean `vmm`"),
        (broken("", true), "could not open the database"),
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

#[tokio::test]
async fn a_stop_right_after_the_daemons_restart_is_an_orderly_one() {
    let home = Home::new();
    let mut daemon = home.start().await;
    daemon.run("a").await;
    let vm = daemon.client.vm("a").await.unwrap();
    let log = home.paths().vms().join(vm.id.as_str()).join("engine.log");
    for _ in 0..3 {
        daemon.kill().await;
        std::fs::write(&log, "").unwrap();
        daemon = home.start().await;
        succeeded(&daemon.stop_vm("a").await);
        // Its guest was asked, which takes the link that was still being made.
        let said = std::fs::read_to_string(&log).unwrap();
        assert!(said.contains("going down"), "{said}");
        succeeded(&daemon.start_vm("a").await);
    }
    succeeded(&daemon.delete_vm("a").await);
    home.assert_clean();
}

#[tokio::test]
async fn doctor_takes_nothing_for_left_over_while_the_database_cannot_be_read() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    let vm = daemon.client.vm("a").await.unwrap();
    daemon.kill().await;
    let database = home.paths().database();
    std::fs::write(&database, "rubbish, and more of it".repeat(100)).unwrap();
    // From its log of changes the database would come back.
    for end in ["-wal", "-shm"] {
        let mut file = database.clone().into_os_string();
        file.push(end);
        std::fs::remove_file(file).unwrap();
    }

    let command = || {
        let mut command = home.command();
        command.args(["doctor", "--leaks", "--json"]);
        command
    };
    let output = soon(command().output()).await.unwrap();
    let inventory: banger_proto::doctor::Inventory =
        serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(inventory.leaks().count(), 0, "{inventory:?}");
    assert!(!output.status.success(), "not all was looked at");
    let [unseen] = &inventory.unseen[..] else {
        panic!("{:?}", inventory.unseen)
    };
    assert!(
        unseen.starts_with("could not read the database"),
        "{unseen}"
    );
    let pid = vm.pid.unwrap().to_string();
    let machine = inventory
        .things
        .iter()
        .find(|thing| thing.name.starts_with(&pid));
    assert_eq!(machine.unwrap().owner.as_deref(), Some("not known"));
    // It only looks: the database is as it was, and the next daemon takes the VM over.
    assert!(std::fs::read(&database).unwrap().starts_with(b"rubbish"));
    let daemon = home.start().await;
    assert_eq!(daemon.client.vm("a").await.unwrap().pid, vm.pid);
}

//! Changing what a VM is: names, labels, sizes, the time it has to live.

#![expect(clippy::unwrap_used, reason = "these are tests")]

mod support;

use banger_proto::api::{CreateVm, OperationKind, SetVm};
use banger_proto::error::ErrorKind;
use banger_proto::size::ByteSize;
use support::{Daemon, Home, refusal, small, soon, succeeded};

impl Daemon {
    async fn set(&self, vm: &str, change: &SetVm) {
        let operation = self.client.set_vm(vm, change).await.unwrap();
        assert_eq!(operation.kind, OperationKind::SetVm);
        succeeded(&self.end(&operation.id).await);
    }
}

fn larger(mib: u64) -> SetVm {
    SetVm {
        disk_size: Some(ByteSize::from_mib(mib)),
        ..SetVm::default()
    }
}

fn named(name: &str) -> SetVm {
    SetVm {
        name: Some(name.parse().unwrap()),
        ..SetVm::default()
    }
}

/// The sizes of the files of a VM's two disks.
async fn disk_files(home: &Home, daemon: &Daemon, vm: &str) -> [u64; 2] {
    let id = daemon.client.vm(vm).await.unwrap().id;
    let directory = home.paths().vms().join(id.as_str());
    ["system.ext4", "work.ext4"]
        .map(|disk| std::fs::metadata(directory.join(disk)).unwrap().len() >> 20)
}

#[tokio::test]
async fn a_vm_at_rest_becomes_what_is_asked_and_stays_so() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.create_only("a").await;
    let change = SetVm {
        name: Some("b".parse().unwrap()),
        vcpu: Some(2),
        memory: Some(ByteSize::from_mib(256)),
        disk_size: Some(ByteSize::from_mib(100)),
        system_size: Some(ByteSize::from_mib(90)),
        nat: Some(false),
        labels: [("k".to_owned(), Some("v".to_owned()))].into(),
        ttl_s: Some(3600),
    };
    daemon.set("a", &change).await;
    daemon.kill().await;
    let daemon = home.start().await;
    refusal(daemon.client.vm("a").await);
    let vm = daemon.client.vm("b").await.unwrap();
    assert_eq!((vm.vcpu, vm.memory.mib(), vm.nat), (2, 256, false));
    assert_eq!((vm.disk_size.mib(), vm.system_size.mib()), (100, 90));
    assert_eq!(vm.labels["k"], "v");
    assert!(vm.expires_at.unwrap() > vm.created_at);
    assert_eq!(disk_files(&home, &daemon, "b").await, [90, 100]);
    let target = daemon.client.ssh_target("b").await.unwrap();
    let pinned = std::fs::read_to_string(&target.known_hosts_file).unwrap();
    assert!(pinned.starts_with("b,b.vm ssh-ed25519 "), "{pinned}");

    let change = SetVm {
        labels: [("k".to_owned(), None)].into(),
        ttl_s: Some(0),
        ..SetVm::default()
    };
    daemon.set("b", &change).await;
    let vm = daemon.client.vm("b").await.unwrap();
    assert!(vm.labels.is_empty() && vm.expires_at.is_none());
    succeeded(&daemon.start_vm("b").await);
}

#[tokio::test]
async fn a_running_vm_gets_its_name_and_room_at_once() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    daemon.set("a", &named("b")).await;
    daemon.set("b", &larger(128)).await;
    assert_eq!(disk_files(&home, &daemon, "b").await, [64, 128]);
    assert_eq!(daemon.exec("b", &["true"]).await.code(), 0);
    let target = daemon.client.ssh_target("b").await.unwrap();
    let pinned = std::fs::read_to_string(&target.known_hosts_file).unwrap();
    assert!(pinned.starts_with("b,b.vm ssh-ed25519 "), "{pinned}");
    // The old name is free.
    daemon.run("a").await;
    let taken = refusal(daemon.client.set_vm("a", &named("b")).await);
    assert_eq!(taken.kind, ErrorKind::Conflict);
    assert_eq!(
        taken.to_string(),
        "could not change VM `a`: there is already a VM of this name"
    );
}

#[tokio::test]
async fn what_is_refused_changes_nothing() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    let before = daemon.client.vm("a").await.unwrap();
    let labelled = |change: SetVm| SetVm {
        labels: [("k".to_owned(), Some("v".to_owned()))].into(),
        ..change
    };
    for change in [
        SetVm::default(),
        labelled(larger(63)),
        labelled(SetVm {
            vcpu: Some(2),
            ..larger(128)
        }),
        labelled(SetVm {
            ttl_s: Some(u64::MAX),
            ..larger(128)
        }),
    ] {
        let error = refusal(daemon.client.set_vm("a", &change).await);
        assert!(
            matches!(error.kind, ErrorKind::Invalid | ErrorKind::Conflict),
            "{error}"
        );
    }
    let mut after = daemon.client.vm("a").await.unwrap();
    // Whoever asks uses it, whatever the answer.
    after.last_used_at.clone_from(&before.last_used_at);
    assert_eq!(after, before);
    assert_eq!(disk_files(&home, &daemon, "a").await, [64, 64]);
}

#[tokio::test]
async fn changes_at_once_are_all_made_one_after_the_other() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    let changes = (0..20_u64).map(|number| {
        let mut change = larger(100 + number);
        change
            .labels
            .insert(format!("n{number}"), Some("v".to_owned()));
        // A smaller disk than another change has made would be refused.
        if number % 2 == 0 {
            change.disk_size = None;
        }
        let daemon = &daemon;
        async move {
            match daemon.client.set_vm("a", &change).await {
                Ok(operation) => {
                    succeeded(&daemon.end(&operation.id).await);
                    change.labels.keys().next().cloned()
                }
                Err(error) => {
                    let error = refusal(Err::<(), _>(error));
                    assert!(error.to_string().contains("cannot shrink"), "{error}");
                    None
                }
            }
        }
    });
    let made = futures_util::future::join_all(changes).await;
    let labels = daemon.client.vm("a").await.unwrap().labels;
    assert_eq!(labels.len(), made.into_iter().flatten().count());
    assert!(
        (0..20)
            .step_by(2)
            .all(|number| labels.contains_key(&format!("n{number}")))
    );
}

#[tokio::test]
async fn a_vm_is_deleted_when_its_time_is_over_whatever_it_does() {
    let home = Home::new();
    let daemon = home.start().await;
    let short = CreateVm {
        ttl_s: Some(1),
        ..small("short")
    };
    daemon.begin(short).await.unwrap();
    daemon.run("paused").await;
    daemon.run("stays").await;
    let paused = daemon.client.pause_vm("paused").await.unwrap();
    succeeded(&daemon.end(&paused.id).await);
    let change = SetVm {
        ttl_s: Some(1),
        ..SetVm::default()
    };
    daemon.set("paused", &change).await;
    for vm in ["short", "paused"] {
        soon(gone(&daemon, vm)).await;
    }
    assert_eq!(daemon.client.vms().await.unwrap().len(), 1);
    succeeded(&daemon.delete_vm("stays").await);
    home.assert_clean();
}

#[tokio::test]
async fn a_vm_whose_time_ends_while_no_daemon_runs_is_deleted_by_the_next() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    let change = SetVm {
        ttl_s: Some(1),
        ..SetVm::default()
    };
    daemon.set("a", &change).await;
    daemon.kill().await;
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let daemon = home.start().await;
    soon(gone(&daemon, "a")).await;
    home.assert_clean();
}

async fn gone(daemon: &Daemon, vm: &str) {
    while daemon.client.vm(vm).await.is_ok() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_change_that_was_written_down_is_carried_out_by_the_next_daemon() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    daemon.kill().await;
    let daemon = home.start_with_fault("kill:row:half:1").await;
    // A larger disk takes the link to its guest.
    assert_eq!(daemon.exec("a", &["true"]).await.code(), 0);
    daemon.client.set_vm("a", &larger(128)).await.unwrap_err();
    assert!(!daemon.ended().await.success());
    let daemon = home.start().await;
    soon(async {
        while disk_files(&home, &daemon, "a").await != [64, 128] {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(
        daemon.client.vm("a").await.unwrap().disk_size,
        ByteSize::from_mib(128)
    );
}

#[tokio::test]
async fn a_disk_that_is_larger_than_its_row_says_is_never_cut() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    let vm = daemon.client.vm("a").await.unwrap();
    let disk = home.paths().vms().join(vm.id.as_str()).join("work.ext4");
    let file = std::fs::File::options().write(true).open(disk).unwrap();
    file.set_len(128 << 20).unwrap();
    let changed = daemon.client.set_vm("a", &larger(100)).await.unwrap();
    let error = daemon.end(&changed.id).await.error.unwrap();
    assert!(
        error.to_string().contains("cannot shrink to 100M"),
        "{error}"
    );
    assert_eq!(disk_files(&home, &daemon, "a").await, [64, 128]);
    let vm = daemon.client.vm("a").await.unwrap();
    assert_eq!(vm.disk_size, ByteSize::from_mib(128));
}

#[tokio::test]
async fn a_name_that_was_taken_meanwhile_is_not_given_back() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.create_only("a").await;
    let first = daemon.client.vm("a").await.unwrap().id;
    let disk = home.paths().vms().join(first.as_str()).join("work.ext4");
    std::fs::remove_file(&disk).unwrap();
    // Whoever opens a pipe to write waits until someone reads.
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &disk,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    let change = SetVm {
        name: Some("b".parse().unwrap()),
        ..larger(128)
    };
    let changed = daemon.client.set_vm("a", &change).await.unwrap();
    daemon.run("a").await;
    let reader = tokio::task::spawn_blocking(move || std::fs::File::open(disk));
    let error = daemon.end(&changed.id).await.error.unwrap();
    assert_eq!(
        error.hint.unwrap(),
        "its name is `b` now: `a` could not be given back"
    );
    reader.await.unwrap().unwrap();
    let b = daemon.client.vm("b").await.unwrap();
    assert_eq!((b.id, b.disk_size), (first, ByteSize::from_mib(64)));
    assert_eq!(daemon.client.vms().await.unwrap().len(), 2);
    daemon.kill().await;
    let daemon = home.start().await;
    assert_eq!(daemon.client.vms().await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_change_right_after_the_daemons_restart_waits_for_the_link() {
    let home = Home::new();
    let mut daemon = home.start().await;
    daemon.run("a").await;
    for (before, after) in [("a", "b"), ("b", "a"), ("a", "b")] {
        daemon.kill().await;
        daemon = home.start().await;
        daemon.set(before, &named(after)).await;
    }
    succeeded(&daemon.delete_vm("b").await);
    home.assert_clean();
}

//! Very many VMs: what they cost the daemon that finds them.

#![expect(clippy::unwrap_used, reason = "these are tests")]

mod support;

use std::path::Path;

use banger_proto::api::VmState;
use banger_proto::id::VmId;
use support::Home;

const VMS: u16 = 1000;

/// Makes VMs as the one that there is, without a daemon: rows, and directories with disks.
/// Every second one ran when its host went down.
fn multiply(home: &Home, model: &VmId) {
    let directory = home.paths().vms();
    let database = rusqlite::Connection::open(home.paths().database()).unwrap();
    let transaction = database.unchecked_transaction().unwrap();
    for slot in 2..=VMS {
        let id = VmId::new();
        let phase = match slot % 2 {
            0 => "running",
            _ => "stopped",
        };
        transaction
            .execute(
                "INSERT INTO vm (id, name, slot, phase, image, vcpu, memory, disk_size, system_size, \
                 engine, engine_reason, nat, labels, created_at, stages) \
                 SELECT ?1, 'vm-' || ?2, ?2, ?3, image, vcpu, memory, disk_size, system_size, \
                 engine, engine_reason, nat, labels, created_at, stages FROM vm WHERE id = ?4",
                (id.as_str(), slot, phase, model.as_str()),
            )
            .unwrap();
        let own = directory.join(id.as_str());
        std::fs::create_dir(&own).unwrap();
        for disk in ["system.ext4", "work.ext4"] {
            std::fs::write(own.join(disk), "").unwrap();
        }
    }
    transaction.commit().unwrap();
}

/// How often the log says this.
fn times(log: &Path, message: &str) -> usize {
    let log = std::fs::read_to_string(log).unwrap();
    let message = format!("\"message\":\"{message}\"");
    log.lines().filter(|line| line.contains(&message)).count()
}

#[tokio::test]
async fn a_thousand_vms_cost_the_next_daemon_one_look_at_the_host() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.create_only("vm-1").await;
    let model = daemon.client.vm("vm-1").await.unwrap().id;
    daemon.stop().await;
    multiply(&home, &model);

    let log = home.paths().daemon_log();
    std::fs::write(&log, "").unwrap();
    let daemon = home.start().await;
    let vms = daemon.client.vms().await.unwrap();
    assert_eq!(vms.len(), usize::from(VMS));
    assert!(
        vms.iter()
            .all(|vm| matches!(vm.state, VmState::Created | VmState::Stopped))
    );
    assert_eq!(times(&log, "found"), usize::from(VMS));
    assert_eq!(times(&log, "looked at the host's processes"), 1);
    daemon.stop().await;
}

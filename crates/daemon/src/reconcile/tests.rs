//! The passes of the reconciler over rows and hosts that do not agree.

#![expect(clippy::disallowed_methods, reason = "tests start what they test")]

use std::process::{Child, Command};

use banger_engine::Mark;
use banger_engine::process::ProcessId;
use banger_proto::id::{InstanceId, LeaseId, VmId};

use super::*;
use crate::host::{self, tests::home};
use crate::store::vms::tests::row;
use crate::store::{NewVm, vms::HeldSlots};
use crate::vm::record;
use crate::vm::task::Origin;

fn fleet(home: &Path) -> Arc<Fleet> {
    Arc::new(Fleet::new(host::tests::host(home)))
}

async fn insert(fleet: &Fleet, change: impl FnOnce(&mut VmRow)) -> VmRow {
    let mut row = row("x");
    row.phase = Phase::Stopped;
    change(&mut row);
    let new = NewVm {
        name: None,
        key: None,
        row,
    };
    let database = &fleet.host().database;
    database
        .insert_vm(new, 1000, HeldSlots::default())
        .await
        .unwrap()
}

/// A process that does nothing and carries a mark. Killed when dropped.
struct Marked(Child);

impl Marked {
    fn new(instance: &InstanceId, slot: u16, vm: &VmId) -> Self {
        let mark = Mark {
            instance: instance.clone(),
            slot,
            vm: vm.clone(),
        };
        let mut sleep = Command::new("sleep");
        let sleep = sleep.arg("60").env(Mark::VARIABLE, mark.to_string());
        Self(sleep.spawn().unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn was_killed(mut self) -> bool {
        let ended = self.0.try_wait().unwrap().is_some();
        drop(self);
        ended
    }
}

impl Drop for Marked {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Gives the VM of `row` its directory, with disks and record.
fn put_directory(host: &Host, row: &VmRow) {
    let layout = host.layout(&row.id, row.slot);
    files::make_private_directory(&layout.directory).unwrap();
    fs::write(&layout.system_disk, "").unwrap();
    fs::write(&layout.work_disk, "").unwrap();
    record::write(&layout, row).unwrap();
}

fn states(fleet: &Fleet) -> Vec<(VmId, Phase, Option<u32>)> {
    let handles = fleet.handles();
    let states = handles
        .iter()
        .map(|vm| vm.look(|status| (status.row.id.clone(), status.row.phase, status.pid)));
    states.collect()
}

#[tokio::test]
async fn a_later_look_sweeps_strays_tidies_and_deletes_what_lost_its_lease() {
    let home = home();
    let fleet = fleet(home.path());
    let (paths, instance) = (fleet.host().paths.clone(), fleet.host().instance.clone());
    let stopped = insert(&fleet, |_| {}).await;
    let leftover = paths.vm_runtime(stopped.slot);
    files::make_private_directory(&leftover).unwrap();
    let stopped = fleet.bring_in(stopped, Origin::AtRest);
    let leased = insert(&fleet, |row| row.lease = Some(LeaseId::new())).await;
    let leased = fleet.bring_in(leased, Origin::AtRest);
    let stray_slot = paths.vm_runtime(7);
    files::make_private_directory(&stray_slot).unwrap();
    let mut stray = Marked::new(&instance, 7, &VmId::new());
    // The same slot and VM, but of someone else.
    let elsewhere = Marked::new(&InstanceId::new(), 7, &VmId::new());

    Reconciler::new(Arc::clone(&fleet))
        .later_pass()
        .await
        .unwrap();
    // What owners were asked to do is done when they have no work any more.
    fleet.quiesce().await;
    leased.gone().await;

    assert!(!stray.0.wait().unwrap().success(), "it was killed");
    assert!(!elsewhere.was_killed());
    assert!(!stray_slot.exists() && !leftover.exists());
    let left: Vec<VmId> = fleet.handles().iter().map(|vm| vm.id()).collect();
    assert_eq!(left, [stopped.id()]);
}

#[tokio::test]
async fn a_handle_that_is_missing_or_wrong_is_never_a_reason_to_end_anything() {
    type Change = fn(&ProcessId, &ProcessId) -> Option<String>;
    let written: [(&str, Change); 5] = [
        ("missing", |_, _| None),
        ("truncated", |own, _| {
            Some(format!(
                "{{\"engine\":\"fake\",\"process\":{{\"pid\":{}",
                own.pid
            ))
        }),
        ("of another boot", |own, _| {
            let earlier = ProcessId {
                boot_id: "earlier".to_owned(),
                ..own.clone()
            };
            Some(serde_json::json!({ "engine": "fake", "process": earlier }).to_string())
        }),
        ("of a pid that another process has now", |own, other| {
            let reused = ProcessId {
                pid: other.pid,
                ..own.clone()
            };
            Some(serde_json::json!({ "engine": "fake", "process": reused }).to_string())
        }),
        ("of a process that was never the machine", |_, other| {
            Some(serde_json::json!({ "engine": "fake", "process": other }).to_string())
        }),
    ];
    for (what, content) in written {
        for runs in [true, false] {
            let home = home();
            let fleet = fleet(home.path());
            let host = fleet.host();
            let vm = insert(&fleet, |row| row.phase = Phase::Running).await;
            put_directory(host, &vm);
            let machine = runs.then(|| Marked::new(&host.instance, vm.slot, &vm.id));
            let other = Marked::new(&InstanceId::new(), vm.slot, &vm.id);
            let of = |pid: u32| ProcessId::of(pid).unwrap();
            let own = of(machine.as_ref().unwrap_or(&other).pid());
            if let Some(content) = content(&own, &of(other.pid())) {
                let handles = host.layout(&vm.id, vm.slot).handles;
                fs::write(handles, content).unwrap();
            }

            Reconciler::new(Arc::clone(&fleet))
                .first_pass()
                .await
                .unwrap();

            let expected = match &machine {
                Some(machine) => (vm.id.clone(), Phase::Running, Some(machine.pid())),
                None => (vm.id.clone(), Phase::Stopped, None),
            };
            assert_eq!(states(&fleet), [expected], "{what}, runs: {runs}");
            assert!(!other.was_killed(), "{what}");
            assert!(
                machine.is_none_or(|machine| !machine.was_killed()),
                "{what}"
            );
        }
    }
}

#[tokio::test]
async fn a_vm_that_has_lost_its_row_comes_back_with_its_machine() {
    let home = home();
    let fleet = fleet(home.path());
    let host = fleet.host();
    let with_slot = |slot| VmRow {
        slot,
        ..row("calm-otter")
    };
    let (running, stopped, unknown) = (with_slot(3), with_slot(4), with_slot(5));
    for vm in [&running, &stopped, &unknown] {
        put_directory(host, vm);
    }
    let record = host.layout(&unknown.id, unknown.slot).record;
    fs::write(&record, "{").unwrap();
    let machine = Marked::new(&host.instance, running.slot, &running.id);
    let doubtful = Marked::new(&host.instance, unknown.slot, &unknown.id);

    let mut reconciler = Reconciler::new(Arc::clone(&fleet));
    reconciler.first_pass().await.unwrap();
    let mut found = states(&fleet);
    found.sort_by_key(|(_, phase, _)| *phase != Phase::Running);
    assert_eq!(
        found,
        [
            (running.id.clone(), Phase::Running, Some(machine.pid())),
            (stopped.id.clone(), Phase::Stopped, None),
        ]
    );
    // What may be a VM's keeps its processes, its directory and its slot.
    assert!(host.layout(&unknown.id, unknown.slot).work_disk.exists());
    for slot in [1, 2, 6] {
        let next = fleet.hold_slot(slot).await.unwrap();
        assert!(next.is_some(), "slot {slot} is free");
    }
    assert!(fleet.hold_slot(unknown.slot).await.unwrap().is_none());
    let warnings = host.warnings.all().join("\n");
    assert!(
        warnings.contains("calm-otter") && warnings.contains(unknown.id.as_str()),
        "{warnings}"
    );
    assert!(!doubtful.was_killed());
    reconciler.later_pass().await.unwrap();
    assert!(host.warnings.all().join("\n").contains(unknown.id.as_str()));
    assert!(!machine.was_killed());
}

#[tokio::test]
async fn a_later_look_takes_over_what_the_first_could_not_and_demotes_what_is_gone() {
    let home = home();
    let fleet = fleet(home.path());
    let host = fleet.host();
    let mut rows = Vec::new();
    for _ in 0..2 {
        let vm = insert(&fleet, |row| row.phase = Phase::Running).await;
        put_directory(host, &vm);
        rows.push(vm);
    }
    // As a first pass leaves them that could not tell what runs.
    let [found, lost] = [0, 1].map(|vm: usize| fleet.bring_in(rows[vm].clone(), Origin::AtRest));
    let machine = Marked::new(&host.instance, rows[0].slot, &rows[0].id);

    Reconciler::new(Arc::clone(&fleet))
        .later_pass()
        .await
        .unwrap();
    fleet.quiesce().await;

    assert_eq!(found.look(|status| status.pid), Some(machine.pid()));
    assert_eq!(found.look(|status| status.row.phase), Phase::Running);
    assert_eq!(lost.look(|status| status.row.phase), Phase::Stopped);
    assert!(!machine.was_killed());
}

//! What the owner does of itself, with machines and clocks that a test plays.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use banger_engine::process::ProcessId;
use banger_engine::{
    Activity, AgentStream, ControlError, Disk, DiskAccess, DiskError, Exit, ExitCause, Machine,
    MachineHandle, Place, Signs,
};
use banger_proto::agent::DiskRole;
use banger_proto::api::{EngineKind, Happened, SetVm};
use banger_proto::error::ErrorKind;
use banger_proto::size::ByteSize;
use futures_util::FutureExt as _;
use rustix::process::Signal;
use tokio::sync::watch;

use super::{Ask, Handle, Origin};
use crate::host::Host;
use crate::host::tests::{home, host};
use crate::store::vms::tests::row;
use crate::store::{NewVm, VmRow, vms::HeldSlots};
use crate::vm::lifecycle::Phase;

async fn insert(host: &Host, phase: Phase) -> VmRow {
    let row = VmRow { phase, ..row("x") };
    let new = NewVm {
        name: None,
        key: None,
        row,
    };
    let inserted = host.database.insert_vm(new, 9, HeldSlots::default());
    inserted.await.unwrap()
}

/// A machine whose end the test plays, and whose first watcher breaks down.
#[derive(Debug)]
struct Played {
    handle: MachineHandle,
    place: Place,
    watchers: AtomicU32,
    ended: watch::Sender<bool>,
    signs: watch::Sender<Signs>,
}

impl Played {
    fn new(place: Place) -> Self {
        Self {
            handle: MachineHandle {
                engine: EngineKind::Fake,
                process: ProcessId {
                    pid: 1,
                    start_time: 0,
                    boot_id: "another".to_owned(),
                },
            },
            place,
            watchers: AtomicU32::new(0),
            ended: watch::Sender::new(false),
            signs: watch::Sender::default(),
        }
    }
}

#[async_trait]
impl Machine for Played {
    fn handle(&self) -> &MachineHandle {
        &self.handle
    }

    fn place(&self) -> &Place {
        &self.place
    }

    async fn connect(&self) -> io::Result<Box<dyn AgentStream>> {
        std::future::pending().await
    }

    fn signs(&self) -> watch::Receiver<Signs> {
        self.signs.subscribe()
    }

    async fn exited(&self) -> Exit {
        if self.watchers.fetch_add(1, Ordering::Relaxed) == 0 {
            panic!("a watcher that breaks down");
        }
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
        Exit {
            cause: ExitCause::PoweredOff,
            engine_log: Vec::new(),
        }
    }

    async fn kill(&self) -> Result<(), ControlError> {
        Ok(())
    }

    fn signal(&self, _: Signal) -> Result<(), ControlError> {
        Ok(())
    }

    async fn power_button(&self) -> Result<(), ControlError> {
        Ok(())
    }

    async fn pause(&self) -> Result<(), ControlError> {
        Ok(())
    }

    async fn resume(&self) -> Result<(), ControlError> {
        Ok(())
    }

    async fn grow_disk(&self, _: &Disk, _: ByteSize) -> Result<(), ControlError> {
        Ok(())
    }

    async fn activity(&self) -> Result<Activity, ControlError> {
        Ok(Activity::Paused)
    }
}

async fn comes_to(vm: &Handle, phase: Phase) {
    let mut status = vm.status.clone();
    let come = status.wait_for(|status| status.row.phase == phase);
    tokio::time::timeout(std::time::Duration::from_secs(30), come)
        .await
        .expect("it comes to that phase")
        .expect("the owner lives");
}

#[tokio::test]
async fn the_end_of_a_machine_is_seen_after_its_watcher_broke_down() {
    let home = home();
    let host = host(home.path());
    // Paused, so that nobody else watches it, such as who makes a link.
    let row = insert(&host, Phase::Paused).await;
    let place = host.layout(&row.id, row.slot).place;
    let machine = Arc::new(Played::new(place));
    let vm = Handle::spawn(host, row, Origin::Adopted(machine.clone()));
    machine.ended.send_replace(true);
    comes_to(&vm, Phase::Stopped).await;
    assert_eq!(machine.watchers.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn disks_that_fail_are_told_each_once_and_the_vm_goes_on() {
    let home = home();
    let host = host(home.path());
    let row = insert(&host, Phase::Paused).await;
    let place = host.layout(&row.id, row.slot).place;
    let machine = Arc::new(Played::new(place));
    let vm = Handle::spawn(host.clone(), row, Origin::Adopted(machine.clone()));
    for (told, disk) in [(1, DiskRole::Work), (2, DiskRole::System)] {
        let error = DiskError {
            disk,
            access: DiskAccess::Write,
            reason: "No space left on device".to_owned(),
            at: std::time::SystemTime::now(),
        };
        let add = |signs: &mut Signs| signs.disk_errors.push(error);
        machine.signs.send_modify(add);
        let mut status = vm.status.clone();
        let warned = status.wait_for(|status| status.warnings.len() == told);
        let status = tokio::time::timeout(std::time::Duration::from_secs(30), warned).await;
        let status = status.expect("it is told").unwrap();
        let begin = format!("its {} disk could not be written at ", disk.as_str());
        assert!(status.warnings[told - 1].starts_with(&begin), "{status:?}");
        assert_eq!(status.row.phase, Phase::Paused);
    }
    let mut events = host.events.follow(None).up_to_now();
    let mut warnings = Vec::new();
    while let Some(event) = events.next().await {
        if let Happened::VmWarning { warning, .. } = event.what {
            warnings.push(warning);
        }
    }
    assert_eq!(warnings, vm.status().warnings);
}

#[tokio::test]
async fn what_became_of_a_pause_is_asked_of_the_machine() {
    let home = home();
    let host = host(home.path());
    for phase in [Phase::Pausing, Phase::Resuming] {
        let row = insert(&host, phase).await;
        let place = host.layout(&row.id, row.slot).place;
        let machine = Arc::new(Played::new(place));
        let vm = Handle::spawn(host.clone(), row, Origin::Adopted(machine));
        comes_to(&vm, Phase::Paused).await;
    }
}

#[tokio::test]
async fn a_change_that_is_given_up_while_it_waits_is_not_made() {
    let home = home();
    let host = host(home.path());
    let row = insert(&host, Phase::Stopped).await;
    let name = row.name.clone();
    let vm = Handle::spawn(host, row, Origin::AtRest);
    // Work that a change waits for.
    vm.tidy().await;
    let change = SetVm {
        name: Some("given-up".parse().unwrap()),
        ..SetVm::default()
    };
    let answer = vm.ask(Ask::Set(Box::new(change)), None).now_or_never();
    assert!(answer.is_none());
    vm.quiesce().await;
    assert_eq!(vm.name(), name);
}

#[tokio::test]
async fn a_start_that_waits_for_its_turn_is_called_off_when_the_daemon_ends() {
    let home = home();
    let host = host(home.path());
    let row = insert(&host, Phase::Stopped).await;
    let vm = Handle::spawn(Arc::clone(&host), row, Origin::AtRest);
    // It waits for what goes on already.
    let ((), start, ()) = tokio::join!(vm.tidy(), vm.ask(Ask::Start, None), vm.quiesce());
    let start = host.operations.get(&start.unwrap().id).unwrap();
    assert_eq!(start.error.unwrap().kind, ErrorKind::Cancelled);
}

//! How the owner holds a machine and its link, and watches both.

use std::sync::Arc;
use std::time::Duration;

use banger_engine::{DiskError, Machine};
use banger_proto::api::Happened;
use banger_proto::error::{ApiError, ErrorKind};
use jiff::tz::TimeZone;
use tokio::task::JoinError;
use tracing::Instrument as _;

use super::{Happening, Owner};
use crate::files;
use crate::guest::Guest;
use crate::vm::disk_warning;
use crate::vm::lifecycle::{Event, Phase};
use crate::vm::task::jobs;

/// How long a watcher that broke down is left before there is another: one that breaks down at
/// once must not keep the daemon busy.
const WATCH_AGAIN: Duration = Duration::from_secs(1);

impl Owner {
    pub(super) fn hold(&mut self, machine: Arc<dyn Machine>) {
        self.epoch += 1;
        self.ended = None;
        let pid = machine.handle().process.pid;
        self.status.send_modify(|status| {
            status.pid = Some(pid);
            status.machine = Some(Arc::clone(&machine));
            status.warnings.clear();
        });
        self.machine = Some(machine);
        self.disk_errors = 0;
        self.watch_machine(Duration::ZERO);
        self.watch_disks(Duration::ZERO);
    }

    pub(super) fn let_go(&mut self) {
        self.epoch += 1;
        self.machine = None;
        self.ended = None;
        self.may_be_held = false;
        self.status.send_modify(|status| {
            status.pid = None;
            status.machine = None;
            status.guest = None;
        });
    }

    pub(super) fn linked(&mut self, guest: Guest) {
        self.relinking = None;
        self.status.send_modify(|status| status.guest = Some(guest));
        self.watch_link(Duration::ZERO);
    }

    pub(super) fn link_lost(&mut self) {
        self.status.send_modify(|status| status.guest = None);
        // A guest that is held answers no one, and in any other phase the link goes with the
        // machine.
        if self.phase() == Phase::Running {
            tracing::warn!("the link to the agent is broken");
            self.relink();
        }
    }

    /// Makes the link anew, however long that takes: while the machine lives there is hope,
    /// and when it ends, so does this.
    pub(super) fn relink(&mut self) {
        let Some(machine) = self.machine.clone() else {
            return;
        };
        if self.relinking.replace(self.epoch) == Some(self.epoch) {
            return;
        }
        let (epoch, host, row) = (self.epoch, Arc::clone(&self.host), self.row());
        let relinked = async move {
            match jobs::relink(&host, &row, &*machine).await {
                Some(guest) => Happening::LinkUp { epoch, guest },
                // That the machine has ended is told by whoever watches it.
                None => Happening::Nothing,
            }
        };
        self.background.spawn(relinked.in_current_span());
    }

    /// A task beside the owner panicked: the job, or one that only watches.
    pub(super) async fn broke_down(&mut self, error: &JoinError) {
        if self.job.as_ref().is_none_or(|job| job.task != error.id()) {
            tracing::error!(%error, "a watcher of this VM broke down");
            self.watch_again();
            return;
        }
        tracing::error!(%error, "a job of this VM broke down");
        let name = self.row().name;
        let failure = ApiError::new(ErrorKind::Failed, format!("VM `{name}` failed"))
            .with_hint("this is a fault in banger: see `banger daemon logs`");
        match self.phase() {
            // The machine is as it was; only what was ordered of it is unknown.
            Phase::Pausing | Phase::Resuming if self.machine.is_some() => {
                let works = self.job.take().map(|job| job.works).unwrap_or_default();
                super::end_all(works, Err(failure));
                self.run_look();
            }
            Phase::Running | Phase::Paused => {
                self.job_ended(Event::Changed, Some(failure)).await;
            }
            _ => self.job_ended(Event::StuckReleasing, Some(failure)).await,
        }
    }

    /// Watches the machine and its link anew. What the other watchers still tell is of an
    /// earlier epoch and not heard.
    fn watch_again(&mut self) {
        if self.machine.is_none() {
            return;
        }
        self.epoch += 1;
        self.watch_machine(WATCH_AGAIN);
        self.watch_disks(WATCH_AGAIN);
        let linked = self.status.borrow().guest.is_some();
        match linked {
            true => self.watch_link(WATCH_AGAIN),
            false if self.phase() == Phase::Running => self.relink(),
            false => {}
        }
    }

    fn watch_machine(&mut self, pause: Duration) {
        let Some(machine) = self.machine.clone() else {
            return;
        };
        let (epoch, host) = (self.epoch, Arc::clone(&self.host));
        self.background.spawn(async move {
            tokio::time::sleep(pause).await;
            let kept = host.logs.keep(machine.place());
            let exit = machine.exited().await;
            drop(kept);
            Happening::MachineEnded { epoch, exit }
        });
    }

    /// Waits for the next failure of a disk.
    fn watch_disks(&mut self, pause: Duration) {
        let Some(machine) = self.machine.clone() else {
            return;
        };
        let (epoch, known) = (self.epoch, self.disk_errors);
        self.background.spawn(async move {
            tokio::time::sleep(pause).await;
            let mut signs = machine.signs();
            let more = signs.wait_for(|signs| signs.disk_errors.len() > known);
            let errors = more.await.map(|signs| signs.disk_errors[known..].to_vec());
            match errors {
                Ok(errors) => Happening::DisksFailed { epoch, errors },
                // This engine notices nothing.
                Err(_) => Happening::Nothing,
            }
        });
    }

    /// Tells of disks that could not be read or written. The guest was told, and goes on.
    pub(super) async fn disks_failed(&mut self, errors: &[DiskError]) {
        let row = self.row();
        let directory = self.host.layout(&row.id, row.slot).directory;
        let free = crate::blocking(move || files::free_space(&directory)).await;
        for error in errors {
            let warning = disk_warning::words(error, free, &TimeZone::system());
            tracing::warn!(warning, "a disk of this VM fails");
            self.host.events.tell(Happened::VmWarning {
                vm: row.id.clone(),
                vm_name: row.name.clone(),
                warning: warning.clone(),
            });
            self.status
                .send_modify(|status| status.warnings.push(warning));
        }
        self.disk_errors += errors.len();
        self.watch_disks(Duration::ZERO);
    }

    fn watch_link(&mut self, pause: Duration) {
        let Some(guest) = self.status.borrow().guest.clone() else {
            return;
        };
        let epoch = self.epoch;
        self.background.spawn(async move {
            tokio::time::sleep(pause).await;
            guest.closed().await;
            Happening::LinkLost { epoch }
        });
    }
}

//! What the owner writes down, and tells whoever watches.

use banger_proto::api::{Happened, StageTime, VmState};
use banger_proto::error::ApiError;

use super::{Owner, told};
use crate::store::{StoreError, VmRow};
use crate::vm::lifecycle::Phase;
use crate::vm::start::Artifacts;

impl Owner {
    pub(super) fn remember(&self, artifacts: &Artifacts) {
        self.status.send_modify(|status| {
            status.row.image_id.clone_from(&artifacts.image_id);
            status.row.kernel.clone_from(&artifacts.kernel);
        });
    }

    /// Enters a phase that somebody asked for, or that banger has a reason for. A start or a
    /// pause that cannot be written down does not begin; a stop or a delete does, because it may
    /// be what mends a full disk.
    pub(super) async fn begin_phase(
        &mut self,
        phase: Phase,
        reason: Option<String>,
    ) -> Result<(), StoreError> {
        let mut row = self.row();
        row.phase = phase;
        row.failure = None;
        row.reason = reason;
        match self.write_down(row.clone()).await {
            Err(error) if matches!(phase, Phase::Starting | Phase::Pausing) => return Err(error),
            Err(error) => {
                tracing::error!(%error, phase = phase.as_str(), "could not write the phase down");
            }
            Ok(()) => {}
        }
        let was = self.phase().state();
        self.status.send_modify(|status| status.row = row);
        self.tell_state(was);
        Ok(())
    }

    /// Enters a phase that something led to. What is true goes on even if it cannot be written
    /// down now; that is tried again, because the next daemon would believe the row.
    ///
    /// # Errors
    /// It could not be written down.
    pub(super) async fn enter(
        &mut self,
        phase: Phase,
        stages: Option<Vec<StageTime>>,
        failure: Option<ApiError>,
    ) -> Result<(), StoreError> {
        let was = self.phase().state();
        self.status.send_modify(|status| {
            status.row.phase = phase;
            status.row.failure = failure;
        });
        self.remember_stages(stages);
        self.tell_state(was);
        let row = self.row();
        let written = self.write_down(row).await;
        written.inspect_err(|error| {
            tracing::error!(%error, phase = phase.as_str(), "could not write the phase down");
        })
    }

    /// Keeps the stages of a start, however it ended; what has none was no start.
    pub(super) fn remember_stages(&self, stages: Option<Vec<StageTime>>) {
        if let Some(stages) = stages.filter(|stages| !stages.is_empty()) {
            self.status.send_modify(|status| status.row.stages = stages);
        }
    }

    /// Sees to it that a delete is tried again until nothing is left: the VM's time to live is
    /// over now, in this daemon and in those after it.
    pub(super) async fn insist(&mut self) {
        self.timers.deleted_now();
        let mut row = self.row();
        row.expires_at = Some(crate::now());
        if let Err(error) = self.write_down(row.clone()).await {
            tracing::error!(%error, "could not write down that the VM is to go");
        }
        self.status.send_modify(|status| status.row = row);
    }

    /// Writes a row. What could not be written is written again after a while.
    pub(super) async fn write_down(&mut self, row: VmRow) -> Result<(), StoreError> {
        let written = self.host.database.update_vm(row).await;
        self.timers.must_write(written.is_err());
        written
    }

    /// Writes the row if that has failed before.
    pub(super) async fn write_again(&mut self) {
        if !self.timers.writes() {
            return;
        }
        match self.write_down(self.row()).await {
            Ok(()) => tracing::info!("written down at last"),
            Err(error) => tracing::warn!(%error, "could still not write the row"),
        }
    }

    /// Tells whoever watches the daemon that the VM is in another state than it was.
    fn tell_state(&self, was: VmState) {
        let row = self.row();
        if row.phase.state() != was {
            self.host.events.tell(Happened::VmState {
                vm: row.id,
                vm_name: row.name,
                state: row.phase.state(),
                reason: row.reason,
                failure: row.failure,
            });
        }
    }

    /// Frees the row and with it the slot; nothing else is left.
    pub(super) async fn vanish(&mut self) -> Result<(), ApiError> {
        let VmRow {
            id, name, reason, ..
        } = self.row();
        match self.host.database.remove_vm(id.clone()).await {
            Ok(()) => {
                tracing::info!("gone");
                self.host.events.tell(Happened::VmDeleted {
                    vm: id,
                    vm_name: name,
                    reason,
                });
                self.status.send_modify(|status| status.gone = true);
                Ok(())
            }
            Err(error) => {
                let failure = told::not_written("delete", &name, &error);
                let _ = self.enter(Phase::Failed, None, Some(failure.clone())).await;
                Err(failure)
            }
        }
    }
}

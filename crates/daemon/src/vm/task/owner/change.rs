//! How a change of a VM is written down and carried out.

use std::sync::Arc;

use banger_proto::api::{Happened, Operation, SetVm};
use banger_proto::id::RequestId;
use tokio_util::sync::CancellationToken;

use super::{Happening, Owner};
use crate::store::ReplaceError;
use crate::vm::change::{self, ChangeError, Settings};
use crate::vm::lifecycle::{Event, Phase};
use crate::vm::record;
use crate::vm::task::orders::{Carried, Change};
use crate::vm::task::{Ask, RequestError};

impl Owner {
    /// Writes a change down and begins to carry it out. No job goes on.
    pub(super) async fn change(
        &mut self,
        change: &SetVm,
        request_id: Option<RequestId>,
    ) -> Result<Operation, RequestError> {
        let mut row = self.row();
        let now = jiff::Timestamp::now();
        let new = change::settings(&row, change, self.host.resources, now)?;
        let was = Settings::of(&row);
        let guest = self.status.borrow().guest.clone();
        if row.phase == Phase::Running && new.needs_guest(&was) && guest.is_none() {
            return Err(RequestError::LinkDown);
        }
        let needs_work = new.needs_work(&was);
        new.put_into(&mut row);
        match self.host.database.replace_vm(row.clone()).await {
            Ok(()) => {}
            Err(ReplaceError::NameTaken(name)) => return Err(ChangeError::NameTaken(name).into()),
            Err(ReplaceError::Store(error)) => return Err(error.into()),
        }
        self.status.send_modify(|status| status.row = row.clone());
        self.keep_record().await;
        self.tell_change();
        let work = self.begin(&Ask::Set(Box::default()), request_id);
        let operation = work.operation();
        if !needs_work {
            work.end(Ok(()));
            return Ok(operation);
        }
        let hurry = CancellationToken::new();
        let change = Change {
            row,
            was,
            hurry: hurry.clone(),
        };
        let (host, machine) = (Arc::clone(&self.host), self.machine.clone());
        self.run_job(vec![work], hurry, async move {
            let carried = change.carry_out(&host, machine.as_deref(), guest.as_ref());
            Happening::Changed(Box::new(carried.await))
        });
        Ok(operation)
    }

    /// What was not to be done is taken back in the row as well.
    pub(super) async fn changed(&mut self, carried: Carried) {
        if Settings::of(&self.row()) != carried.in_force {
            self.status
                .send_modify(|status| carried.in_force.put_into(&mut status.row));
            self.tell_change();
            let written = self.host.database.update_vm(self.row()).await;
            let _ = written.inspect_err(|error| {
                tracing::error!(%error, "could not write down what a change came to");
            });
            self.keep_record().await;
        }
        self.job_ended(Event::Changed, carried.error).await;
    }

    /// The VM's directory says what its row does. If it cannot be told, the next daemon tells it.
    async fn keep_record(&self) {
        let row = self.row();
        let layout = self.host.layout(&row.id, row.slot);
        let kept = crate::blocking(move || record::refresh(&layout, &row)).await;
        if let Err(error) = kept {
            tracing::warn!(%error, "could not keep the VM's record");
        }
    }

    fn tell_change(&self) {
        let row = self.row();
        self.host.events.tell(Happened::VmChanged {
            vm: row.id,
            vm_name: row.name,
        });
    }
}

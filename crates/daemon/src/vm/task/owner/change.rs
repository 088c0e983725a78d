//! How a change of a VM is written down and carried out.

use std::sync::Arc;

use banger_proto::api::{Happened, Operation, SetVm};
use tokio_util::sync::CancellationToken;

use super::{Happening, Owner};
use crate::store::ReplaceError;
use crate::vm::change::{self, ChangeError, Settings};
use crate::vm::lifecycle::{Event, Phase};
use crate::vm::record;
use crate::vm::task::orders::{self, Carried, Change};
use crate::vm::task::{Ask, Behalf, RequestError};

impl Owner {
    /// Writes a change down and begins to carry it out. No job goes on.
    pub(super) async fn change(
        &mut self,
        change: &SetVm,
        behalf: Behalf,
    ) -> Result<Operation, RequestError> {
        let mut row = self.row();
        let now = jiff::Timestamp::now();
        let new = change::settings(&row, change, self.host.resources, now)?;
        let was = Settings::of(&row);
        let guest = self.status.borrow().guest.clone();
        let guest = guest.map(|guest| guest.for_work_of(behalf.request_id.as_ref()));
        if row.phase == Phase::Running && change::needs_guest(change, &row) && guest.is_none() {
            return Err(RequestError::LinkDown);
        }
        let needs_work = change::needs_work(change, &row);
        new.put_into(&mut row);
        match self.host.database.replace_vm(row.clone()).await {
            Ok(()) => {}
            Err(ReplaceError::NameTaken(name)) => return Err(ChangeError::NameTaken(name).into()),
            Err(ReplaceError::Store(error)) => return Err(error.into()),
        }
        self.status.send_modify(|status| status.row = row.clone());
        self.keep_record().await;
        self.tell_change();
        let work = self.begin(&Ask::Set(Box::default()), behalf);
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
        let Carried {
            in_force,
            mut error,
        } = carried;
        let mut row = self.row();
        if Settings::of(&row) != in_force {
            let new_name = row.name.clone();
            in_force.put_into(&mut row);
            if let Err(refused) = self.host.database.replace_vm(row.clone()).await {
                tracing::error!(error = %refused, "could not write down what a change came to");
                // The name is the one of the row in any case: the old one may be another's.
                let old_name = std::mem::replace(&mut row.name, new_name);
                let _ = self.write_down(row.clone()).await;
                if let (Some(error), true) = (&mut error, old_name != row.name) {
                    error.hint = Some(format!(
                        "its name is `{}` now: `{old_name}` could not be given back",
                        row.name
                    ));
                }
            }
            self.status.send_modify(|status| status.row = row);
            self.tell_change();
            self.keep_record().await;
        }
        self.job_ended(Event::Changed, error).await;
    }

    /// Sees to it that a machine that was taken over is what its row says: the daemon before
    /// may have ended between writing a change down and carrying it out.
    pub(super) fn run_catch_up(&mut self) {
        let (host, row) = (Arc::clone(&self.host), self.row());
        let Some(machine) = self.machine.clone() else {
            return;
        };
        self.run_job(Vec::new(), CancellationToken::new(), async move {
            let carried = orders::catch_up(&host, &row, &*machine).await;
            Happening::Changed(Box::new(carried))
        });
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

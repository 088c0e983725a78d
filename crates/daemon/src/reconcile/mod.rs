//! Makes rows and host agree: when the daemon starts, before its socket is served, and then
//! every minute.
//!
//! At the start no VM has an owner yet, so the first pass brings back, adopts, releases and
//! removes by itself. Later passes sweep what belongs to no VM, and tell owners what they see.
//! Each pass looks at the host once, however many VMs there are.

pub mod diff;
mod first;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use banger_engine::Machine;
use banger_engine::process::{self, Look, Presence};
use tokio::time::{MissedTickBehavior, interval};

use self::diff::{Doubtful, Found, Strays};
use crate::files;
use crate::fleet::{Fleet, LEASE_ENDED};
use crate::host::Host;
use crate::store::vms::SlotHold;
use crate::store::{Rows, StoreError, VmRow};
use crate::vm::handles;
use crate::vm::lifecycle::Phase;
use crate::vm::task::{Ask, Delete};
use crate::warnings::Topic;

/// How often the host is looked at.
const PERIOD: Duration = Duration::from_secs(60);

/// Looks after the host for as long as the daemon runs.
#[derive(Debug)]
pub struct Reconciler {
    fleet: Arc<Fleet>,
    /// Slots in which something of a VM without a row may run.
    kept: BTreeMap<u16, SlotHold>,
}

/// A look at the host.
#[derive(Debug)]
struct Seen {
    /// Its processes. `None`: they cannot be looked at.
    look: Option<Arc<Look>>,
    found: Found,
}

impl Reconciler {
    /// A reconciler of the VMs of `fleet`; [`Self::first_pass`] brings them in.
    pub fn new(fleet: Arc<Fleet>) -> Self {
        Self {
            fleet,
            kept: BTreeMap::new(),
        }
    }

    /// Brings in every VM that has a row, or has lost it, after making the host agree with it.
    ///
    /// # Errors
    /// The rows cannot be read.
    pub async fn first_pass(&mut self) -> Result<(), StoreError> {
        first::pass(self).await
    }

    /// Looks after the host every minute, for ever.
    pub async fn keep_agreeing(mut self) {
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            if let Err(error) = self.later_pass().await {
                tracing::warn!(%error, "could not look after the host");
            }
        }
    }

    /// One later look: sweeps strays, has VMs at rest tidy up, takes machines over that could
    /// not be before, tells VMs that their machine is no more, and deletes what has lost its
    /// lease.
    ///
    /// # Errors
    /// The rows cannot be read.
    pub async fn later_pass(&mut self) -> Result<(), StoreError> {
        let fleet = Arc::clone(&self.fleet);
        let host = fleet.host();
        // What changes from here on is not judged by what is seen now.
        let before: Vec<_> = fleet
            .handles()
            .into_iter()
            .map(|vm| (vm.look(|status| (status.row.phase, status.pid)), vm))
            .collect();
        let seen = look(host).await;
        let rows = host.database.vms().await?;
        self.sweep(&rows, &seen.found).await;
        for ((phase, pid), vm) in before {
            let row = vm.look(|status| {
                let same = status.row.phase == phase && status.pid == pid && !status.gone;
                same.then(|| status.row.clone())
            });
            let Some(row) = row else {
                continue;
            };
            let orphaned = row
                .lease
                .as_ref()
                .is_some_and(|lease| !host.leases.is_held(lease));
            if orphaned && row.phase != Phase::Deleting {
                let delete = Ask::Delete(Delete::Once);
                if let Err(error) = vm.ask_because(delete, LEASE_ENDED).await {
                    tracing::warn!(vm = %row.name, %error, "could not delete a VM without lease");
                }
            } else if row.phase.is_at_rest() {
                if diff::has_leftovers(&row, &seen.found) {
                    vm.tidy().await;
                }
            } else if diff::has_machine(row.phase) {
                let machine = seen.presence(host, &row).await;
                match (machine, pid) {
                    (Presence::Absent, None) => vm.lost().await,
                    (Presence::Runs(_), None) => {
                        if let Ok(Some(machine)) = adopt(host, &row, &seen).await {
                            vm.adopt(machine).await;
                        }
                    }
                    // One that is held tells its end itself.
                    (Presence::Runs(_) | Presence::Absent | Presence::Unknown { .. }, _) => {}
                }
            }
        }
        Ok(())
    }

    /// Removes what is of no VM, and keeps what may be of one.
    async fn sweep(&mut self, rows: &Rows, found: &Found) {
        let (strays, doubtful) = diff::without_row(rows, found);
        self.keep(doubtful).await;
        sweep(&self.fleet, strays).await;
        let malformed = rows.malformed.iter().map(|row| {
            format!(
                "the row of VM {} in the database has a malformed {}, and its directory does not \
                 say what it is: the row and all that is the VM's are left alone",
                row.id, row.column
            )
        });
        self.fleet
            .host()
            .warnings
            .set(Topic::Rows, malformed.collect());
    }

    async fn keep(&mut self, doubtful: Doubtful) {
        let host = self.fleet.host();
        let told = doubtful.directories.iter().map(|vm| {
            let directory = host.paths.vms().join(vm.as_str());
            format!(
                "the directory `{}` has no row in the database and does not say which VM it is: \
                 it is left alone, with all that runs of it",
                directory.display()
            )
        });
        host.warnings.set(Topic::Directories, told.collect());
        self.kept.retain(|slot, _| doubtful.slots.contains(slot));
        for slot in doubtful.slots {
            if self.kept.contains_key(&slot) {
                continue;
            }
            match self.fleet.hold_slot(slot).await {
                Ok(hold) => self.kept.extend(hold.map(|hold| (slot, hold))),
                Err(error) => tracing::warn!(%error, slot, "could not hold a slot"),
            }
        }
    }
}

impl Seen {
    /// Whether the machine of `row` runs.
    async fn presence(&self, host: &Host, row: &VmRow) -> Presence {
        let Some(look) = &self.look else {
            return Presence::Unknown { pid: 0 };
        };
        let layout = host.layout(&row.id, row.slot);
        let look = Arc::clone(look);
        crate::blocking(move || {
            look.presence(&layout.place, handles::read(&layout.handles).as_ref())
        })
        .await
    }
}

/// Takes over the machine of `row`, if there is one.
async fn adopt(
    host: &Host,
    row: &VmRow,
    seen: &Seen,
) -> Result<Option<Arc<dyn Machine>>, banger_engine::AdoptError> {
    let Some(look) = seen.look.clone() else {
        let error = io::Error::other("the host's processes cannot be looked at");
        return Err(banger_engine::AdoptError::Processes(error));
    };
    let layout = host.layout(&row.id, row.slot);
    let file = layout.handles.clone();
    let handle = crate::blocking(move || handles::read(&file)).await;
    let machine = banger_engine::adopt(row.engine, &layout.place, handle.as_ref(), &look).await?;
    if let Some(machine) = &machine
        && handle.as_ref() != Some(machine.handle())
    {
        // The file was missing or wrong.
        let handle = machine.handle().clone();
        if let Err(error) = crate::blocking(move || handles::write(&layout.handles, &handle)).await
        {
            tracing::warn!(%error, vm = %row.name, "could not write its handle down");
        }
    }
    Ok(machine)
}

/// Looks at the host. What cannot be looked at is told of and taken as unknown: nothing is
/// removed that was not seen.
async fn look(host: &Arc<Host>) -> Seen {
    let taps = host.network.attached().await.unwrap_or_else(|error| {
        tracing::warn!(%error, "could not look at the network");
        BTreeSet::new()
    });
    let (paths, instance) = (host.paths.clone(), host.instance.clone());
    crate::blocking(move || {
        let look = told("the host's processes", Look::take()).map(Arc::new);
        let directories = told("the VMs' directories", entries(&paths.vms()));
        let runtime_dirs = entries(&paths.runtime.join("vms"));
        Seen {
            found: Found {
                processes: look
                    .as_ref()
                    .map_or_else(Vec::new, |look| look.marked(&instance)),
                taps,
                runtime_dirs: told("the VMs' runtime directories", runtime_dirs)
                    .unwrap_or_default(),
                cgroups: told("the cgroups", process::cgroups(&instance)).unwrap_or_default(),
                directories,
            },
            look,
        }
    })
    .await
}

/// What was found; that it could not be looked at is told.
fn told<T>(what: &str, found: io::Result<T>) -> Option<T> {
    found
        .inspect_err(|error| tracing::warn!(%error, "could not look at {what}"))
        .ok()
}

/// The names in a directory that are of this type; none if there is no such directory.
fn entries<T: FromStr + Ord>(directory: &Path) -> io::Result<BTreeSet<T>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries?,
    };
    let mut found = BTreeSet::new();
    for entry in entries {
        found.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok()),
        );
    }
    Ok(found)
}

async fn sweep(fleet: &Fleet, strays: Strays) {
    for stray in strays.processes {
        tracing::warn!(mark = %stray.mark, pid = stray.process.pid, "ends a stray process");
        if let Err(error) = stray.kill().await {
            tracing::warn!(%error, pid = stray.process.pid, "could not end a stray process");
        }
    }
    for slot in strays.slots {
        // Held, so that no new VM gets the slot while its things are removed.
        let hold = match fleet.hold_slot(slot).await {
            Ok(Some(hold)) => hold,
            Ok(None) => continue,
            Err(error) => {
                tracing::warn!(%error, slot, "could not hold a stray's slot");
                continue;
            }
        };
        tracing::warn!(slot, "removes strays");
        let host = fleet.host();
        if let Err(error) = host.network.detach(slot).await {
            tracing::warn!(%error, slot, "could not remove a stray tap");
        }
        let sockets = host.paths.vm_runtime(slot);
        if let Err(error) = crate::blocking(move || files::remove_directory(&sockets)).await {
            tracing::warn!(%error, slot, "could not remove stray sockets");
        }
        if let Err(error) = process::remove_cgroup(&host.instance, slot).await {
            tracing::warn!(%error, slot, "could not remove a stray cgroup");
        }
        drop(hold);
    }
}

#[cfg(test)]
mod tests;

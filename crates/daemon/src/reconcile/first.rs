//! The first pass: what becomes of each VM when the daemon starts.
//!
//! The host is looked at once, what must be released is released side by side, and what has
//! changed is written down in one transaction, so that a thousand VMs take about a second.

use std::collections::BTreeSet;
use std::sync::Arc;

use banger_engine::process::Presence;
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::id::VmId;
use futures_util::StreamExt as _;

use super::diff::{self, Fate};
use super::{Reconciler, Seen, adopt, look};
use crate::files;
use crate::fleet::Fleet;
use crate::host::Host;
use crate::store::vms::Lost;
use crate::store::{Rows, StoreError, VmRow};
use crate::vm::lifecycle::Phase;
use crate::vm::record;
use crate::vm::take_down::{Extent, Tried, take_down_seen};
use crate::vm::task::Origin;
use crate::warnings::Topic;

/// How many VMs are looked after at once: more would only wait for each other.
const AT_ONCE: usize = 32;

/// A VM after the daemon's start.
#[derive(Debug)]
struct Met {
    row: VmRow,
    /// How it comes in. `None`: it is gone, and its row is to go.
    origin: Option<Origin>,
    /// Whether something of it runs.
    runs: bool,
    /// Whether its row must be written.
    changed: bool,
}

pub(super) async fn pass(reconciler: &mut Reconciler) -> Result<(), StoreError> {
    let fleet = Arc::clone(&reconciler.fleet);
    let host = fleet.host();
    let seen = look(host).await;
    let rows = bring_back(&fleet, host.database.vms().await?, &seen).await?;
    reconciler.sweep(&rows, &seen.found).await;
    let is_all_known = seen.look.is_some() && diff::is_all_known(&rows, &seen.found);

    let met: Vec<Met> = futures_util::stream::iter(rows.vms)
        .map(|row| meet(host, row, &seen))
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let nothing_runs = is_all_known && met.iter().all(|vm| !vm.runs);
    let changed = met.iter().filter(|vm| vm.changed && vm.origin.is_some());
    let changed = changed.map(|vm| vm.row.clone()).collect();
    let gone = met.iter().filter(|vm| vm.origin.is_none());
    let gone = gone.map(|vm| vm.row.id.clone()).collect();
    let settled = host.database.settle(changed, gone).await;
    if let Err(error) = &settled {
        tracing::error!(%error, "could not write down what became of the VMs");
    }
    for Met {
        mut row, origin, ..
    } in met
    {
        match (origin, &settled) {
            (Some(origin), _) => drop(fleet.bring_in(row, origin)),
            (None, Ok(())) => {}
            (None, Err(error)) => {
                row.phase = Phase::Failed;
                let message = format!("could not delete VM `{}`", row.name);
                row.failure = Some(ApiError::new(ErrorKind::Failed, message).caused_by(error));
                fleet.bring_in(row, Origin::AtRest);
            }
        }
    }
    if nothing_runs && let Err(error) = host.network.shut_down().await {
        tracing::warn!(%error, "could not end the network of no VM");
    }
    Ok(())
}

/// Gives VMs whose row is lost or malformed a row again, as their directories say what they
/// are. The rows are those of all VMs then.
async fn bring_back(fleet: &Fleet, rows: Rows, seen: &Seen) -> Result<Rows, StoreError> {
    let host = fleet.host();
    let known: BTreeSet<&VmId> = rows.vms.iter().map(|row| &row.id).collect();
    let directories = seen.found.directories.iter().flatten();
    let without: Vec<VmId> = directories
        .filter(|vm| !known.contains(vm))
        .cloned()
        .collect();
    let mut lost = Vec::new();
    for vm in without {
        let directory = host.paths.vms().join(vm.as_str());
        let Some(record) = crate::blocking(move || record::read(&directory)).await else {
            continue;
        };
        let mut row = record.into_row(Phase::Stopped);
        let machine = seen.presence(host, &row).await;
        if machine != Presence::Absent {
            row.phase = Phase::Running;
        }
        lost.push(Lost {
            may_move: machine == Presence::Absent,
            row,
        });
    }
    if lost.is_empty() {
        return Ok(rows);
    }
    for back in host.database.bring_back(lost, fleet.slots()).await? {
        let text = format!(
            "VM `{}` had lost its row in the database: it was brought back as its own directory \
             describes it",
            back.name
        );
        host.warnings.add(Topic::BroughtBack, text);
    }
    host.database.vms().await
}

/// Does to a VM what the daemon's start means for it.
async fn meet(host: &Host, row: VmRow, seen: &Seen) -> Met {
    let machine = match row.phase.is_at_rest() && !diff::has_leftovers(&row, &seen.found) {
        // Nothing has its mark, and its handle went when it came to rest.
        true => Presence::Absent,
        false => seen.presence(host, &row).await,
    };
    let fate = diff::fate(&row, &machine, diff::has_leftovers(&row, &seen.found));
    tracing::info!(vm = %row.name, phase = row.phase.as_str(), ?fate, "found");
    if fate != Fate::Remove {
        keep_record(host, &row).await;
    }
    match fate {
        Fate::Remove => release(host, row, None, seen).await,
        Fate::TakeDown(phase) => release(host, row, Some(phase), seen).await,
        Fate::Keep => match machine {
            Presence::Unknown { pid } if !row.phase.is_at_rest() => {
                unreached(row, &banger_engine::AdoptError::Unknown { pid })
            }
            _ => Met {
                row,
                origin: Some(Origin::AtRest),
                runs: false,
                changed: false,
            },
        },
        Fate::Adopt => match adopt(host, &row, seen).await {
            Ok(Some(machine)) => Met {
                row,
                origin: Some(Origin::Adopted(machine)),
                runs: true,
                changed: false,
            },
            Ok(None) => release(host, row, Some(Phase::Stopped), seen).await,
            Err(error) => unreached(row, &error),
        },
    }
}

/// A VM whose machine may run and cannot be taken over now. Ending it is not ours to decide:
/// it stays as it is, can be stopped and deleted, and later passes try again.
fn unreached(mut row: VmRow, error: &banger_engine::AdoptError) -> Met {
    tracing::error!(%error, vm = %row.name, "could not take over");
    let message = format!("could not take over VM `{}`", row.name);
    let failure = ApiError::new(ErrorKind::Unavailable, message)
        .caused_by(error)
        .with_hint(format!(
            "banger tries again every minute; `banger vm stop {}` ends it in any case",
            row.name
        ));
    row.failure = Some(failure);
    if row.phase.is_busy() {
        // Nobody is at work on it any more, and it may run.
        row.phase = Phase::Running;
    }
    Met {
        row,
        origin: Some(Origin::AtRest),
        runs: true,
        changed: true,
    }
}

/// Releases what runs of a VM, which rests in `rest_in` then, or all of it.
async fn release(host: &Host, mut row: VmRow, rest_in: Option<Phase>, seen: &Seen) -> Met {
    let extent = match rest_in {
        Some(_) => Extent::Running,
        None => Extent::Everything,
    };
    let layout = host.layout(&row.id, row.slot);
    let released = take_down_seen(host, &layout, row.engine, extent, seen.look.as_deref()).await;
    let (released, phase) = match (released, rest_in) {
        (Ok(()), None) => {
            return Met {
                row,
                origin: None,
                runs: false,
                changed: false,
            };
        }
        (Ok(()), Some(phase)) => (Ok(()), phase),
        (Err(left_over), _) => (Err(left_over), Phase::Failed),
    };
    let was = std::mem::replace(&mut row.phase, phase);
    if phase == Phase::Stopped && !was.is_at_rest() {
        row.reason = Some("it ended while no daemon ran".to_owned());
    }
    if was == Phase::Starting {
        let message = format!("could not start VM `{}`", row.name);
        let mut error = ApiError::new(ErrorKind::Failed, message)
            .with_hint(format!("`banger vm start {}` starts it anew", row.name));
        error
            .causes
            .push("the daemon ended in the middle of it".to_owned());
        row.failure = Some(error);
    }
    let runs = released.is_err();
    if let Err(left_over) = released {
        let tried = match rest_in {
            Some(_) => Tried::Stop,
            None => Tried::Delete,
        };
        row.failure = Some(left_over.to_api("clean up", tried, &row.name));
    }
    Met {
        row,
        origin: Some(Origin::AtRest),
        runs,
        changed: true,
    }
}

/// Sees to it that the VM's directory says what its row does, and that nothing half-written
/// is left in it.
async fn keep_record(host: &Host, row: &VmRow) {
    let (layout, row) = (host.layout(&row.id, row.slot), row.clone());
    let kept = crate::blocking(move || {
        // Without disks there is nothing to bring back.
        if !layout.work_disk.exists() || !layout.system_disk.exists() {
            return Ok(());
        }
        files::remove_drafts(&layout.directory)?;
        record::refresh(&layout, &row)
    });
    if let Err(error) = kept.await {
        tracing::warn!(%error, "could not keep a VM's record");
    }
}

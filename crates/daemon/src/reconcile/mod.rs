//! Makes rows and host agree: when the daemon starts, before its socket is served, and then
//! every minute.
//!
//! At the start no VM has an owner yet, so this adopts, releases and removes by itself. Later
//! it only sweeps what belongs to no VM, and has owners tidy up.

pub mod diff;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use banger_engine::process::marked;
use banger_proto::error::{ApiError, ErrorKind};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use self::diff::{Fate, Found, Strays};
use crate::files;
use crate::fleet::Fleet;
use crate::host::Host;
use crate::store::{StoreError, VmRow};
use crate::vm::handles;
use crate::vm::lifecycle::Phase;
use crate::vm::plan::Layout;
use crate::vm::take_down::{Extent, take_down};
use crate::vm::task::{Ask, Origin};

/// How often the host is looked at.
const PERIOD: Duration = Duration::from_secs(60);

/// Brings in every VM that has a row, after making the host agree with it.
///
/// # Errors
/// The rows cannot be read.
pub async fn first_pass(fleet: &Arc<Fleet>) -> Result<(), StoreError> {
    let host = fleet.host();
    let found = look(host).await;
    let rows = host.database.vms().await?;
    for vm in &diff::strays(&rows, &found).directories {
        tracing::warn!(%vm, "a VM's directory has no row in the database: it is left alone");
    }
    sweep(fleet, diff::strays(&rows, &found)).await;
    let mut fates = JoinSet::new();
    for row in rows {
        let (fleet, fate) = (Arc::clone(fleet), diff::fate(&row, &found));
        fates.spawn(async move { meet(&fleet, row, fate).await });
    }
    let adopted = fates
        .join_all()
        .await
        .into_iter()
        .filter(|adopted| *adopted)
        .count();
    if adopted == 0
        && let Err(error) = host.network.shut_down().await
    {
        tracing::warn!(%error, "could not end the network of no VM");
    }
    Ok(())
}

/// Looks after the host every minute, for ever.
pub async fn keep_agreeing(fleet: Arc<Fleet>) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        if let Err(error) = later_pass(&fleet).await {
            tracing::warn!(%error, "could not look after the host");
        }
    }
}

/// One later look: sweeps strays, has VMs at rest tidy up, and deletes what has lost its lease.
///
/// # Errors
/// The rows cannot be read.
pub async fn later_pass(fleet: &Fleet) -> Result<(), StoreError> {
    let found = look(fleet.host()).await;
    let rows = fleet.host().database.vms().await?;
    sweep(fleet, diff::strays(&rows, &found)).await;
    for handle in fleet.handles() {
        let row = handle.look(|status| status.row.clone());
        let orphaned = row
            .lease
            .as_ref()
            .is_some_and(|lease| !fleet.host().leases.is_held(lease));
        if orphaned && row.phase != Phase::Deleting {
            if let Err(error) = handle.ask(Ask::Delete, None).await {
                tracing::warn!(vm = %row.name, %error, "could not delete a VM without lease");
            }
        } else if row.phase.is_at_rest() && diff::has_leftovers(&row, &found) {
            handle.tidy().await;
        }
    }
    Ok(())
}

/// Looks at the host. What cannot be looked at is told of and taken as empty: nothing is
/// removed that was not seen.
async fn look(host: &Arc<Host>) -> Found {
    let taps = host.network.attached().await.unwrap_or_else(|error| {
        tracing::warn!(%error, "could not look at the network");
        BTreeSet::new()
    });
    let paths = host.paths.clone();
    crate::blocking(move || Found {
        processes: marked(&paths.instance()).unwrap_or_else(|error| {
            tracing::warn!(%error, "could not look at the host's processes");
            Vec::new()
        }),
        taps,
        runtime_dirs: entries(&paths.runtime.join("vms")),
        directories: entries(&paths.vms()),
    })
    .await
}

/// The names in a directory that are of this type.
fn entries<T: FromStr + Ord>(directory: &Path) -> BTreeSet<T> {
    let Ok(entries) = fs::read_dir(directory) else {
        return BTreeSet::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

async fn sweep(fleet: &Fleet, strays: Strays) {
    for process in strays.processes {
        tracing::warn!(mark = %process.mark, pid = process.process.pid, "ends a stray process");
        if let Err(error) = process.kill().await {
            tracing::warn!(%error, pid = process.process.pid, "could not end a stray process");
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
        drop(hold);
    }
}

/// Does to a VM what the daemon's start means for it, and brings it in. Says whether its
/// machine runs.
async fn meet(fleet: &Fleet, mut row: VmRow, fate: Fate) -> bool {
    tracing::info!(vm = %row.name, phase = row.phase.as_str(), ?fate, "found");
    let host = fleet.host();
    let layout = Layout::of(&host.paths, &row.id, row.slot);
    let rest_in = match fate {
        Fate::Keep => {
            fleet.bring_in(row, Origin::AtRest);
            return false;
        }
        Fate::Adopt => match adopt(&row, &layout).await {
            // It cannot be asked to go on with its stop.
            Adoption::Runs(Origin::AtRest)
                if matches!(row.phase, Phase::Stopping | Phase::Restarting) =>
            {
                Some(Phase::Stopped)
            }
            Adoption::Runs(origin) => {
                fleet.bring_in(row, origin);
                return true;
            }
            Adoption::Ended => Some(Phase::Stopped),
        },
        Fate::TakeDown(phase) => Some(phase),
        Fate::Remove => None,
    };
    let extent = match rest_in {
        Some(_) => Extent::Running,
        None => Extent::Everything,
    };
    let released = take_down(host, &layout, row.engine, extent).await;
    if released.is_ok() && rest_in.is_none() {
        match host.database.remove_vm(row.id.clone()).await {
            Ok(()) => return false,
            Err(error) => tracing::error!(%error, vm = %row.name, "could not remove the row"),
        }
    }
    let was = row.phase;
    row.phase = rest_in.unwrap_or(Phase::Failed);
    if was == Phase::Starting {
        let message = format!("could not start VM `{}`", row.name);
        let mut error = ApiError::new(ErrorKind::Failed, message)
            .with_hint(format!("`banger vm start {}` starts it anew", row.name));
        error
            .causes
            .push("the daemon ended in the middle of it".to_owned());
        row.failure = Some(error);
    }
    if let Err(left_over) = released {
        row.phase = Phase::Failed;
        row.failure = Some(left_over.to_api("clean up", &row.name));
    }
    if let Err(error) = host.database.update_vm(row.clone()).await {
        tracing::error!(%error, vm = %row.name, "could not write the phase down");
    }
    fleet.bring_in(row, Origin::AtRest);
    false
}

enum Adoption {
    Runs(Origin),
    Ended,
}

async fn adopt(row: &VmRow, layout: &Layout) -> Adoption {
    let file = layout.handles.clone();
    let handle = crate::blocking(move || handles::read(&file)).await;
    match banger_engine::adopt(row.engine, &layout.place, handle.as_ref()).await {
        Ok(Some(machine)) => {
            // The file may have been missing or wrong.
            let (file, handle) = (layout.handles.clone(), machine.handle().clone());
            if let Err(error) = crate::blocking(move || handles::write(&file, &handle)).await {
                tracing::warn!(%error, vm = %row.name, "could not write its handle down");
            }
            Adoption::Runs(Origin::Adopted(machine))
        }
        Ok(None) => Adoption::Ended,
        Err(error) => {
            // Its process may run, and ending it is not ours to decide. It can be stopped and
            // deleted, but not reached.
            tracing::error!(%error, vm = %row.name, "could not adopt");
            Adoption::Runs(Origin::AtRest)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::Faults;
    use crate::host::Surroundings;
    use crate::store::vms::tests::row;
    use crate::store::{NewVm, vms::HeldSlots};
    use banger_config::{Config, Paths};
    use banger_engine::Mark;
    use banger_proto::id::{LeaseId, VmId};
    use std::process::Command;

    fn fleet(home: &Path) -> Arc<Fleet> {
        let paths = Paths {
            config: home.join("config"),
            state: home.join("state"),
            cache: home.join("cache"),
            runtime: home.join("run"),
        };
        let surroundings = Surroundings {
            agent: "/nonexistent".into(),
            fake_allowed: true,
            faults: Faults::default(),
        };
        Arc::new(Fleet::new(Arc::new(
            Host::new(paths, Config::default(), surroundings).unwrap(),
        )))
    }

    async fn insert(fleet: &Fleet, change: impl FnOnce(&mut VmRow)) -> VmRow {
        let mut row = row("x");
        row.phase = Phase::Stopped;
        change(&mut row);
        let new = NewVm { name: None, row };
        let database = &fleet.host().database;
        database
            .insert_vm(new, 9, HeldSlots::default())
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn a_later_look_sweeps_strays_tidies_and_deletes_what_lost_its_lease() {
        let home = tempfile::Builder::new()
            .prefix("bgr")
            .tempdir_in("/tmp")
            .unwrap();
        let fleet = fleet(home.path());
        let paths = fleet.host().paths.clone();
        let stopped = insert(&fleet, |_| {}).await;
        let leftover = paths.vm_runtime(stopped.slot);
        files::make_private_directory(&leftover).unwrap();
        let stopped = fleet.bring_in(stopped, Origin::AtRest);
        let leased = insert(&fleet, |row| row.lease = Some(LeaseId::new())).await;
        let leased = fleet.bring_in(leased, Origin::AtRest);
        let stray_slot = paths.vm_runtime(7);
        files::make_private_directory(&stray_slot).unwrap();
        let mark = Mark {
            instance: paths.instance(),
            slot: 7,
            vm: VmId::new(),
        };
        let mut stray = Command::new("sleep")
            .arg("60")
            .env(Mark::VARIABLE, mark.to_string())
            .spawn()
            .unwrap();

        later_pass(&fleet).await.unwrap();
        // What owners were asked to do is done when they have no work any more.
        fleet.quiesce().await;
        leased.gone().await;

        assert!(!stray.wait().unwrap().success(), "it was killed");
        assert!(!stray_slot.exists() && !leftover.exists());
        let left: Vec<VmId> = fleet.handles().iter().map(|vm| vm.id()).collect();
        assert_eq!(left, [stopped.id()]);
    }
}

//! What to do about what the rows say and the host shows. Pure: no I/O.

use std::collections::BTreeSet;

use banger_engine::process::{Marked, Presence};
use banger_proto::id::VmId;

use crate::store::{Rows, VmRow};
use crate::vm::lifecycle::Phase;

/// What the host shows of this instance, but for machines: whether one runs is a question of
/// its own ([`Presence`]).
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Processes with this instance's mark.
    pub processes: Vec<Marked>,
    /// Slots that have a tap.
    pub taps: BTreeSet<u16>,
    /// Slots that have a directory for sockets.
    pub runtime_dirs: BTreeSet<u16>,
    /// Slots that have a cgroup.
    pub cgroups: BTreeSet<u16>,
    /// VMs that have a directory. `None`: that cannot be told.
    pub directories: Option<BTreeSet<VmId>>,
}

impl Found {
    /// Slots that have something, of one kind or several.
    fn slots(&self) -> impl Iterator<Item = u16> {
        let kinds = [&self.taps, &self.runtime_dirs, &self.cgroups];
        kinds.into_iter().flatten().copied()
    }
}

/// What becomes of a VM when the daemon starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Its machine runs: the daemon takes it over, and goes on with its stop if one had begun.
    /// If it has ended meanwhile: as [`Fate::TakeDown`], to stopped.
    Adopt,
    /// What runs of it is released, and it enters the phase.
    TakeDown(Phase),
    /// All of it is released, and its row goes.
    Remove,
    /// It stays as its row says. It is at rest, or what runs of it cannot be told; then it is
    /// looked at again later.
    Keep,
}

/// What becomes of the VM of `row` when the daemon starts. What cannot be told is never a
/// reason to take anything down.
pub fn fate(row: &VmRow, machine: &Presence, has_leftovers: bool) -> Fate {
    if row.lease.is_some() {
        // Leases end with the daemon that granted them.
        return Fate::Remove;
    }
    match row.phase {
        Phase::Creating | Phase::Deleting => Fate::Remove,
        Phase::Starting => Fate::TakeDown(Phase::Failed),
        Phase::Running
        | Phase::Pausing
        | Phase::Paused
        | Phase::Resuming
        | Phase::Stopping
        | Phase::Restarting => match machine {
            Presence::Runs(_) => Fate::Adopt,
            Presence::Absent => Fate::TakeDown(Phase::Stopped),
            Presence::Unknown { .. } => Fate::Keep,
        },
        Phase::Created | Phase::Stopped | Phase::Failed => match machine {
            Presence::Unknown { .. } => Fate::Keep,
            Presence::Absent if !has_leftovers => Fate::Keep,
            Presence::Absent | Presence::Runs(_) => Fate::TakeDown(row.phase),
        },
    }
}

/// Whether a VM in `phase` should have a machine that its owner is not at work on.
pub fn has_machine(phase: Phase) -> bool {
    matches!(phase, Phase::Running | Phase::Paused)
}

/// Whether something of a VM at rest is still on the host.
pub fn has_leftovers(row: &VmRow, found: &Found) -> bool {
    found
        .processes
        .iter()
        .any(|process| process.mark.vm == row.id)
        || found.slots().any(|slot| slot == row.slot)
}

/// What carries this instance's marks and belongs to no VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strays {
    /// Processes to be ended.
    pub processes: Vec<Marked>,
    /// Slots whose tap, sockets and cgroup are to be removed.
    pub slots: BTreeSet<u16>,
}

/// What carries this instance's marks and may belong to a VM that has no row, or one that
/// cannot be read: it is left alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doubtful {
    /// Directories of VMs without a row. They hold someone's disks, and the row may have been
    /// lost with the database: they are told of and never removed.
    pub directories: BTreeSet<VmId>,
    /// Slots that may be in use. No new VM gets one of them.
    pub slots: BTreeSet<u16>,
}

/// What among `found` is of no VM, and what may be of one that has no row. The rows must have
/// been read after the host was looked at: a VM has its row before it has anything else.
pub fn without_row(rows: &Rows, found: &Found) -> (Strays, Doubtful) {
    let vms: BTreeSet<&VmId> = rows.vms.iter().map(|row| &row.id).collect();
    let malformed: BTreeSet<&str> = rows.malformed.iter().map(|row| row.id.as_str()).collect();
    let mut known: BTreeSet<u16> = rows.vms.iter().map(|row| row.slot).collect();
    known.extend(rows.malformed.iter().filter_map(|row| row.slot));
    let has_row = |vm: &VmId| vms.contains(vm) || malformed.contains(vm.as_str());
    let is_doubtful = |process: &Marked| match &found.directories {
        Some(directories) => {
            directories.contains(&process.mark.vm) || known.contains(&process.mark.slot)
        }
        None => true,
    };

    let without: Vec<&Marked> = found
        .processes
        .iter()
        .filter(|process| !has_row(&process.mark.vm))
        .collect();
    let doubtful = Doubtful {
        directories: found
            .directories
            .iter()
            .flatten()
            .filter(|vm| !has_row(vm))
            .cloned()
            .collect(),
        slots: without
            .iter()
            .filter(|process| is_doubtful(process))
            .map(|process| process.mark.slot)
            .filter(|slot| !known.contains(slot))
            .collect(),
    };
    let strays = Strays {
        processes: without
            .iter()
            .filter(|process| !is_doubtful(process))
            .map(|process| (*process).clone())
            .collect(),
        slots: found
            .slots()
            .filter(|slot| !known.contains(slot) && !doubtful.slots.contains(slot))
            .collect(),
    };
    (strays, doubtful)
}

/// Whether all that may run is of a VM with a row that can be read, or is a stray.
pub fn is_all_known(rows: &Rows, found: &Found) -> bool {
    let (strays, _) = without_row(rows, found);
    let has_owner = |process: &Marked| {
        rows.vms.iter().any(|row| row.id == process.mark.vm) || strays.processes.contains(process)
    };
    rows.malformed.is_empty() && found.processes.iter().all(has_owner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MalformedRow;
    use crate::store::vms::tests::row;
    use banger_engine::Mark;
    use banger_engine::process::ProcessId;
    use banger_proto::id::LeaseId;
    use std::fmt::Write as _;

    fn process(vm: &VmId, slot: u16) -> Marked {
        Marked {
            mark: Mark {
                instance: "1f2e0000000000000000000000000000".parse().unwrap(),
                slot,
                vm: vm.clone(),
            },
            process: ProcessId {
                pid: 1,
                start_time: 1,
                boot_id: String::new(),
            },
        }
    }

    #[test]
    fn every_phase_has_its_fate() {
        let mut table = String::new();
        for phase in Phase::ALL {
            for leased in [false, true] {
                let mut row = row("a");
                row.phase = phase;
                row.lease = leased.then(LeaseId::new);
                let machine = process(&row.id, 1).process;
                writeln!(
                    table,
                    "{:<9} leased {leased:<5} nothing: {:?}, tap: {:?}, machine: {:?}, unknown: {:?}",
                    phase.as_str(),
                    fate(&row, &Presence::Absent, false),
                    fate(&row, &Presence::Absent, true),
                    fate(&row, &Presence::Runs(machine), true),
                    fate(&row, &Presence::Unknown { pid: 1 }, true),
                )
                .unwrap();
            }
        }
        insta::assert_snapshot!(table);
    }

    #[test]
    fn only_what_belongs_to_no_vm_is_a_stray() {
        let mut known = row("a");
        known.slot = 3;
        let rows = Rows {
            vms: vec![known.clone()],
            malformed: Vec::new(),
        };
        let stranger = VmId::new();
        let found = Found {
            processes: vec![process(&known.id, 3), process(&stranger, 4)],
            taps: [3, 5].into(),
            runtime_dirs: [3, 6].into(),
            cgroups: [3, 7].into(),
            directories: Some([known.id].into()),
        };
        let (strays, doubtful) = without_row(&rows, &found);
        assert_eq!(strays.processes, [process(&stranger, 4)]);
        assert_eq!(strays.slots, [5, 6, 7].into());
        assert_eq!(doubtful, Doubtful::default());
        assert!(is_all_known(&rows, &found));
    }

    #[test]
    fn what_may_be_of_a_vm_whose_row_is_lost_or_malformed_is_left_alone() {
        let (lost, odd) = (VmId::new(), VmId::new());
        let rows = Rows {
            vms: Vec::new(),
            malformed: vec![MalformedRow {
                id: odd.to_string(),
                slot: Some(5),
                column: "phase",
            }],
        };
        let mut found = Found {
            processes: vec![process(&lost, 4), process(&odd, 5)],
            taps: [4, 5].into(),
            runtime_dirs: [4, 5].into(),
            cgroups: [4, 5].into(),
            directories: Some([lost.clone(), odd].into()),
        };
        let (strays, doubtful) = without_row(&rows, &found);
        assert_eq!(strays, Strays::default());
        assert_eq!(doubtful.directories, [lost].into());
        assert_eq!(doubtful.slots, [4].into());
        assert!(!is_all_known(&rows, &found));
        assert!(!is_all_known(&Rows::default(), &found));
        let only_the_row = Found::default();
        assert!(!is_all_known(&rows, &only_the_row));

        // Nobody can tell which VMs there are: nothing is a stray.
        found.directories = None;
        let (strays, doubtful) = without_row(&Rows::default(), &found);
        assert_eq!(strays, Strays::default());
        assert_eq!(doubtful.slots, [4, 5].into());
    }
}

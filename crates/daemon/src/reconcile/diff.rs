//! What to do about what the rows say and the host shows. Pure: no I/O.

use std::collections::BTreeSet;

use banger_engine::process::Marked;
use banger_proto::id::VmId;

use crate::store::VmRow;
use crate::vm::lifecycle::Phase;

/// What the host shows of this instance.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Processes with this instance's mark.
    pub processes: Vec<Marked>,
    /// Slots that have a tap.
    pub taps: BTreeSet<u16>,
    /// Slots that have a directory for sockets.
    pub runtime_dirs: BTreeSet<u16>,
    /// VMs that have a directory.
    pub directories: BTreeSet<VmId>,
}

/// What becomes of a VM when the daemon starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Its machine runs: the daemon takes it over, and goes on with its stop if one had begun. If it has ended meanwhile: as
    /// [`Fate::TakeDown`], to stopped.
    Adopt,
    /// What runs of it is released, and it enters the phase.
    TakeDown(Phase),
    /// All of it is released, and its row goes.
    Remove,
    /// It is at rest and has nothing on the host.
    Keep,
}

/// What becomes of the VM of `row` when the daemon starts.
pub fn fate(row: &VmRow, found: &Found) -> Fate {
    if row.lease.is_some() {
        // Leases end with the daemon that granted them.
        return Fate::Remove;
    }
    let runs = found
        .processes
        .iter()
        .any(|process| process.mark.vm == row.id);
    match row.phase {
        Phase::Creating | Phase::Deleting => Fate::Remove,
        Phase::Running
        | Phase::Pausing
        | Phase::Paused
        | Phase::Resuming
        | Phase::Stopping
        | Phase::Restarting => match runs {
            true => Fate::Adopt,
            false => Fate::TakeDown(Phase::Stopped),
        },
        Phase::Starting => Fate::TakeDown(Phase::Failed),
        Phase::Created | Phase::Stopped | Phase::Failed if has_leftovers(row, found) => {
            Fate::TakeDown(row.phase)
        }
        Phase::Created | Phase::Stopped | Phase::Failed => Fate::Keep,
    }
}

/// Whether something of a VM at rest is still on the host.
pub fn has_leftovers(row: &VmRow, found: &Found) -> bool {
    found
        .processes
        .iter()
        .any(|process| process.mark.vm == row.id)
        || found.taps.contains(&row.slot)
        || found.runtime_dirs.contains(&row.slot)
}

/// What carries this instance's marks and belongs to no VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strays {
    /// Processes to be ended.
    pub processes: Vec<Marked>,
    /// Slots whose tap and sockets are to be removed.
    pub slots: BTreeSet<u16>,
    /// Directories of VMs without a row. They hold someone's disks, and the row may have been
    /// lost with the database: they are told of and never removed.
    pub directories: BTreeSet<VmId>,
}

/// The strays among what was found. The rows must have been read after the host was looked
/// at: a VM has its row before it has anything else.
pub fn strays(rows: &[VmRow], found: &Found) -> Strays {
    let vms: BTreeSet<&VmId> = rows.iter().map(|row| &row.id).collect();
    let slots: BTreeSet<u16> = rows.iter().map(|row| row.slot).collect();
    Strays {
        processes: found
            .processes
            .iter()
            .filter(|process| !vms.contains(&process.mark.vm))
            .cloned()
            .collect(),
        slots: found
            .taps
            .union(&found.runtime_dirs)
            .filter(|slot| !slots.contains(slot))
            .copied()
            .collect(),
        directories: found
            .directories
            .iter()
            .filter(|vm| !vms.contains(vm))
            .cloned()
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::vms::tests::row;
    use banger_engine::Mark;
    use banger_engine::process::ProcessId;
    use banger_proto::id::LeaseId;
    use std::fmt::Write as _;

    fn process(vm: &VmId, slot: u16) -> Marked {
        Marked {
            mark: Mark {
                instance: "1f2e".to_owned(),
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
                let nothing = Found::default();
                let running = Found {
                    processes: vec![process(&row.id, 1)],
                    ..Found::default()
                };
                let tap = Found {
                    taps: [1].into(),
                    ..Found::default()
                };
                writeln!(
                    table,
                    "{:<9} leased {leased:<5} nothing: {:?}, tap: {:?}, machine: {:?}",
                    phase.as_str(),
                    fate(&row, &nothing),
                    fate(&row, &tap),
                    fate(&row, &running),
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
        let stranger = VmId::new();
        let found = Found {
            processes: vec![process(&known.id, 3), process(&stranger, 4)],
            taps: [3, 5].into(),
            runtime_dirs: [3, 6].into(),
            directories: [known.id.clone(), stranger.clone()].into(),
        };
        let strays = strays(&[known], &found);
        assert_eq!(strays.processes, [process(&stranger, 4)]);
        assert_eq!(strays.slots, [5, 6].into());
        assert_eq!(strays.directories, [stranger].into());
    }
}

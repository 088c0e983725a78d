//! Whose the things of an instance are, as the rows say. Pure: no I/O.

use std::collections::BTreeMap;

use banger_proto::api::EngineKind;
use banger_proto::doctor::{Thing, ThingKind};
use banger_proto::id::VmId;

use super::look::{Role, Sight};
use crate::store::{Rows, VmRow};

/// VMs that have a directory and no row.
pub type Lost = BTreeMap<VmId, Rowless>;

/// What a daemon does about such a VM when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rowless {
    /// Its directory says what it is: it gets its row again.
    ComesBack,
    /// Nobody can tell what it is: it is left alone, with all that runs of it.
    LeftAlone,
}

impl Rowless {
    /// What to do about something that is such a VM's.
    pub fn fix(self, left_alone: &str) -> String {
        match self {
            Self::ComesBack => {
                "its VM has lost its row; `banger daemon restart` brings it back".to_owned()
            }
            Self::LeftAlone => format!(
                "nobody can tell which VM it is of, so banger leaves it alone: {left_alone}"
            ),
        }
    }
}

/// The VM without a row that runs in a slot.
pub fn lost_in_slot(sight: &Sight, lost: &Lost, slot: u16) -> Option<Rowless> {
    let marks = sight
        .processes
        .values()
        .filter_map(|seen| match &seen.role {
            Role::Marked(mark) => Some(mark),
            Role::Daemon | Role::Network => None,
        });
    let mut of_slot = marks.filter(|mark| mark.slot == slot);
    of_slot.find_map(|mark| lost.get(&mark.vm).copied())
}

/// Who has what is not in files.
pub fn judge(sight: &Sight, rows: &Rows, lost: &Lost) -> Vec<Thing> {
    let mut things = Vec::new();
    for (pid, seen) in &sight.processes {
        let owner = match &seen.role {
            Role::Daemon => Ok("the daemon".to_owned()),
            Role::Network => network_owner(rows),
            Role::Marked(mark) => {
                let row = rows.vms.iter().find(|row| row.id == mark.vm);
                let malformed = rows.malformed.iter().any(|row| row.id == mark.vm.as_str());
                match row {
                    Some(row) => active(row),
                    None if malformed => Ok(format!("VM {}, whose row is malformed", mark.vm)),
                    None => match lost.get(&mark.vm) {
                        Some(rowless) => {
                            let words = format!(
                                "look at what is in its directory, {}, then: kill {pid}",
                                mark.vm
                            );
                            things.push(thing(
                                ThingKind::Process,
                                format!("{pid}: {}", seen.command),
                                Err(rowless.fix(&words)),
                            ));
                            continue;
                        }
                        None => Err("no VM has its mark".to_owned()),
                    },
                }
            }
        };
        things.push(thing(
            ThingKind::Process,
            format!("{pid}: {}", seen.command),
            owner.map_err(|why| format!("{why}; a running daemon ends it: `banger daemon start`")),
        ));
    }
    for namespace in &sight.namespaces {
        let owner = network_owner(rows);
        let fix = |why| format!("{why}; it goes with the processes in it");
        things.push(thing(
            ThingKind::Namespace,
            namespace.clone(),
            owner.map_err(fix),
        ));
    }
    for slot in &sight.taps {
        let owner = in_slot_or_fix(sight, rows, lost, *slot);
        things.push(thing(ThingKind::Tap, format!("of slot {slot}"), owner));
    }
    for (slot, path) in &sight.cgroups {
        let owner = in_slot_or_fix(sight, rows, lost, *slot);
        things.push(thing(ThingKind::Cgroup, path.clone(), owner));
    }
    for interface in &sight.interfaces {
        let fix = "banger's devices are in a namespace of its own; as root: ip link delete";
        things.push(thing(
            ThingKind::Interface,
            interface.clone(),
            Err(format!("{fix} {interface}")),
        ));
    }
    for mount in &sight.mounts {
        let fix = "banger mounts nothing on the host; as root: umount";
        things.push(thing(
            ThingKind::Mount,
            mount.clone(),
            Err(format!("{fix} {mount}")),
        ));
    }
    things
}

/// Whose something is that runs in a slot, or what to do about it.
fn in_slot_or_fix(sight: &Sight, rows: &Rows, lost: &Lost, slot: u16) -> Result<String, String> {
    let owner = match in_slot(rows, slot) {
        Some(Owner::Vm(row)) => active(row),
        Some(Owner::Malformed(id)) => Ok(id),
        None => match lost_in_slot(sight, lost, slot) {
            Some(rowless) => {
                return Err(rowless.fix("it goes after the process in its slot"));
            }
            None => Err("no VM has its slot".to_owned()),
        },
    };
    owner.map_err(|why| format!("{why}; a running daemon removes it: `banger daemon start`"))
}

/// Who has a slot.
pub enum Owner<'a> {
    /// This VM.
    Vm(&'a VmRow),
    /// A VM whose row cannot be read, in words.
    Malformed(String),
}

/// Who has the slot.
pub fn in_slot(rows: &Rows, slot: u16) -> Option<Owner<'_>> {
    let vm = rows.vms.iter().find(|row| row.slot == slot);
    let malformed = rows.malformed.iter().find(|row| row.slot == Some(slot));
    vm.map(Owner::Vm).or_else(|| {
        malformed.map(|row| Owner::Malformed(format!("VM {}, whose row is malformed", row.id)))
    })
}

/// The VM as the owner of something that runs, or why it is not.
pub fn active(row: &VmRow) -> Result<String, String> {
    match row.phase.is_at_rest() {
        false => Ok(of_vm(row)),
        true => Err(format!(
            "VM `{}` is {}, and nothing of it may run",
            row.name,
            row.phase.state()
        )),
    }
}

/// The VM as an owner.
pub fn of_vm(row: &VmRow) -> String {
    format!("VM `{}`", row.name)
}

/// A thing, with its owner or what to do about it.
pub fn thing(kind: ThingKind, name: String, owner: Result<String, String>) -> Thing {
    let (owner, fix) = match owner {
        Ok(owner) => (Some(owner), None),
        Err(fix) => (None, Some(fix)),
    };
    Thing {
        kind,
        name,
        owner,
        fix,
    }
}

/// The network is there as long as a VM may be on it.
pub fn network_owner(rows: &Rows) -> Result<String, String> {
    let on_it = |row: &&VmRow| row.engine != EngineKind::Fake && !row.phase.is_at_rest();
    match rows.vms.iter().find(on_it) {
        Some(_) => Ok("the network of running VMs".to_owned()),
        None if !rows.malformed.is_empty() => Ok("the network, for malformed rows".to_owned()),
        None => Err("no VM runs that could be on the network".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leaks::look::Seen;
    use crate::store::vms::tests::row;
    use crate::vm::lifecycle::Phase;
    use banger_engine::Mark;

    #[test]
    fn what_runs_belongs_to_a_vm_that_does_and_all_else_is_left_over() {
        let with = |name: &str, slot, phase| VmRow {
            slot,
            phase,
            engine: EngineKind::Qemu,
            ..row(name)
        };
        let rows = Rows {
            vms: vec![
                with("up", 1, Phase::Running),
                with("down", 2, Phase::Stopped),
            ],
            malformed: Vec::new(),
        };
        let marked = |vm: &VmId, slot| Seen {
            role: Role::Marked(Mark {
                instance: "1f2e0000000000000000000000000000".parse().unwrap(),
                slot,
                vm: vm.clone(),
            }),
            command: "qemu".to_owned(),
        };
        let [back, alone]: [VmId; 2] = ["b", "a"].map(|digit| digit.repeat(32).parse().unwrap());
        let lost = Lost::from([
            (back.clone(), Rowless::ComesBack),
            (alone.clone(), Rowless::LeftAlone),
        ]);
        let sight = Sight {
            processes: [
                (1, marked(&rows.vms[0].id, 1)),
                (2, marked(&rows.vms[1].id, 2)),
                (3, marked(&VmId::new(), 3)),
                (5, marked(&back, 5)),
                (6, marked(&alone, 6)),
                (
                    4,
                    Seen {
                        role: Role::Network,
                        command: "bangerd net-holder".to_owned(),
                    },
                ),
            ]
            .into(),
            taps: [1, 2, 3, 5, 6].into(),
            cgroups: [1, 3].map(|slot| (slot, format!("/c/x-{slot}"))).into(),
            interfaces: vec!["bgr-1f2e-1".to_owned()],
            namespaces: ["net:[1]".to_owned()].into(),
            mounts: vec!["/h/state/vms/x".to_owned()],
        };
        let table = |things: Vec<Thing>| -> String {
            things
                .into_iter()
                .map(|thing| {
                    let verdict = thing.owner.or(thing.fix).unwrap();
                    format!("{} {} -> {verdict}\n", thing.kind.as_str(), thing.name)
                })
                .collect()
        };
        insta::assert_snapshot!(table(judge(&sight, &rows, &lost)), @"
        process 1: qemu -> VM `up`
        process 2: qemu -> VM `down` is stopped, and nothing of it may run; a running daemon ends it: `banger daemon start`
        process 3: qemu -> no VM has its mark; a running daemon ends it: `banger daemon start`
        process 4: bangerd net-holder -> the network of running VMs
        process 5: qemu -> its VM has lost its row; `banger daemon restart` brings it back
        process 6: qemu -> nobody can tell which VM it is of, so banger leaves it alone: look at what is in its directory, aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa, then: kill 6
        namespace net:[1] -> the network of running VMs
        tap of slot 1 -> VM `up`
        tap of slot 2 -> VM `down` is stopped, and nothing of it may run; a running daemon removes it: `banger daemon start`
        tap of slot 3 -> no VM has its slot; a running daemon removes it: `banger daemon start`
        tap of slot 5 -> its VM has lost its row; `banger daemon restart` brings it back
        tap of slot 6 -> nobody can tell which VM it is of, so banger leaves it alone: it goes after the process in its slot
        cgroup /c/x-1 -> VM `up`
        cgroup /c/x-3 -> no VM has its slot; a running daemon removes it: `banger daemon start`
        interface bgr-1f2e-1 -> banger's devices are in a namespace of its own; as root: ip link delete bgr-1f2e-1
        mount /h/state/vms/x -> banger mounts nothing on the host; as root: umount /h/state/vms/x
        ");
    }
}

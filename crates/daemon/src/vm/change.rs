//! What a VM becomes by a change, or why it is refused. Pure: no I/O; what is refused changes
//! nothing.
//!
//! | what                       | at rest | running           | paused  |
//! |----------------------------|---------|-------------------|---------|
//! | labels, time to live, nat  | at once | at once           | at once |
//! | name                       | at once | at once           | refused |
//! | larger disks               | at once | at once           | refused |
//! | CPUs, memory               | at once | refused           | refused |

use std::collections::BTreeMap;

use banger_config::defaults::HostResources;
use banger_proto::agent::DiskRole;
use banger_proto::api::SetVm;
use banger_proto::error::ErrorKind;
use banger_proto::name::VmName;
use banger_proto::size::ByteSize;
use jiff::Timestamp;

use super::bounds;
use super::lifecycle::Phase;
use crate::store::{StoreError, VmRow};

/// What of a VM can be changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Its name.
    pub name: VmName,
    /// Number of virtual CPUs.
    pub vcpu: u32,
    /// Memory.
    pub memory: ByteSize,
    /// Size of the work disk.
    pub disk_size: ByteSize,
    /// Size of the system disk.
    pub system_size: ByteSize,
    /// Whether it may reach the outside.
    pub nat: bool,
    /// Free marks of the user's.
    pub labels: BTreeMap<String, String>,
    /// When it is deleted, RFC 3339.
    pub expires_at: Option<String>,
}

impl Settings {
    /// Those of a row.
    pub fn of(row: &VmRow) -> Self {
        Self {
            name: row.name.clone(),
            vcpu: row.vcpu,
            memory: row.memory,
            disk_size: row.disk_size,
            system_size: row.system_size,
            nat: row.nat,
            labels: row.labels.clone(),
            expires_at: row.expires_at.clone(),
        }
    }

    /// Puts them into a row.
    pub fn put_into(self, row: &mut VmRow) {
        row.name = self.name;
        row.vcpu = self.vcpu;
        row.memory = self.memory;
        row.disk_size = self.disk_size;
        row.system_size = self.system_size;
        row.nat = self.nat;
        row.labels = self.labels;
        row.expires_at = self.expires_at;
    }

    /// The size of one of the VM's own disks.
    pub fn size_mut(&mut self, role: DiskRole) -> &mut ByteSize {
        match role {
            DiskRole::Work => &mut self.disk_size,
            DiskRole::System | DiskRole::Base | DiskRole::Modules => &mut self.system_size,
        }
    }
}

/// Whether something beside the row must be changed by `change`.
pub fn needs_work(change: &SetVm, row: &VmRow) -> bool {
    needs_guest(change, row) || change.nat.is_some_and(|nat| nat != row.nat)
}

/// Whether a running guest must take part in `change`.
pub fn needs_guest(change: &SetVm, row: &VmRow) -> bool {
    change.name.as_ref().is_some_and(|name| *name != row.name)
        || change.disk_size.is_some_and(|size| size != row.disk_size)
        || change
            .system_size
            .is_some_and(|size| size != row.system_size)
}

/// Why a change is refused. The text goes behind "could not change VM `x`".
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// Nothing was named.
    #[error("nothing was named that is to be changed")]
    Nothing,
    /// It can only be changed at rest.
    #[error("{0} can only be changed while it is stopped")]
    Runs(&'static str),
    /// The guest must take part, and is held.
    #[error("its {0} cannot be changed while it is paused")]
    Paused(&'static str),
    /// Disks only grow.
    #[error("its {what} disk has {has} and cannot shrink to {wanted}")]
    Shrink {
        /// Which disk.
        what: &'static str,
        /// Its size.
        has: ByteSize,
        /// What was asked for.
        wanted: ByteSize,
    },
    /// It would not be a VM that can be made.
    #[error("{0}")]
    Bounds(String),
    /// Another VM has the name.
    #[error("there is already a VM of this name")]
    NameTaken(VmName),
    /// It could not be written down.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ChangeError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Nothing | Self::Shrink { .. } | Self::Bounds(_) => ErrorKind::Invalid,
            Self::Runs(_) | Self::Paused(_) | Self::NameTaken(_) => ErrorKind::Conflict,
            Self::Store(_) => ErrorKind::Failed,
        }
    }

    /// What the user can do about it, for the VM `name`.
    pub fn hint(&self, name: &VmName) -> Option<String> {
        match self {
            Self::Nothing => Some("see `banger vm set --help`".to_owned()),
            Self::Runs(_) => Some(format!("stop it first: `banger vm stop {name}`")),
            Self::Paused(_) => Some(format!("let it go on first: `banger vm resume {name}`")),
            Self::Shrink { .. } => Some(
                "disks only grow: for a smaller one create another VM and copy the files"
                    .to_owned(),
            ),
            Self::NameTaken(_) => Some("choose another name".to_owned()),
            Self::Bounds(_) => None,
            Self::Store(store) => store.hint(),
        }
    }
}

/// What the VM of `row` becomes by `change`.
///
/// # Errors
/// The change makes no sense, or not in the VM's phase.
pub fn settings(
    row: &VmRow,
    change: &SetVm,
    host: HostResources,
    now: Timestamp,
) -> Result<Settings, ChangeError> {
    if *change == SetVm::default() {
        return Err(ChangeError::Nothing);
    }
    let was = Settings::of(row);
    let mut new = was.clone();
    if let Some(name) = &change.name {
        new.name = name.clone();
    }
    if let Some(vcpu) = change.vcpu {
        new.vcpu = vcpu;
    }
    if let Some(memory) = change.memory {
        new.memory = memory;
    }
    if let Some(nat) = change.nat {
        new.nat = nat;
    }
    new.disk_size = grown("work", was.disk_size, change.disk_size)?;
    new.system_size = grown("system", was.system_size, change.system_size)?;
    for (key, value) in &change.labels {
        match value {
            Some(value) => new.labels.insert(key.clone(), value.clone()),
            None => new.labels.remove(key),
        };
    }
    match change.ttl_s {
        None => {}
        Some(0) => new.expires_at = None,
        Some(ttl_s) => {
            new.expires_at = Some(bounds::expiry(now, ttl_s).map_err(ChangeError::Bounds)?);
        }
    }
    let mut changed = row.clone();
    new.clone().put_into(&mut changed);
    bounds::check(&changed, host).map_err(ChangeError::Bounds)?;
    if !row.phase.is_at_rest() {
        if new.vcpu != was.vcpu {
            return Err(ChangeError::Runs("the number of its CPUs"));
        }
        if new.memory != was.memory {
            return Err(ChangeError::Runs("its memory"));
        }
    }
    if row.phase == Phase::Paused {
        if new.name != was.name {
            return Err(ChangeError::Paused("name"));
        }
        if needs_guest(change, row) {
            return Err(ChangeError::Paused("disks"));
        }
    }
    Ok(new)
}

/// The size of a disk that shall have `wanted`, in whole MiB; as it is if that is the same.
fn grown(
    what: &'static str,
    has: ByteSize,
    wanted: Option<ByteSize>,
) -> Result<ByteSize, ChangeError> {
    match wanted {
        None => Ok(has),
        Some(wanted) if wanted == has => Ok(has),
        Some(wanted) if wanted < has => Err(ChangeError::Shrink { what, has, wanted }),
        Some(wanted) => Ok(ByteSize::from_mib(wanted.bytes().div_ceil(1 << 20))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::vms::tests::row;
    use proptest::prelude::*;
    use std::fmt::Write as _;

    const HOST: HostResources = HostResources {
        cpus: 4,
        memory: ByteSize::from_gib(8),
    };

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn in_phase(phase: Phase) -> VmRow {
        VmRow { phase, ..row("a") }
    }

    fn apply(phase: Phase, change: &SetVm) -> Result<Settings, ChangeError> {
        settings(&in_phase(phase), change, HOST, now())
    }

    #[test]
    fn what_is_refused_says_why_and_what_to_do() {
        let changes = [
            ("nothing", SetVm::default()),
            (
                "name",
                SetVm {
                    name: Some("b".parse().unwrap()),
                    ..SetVm::default()
                },
            ),
            (
                "vcpu",
                SetVm {
                    vcpu: Some(2),
                    ..SetVm::default()
                },
            ),
            (
                "vcpu 9",
                SetVm {
                    vcpu: Some(9),
                    ..SetVm::default()
                },
            ),
            (
                "memory",
                SetVm {
                    memory: Some(ByteSize::from_gib(1)),
                    ..SetVm::default()
                },
            ),
            (
                "disk 9G",
                SetVm {
                    disk_size: Some(ByteSize::from_gib(9)),
                    ..SetVm::default()
                },
            ),
            (
                "disk 7G",
                SetVm {
                    disk_size: Some(ByteSize::from_gib(7)),
                    ..SetVm::default()
                },
            ),
            (
                "system 900T",
                SetVm {
                    system_size: Some(ByteSize::from_gib(900 << 10)),
                    ..SetVm::default()
                },
            ),
            (
                "nat",
                SetVm {
                    nat: Some(false),
                    ..SetVm::default()
                },
            ),
            (
                "label",
                SetVm {
                    labels: [("k".to_owned(), Some("v".to_owned()))].into(),
                    ..SetVm::default()
                },
            ),
            (
                "label ''",
                SetVm {
                    labels: [(String::new(), Some("v".to_owned()))].into(),
                    ..SetVm::default()
                },
            ),
            (
                "ttl",
                SetVm {
                    ttl_s: Some(60),
                    ..SetVm::default()
                },
            ),
            (
                "ttl 1e18",
                SetVm {
                    ttl_s: Some(1_000_000_000_000_000_000),
                    ..SetVm::default()
                },
            ),
        ];
        let mut table = String::new();
        for (what, change) in &changes {
            for phase in [Phase::Stopped, Phase::Running, Phase::Paused] {
                let told = match apply(phase, change) {
                    Ok(_) => "done".to_owned(),
                    Err(error) => {
                        let name = "a".parse().unwrap();
                        let hint = error.hint(&name).unwrap_or_default();
                        format!("{:?}: {error} [{hint}]", error.kind())
                    }
                };
                writeln!(table, "{what:<12} {:<8} {told}", phase.as_str()).unwrap();
            }
        }
        insta::assert_snapshot!(table);
    }

    #[test]
    fn labels_come_and_go_and_a_time_to_live_ends() {
        let mut row = in_phase(Phase::Running);
        row.labels = [("a", "1"), ("b", "2")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        row.expires_at = Some("2026-01-01T00:00:01Z".to_owned());
        let change = SetVm {
            labels: [
                ("a".to_owned(), None),
                ("c".to_owned(), Some("3".to_owned())),
            ]
            .into(),
            ttl_s: Some(0),
            ..SetVm::default()
        };
        let new = settings(&row, &change, HOST, now()).unwrap();
        let labels: Vec<&str> = new.labels.keys().map(String::as_str).collect();
        assert_eq!(labels, ["b", "c"]);
        assert_eq!(new.expires_at, None);
        assert!(!needs_work(&change, &row));
    }

    #[test]
    fn a_disk_gets_whole_mebibytes_and_what_stays_the_same_is_no_change() {
        let row = in_phase(Phase::Running);
        let odd = SetVm {
            disk_size: Some(ByteSize::from_bytes(row.disk_size.bytes() + 1)),
            vcpu: Some(row.vcpu),
            memory: Some(row.memory),
            ..SetVm::default()
        };
        let new = settings(&row, &odd, HOST, now()).unwrap();
        assert_eq!(new.disk_size.mib(), row.disk_size.mib() + 1);
        assert_eq!(new.disk_size.bytes() % (1 << 20), 0);
    }

    proptest! {
        #[test]
        fn no_change_makes_a_disk_smaller_or_a_vm_that_cannot_be(
            vcpu in proptest::option::of(0_u32..9),
            disk_mib in proptest::option::of(0_u64..1 << 30),
            system_mib in proptest::option::of(0_u64..1 << 30),
            ttl_s in proptest::option::of(any::<u64>()),
            phase in prop_oneof![
                Just(Phase::Stopped), Just(Phase::Running), Just(Phase::Paused)
            ],
        ) {
            let row = in_phase(phase);
            let change = SetVm {
                vcpu,
                disk_size: disk_mib.map(ByteSize::from_mib),
                system_size: system_mib.map(ByteSize::from_mib),
                ttl_s,
                ..SetVm::default()
            };
            if let Ok(new) = settings(&row, &change, HOST, now()) {
                prop_assert!(new.disk_size >= row.disk_size);
                prop_assert!(new.system_size >= row.system_size);
                let mut changed = row.clone();
                new.put_into(&mut changed);
                prop_assert!(bounds::check(&changed, HOST).is_ok());
            }
        }
    }
}

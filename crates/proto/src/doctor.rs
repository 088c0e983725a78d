//! What `banger doctor` finds: one [`Check`] for each thing that a VM needs of the host.
//!
//! The crates that need a thing make its check, and use the same one when they fail for the
//! lack of it, so that doctor and a failed start say the same words.

use serde::{Deserialize, Serialize};

use crate::id::InstanceId;

/// The verdict on one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckStatus {
    /// As it should be.
    Pass,
    /// Works, but less well than it could.
    Warn,
    /// Something will not work until this is mended.
    Fail,
}

/// One thing that banger needs of the host, and how it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Stable name for scripts, such as `net.tun`.
    pub id: String,
    /// What is checked, in a few words.
    pub title: String,
    /// The verdict.
    pub status: CheckStatus,
    /// What was found.
    pub detail: String,
    /// What to type or change, where the user can act.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fix: Option<String>,
}

impl Check {
    /// A check that found what it looked for.
    pub fn pass(id: &str, title: &str, detail: impl Into<String>) -> Self {
        Self {
            id: id.to_owned(),
            title: title.to_owned(),
            status: CheckStatus::Pass,
            detail: detail.into(),
            fix: None,
        }
    }

    /// A check that found something that works less well than it could.
    pub fn warn(id: &str, title: &str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            status: CheckStatus::Warn,
            fix: Some(fix.into()),
            ..Self::pass(id, title, detail)
        }
    }

    /// A check that found something that must be mended.
    pub fn fail(id: &str, title: &str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            status: CheckStatus::Fail,
            fix: Some(fix.into()),
            ..Self::pass(id, title, detail)
        }
    }
}

/// Everything that `banger doctor` found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Version of banger that made the report.
    pub version: String,
    /// The checks, in the order in which a VM start needs them.
    pub checks: Vec<Check>,
}

impl Report {
    /// The worst verdict among the checks.
    pub fn worst(&self) -> CheckStatus {
        self.checks
            .iter()
            .map(|check| check.status)
            .max()
            .unwrap_or(CheckStatus::Pass)
    }
}

/// What kind of thing one of [`Inventory::things`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThingKind {
    /// A process with banger's mark, or below one.
    Process,
    /// A network namespace with its rules.
    Namespace,
    /// A tap device.
    Tap,
    /// A control group.
    Cgroup,
    /// A network interface of the host itself.
    Interface,
    /// A mount.
    Mount,
    /// A socket.
    Socket,
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A disk that a VM should have.
    Disk,
    /// A row of the database.
    Row,
}

impl ThingKind {
    /// The word in JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Namespace => "namespace",
            Self::Tap => "tap",
            Self::Cgroup => "cgroup",
            Self::Interface => "interface",
            Self::Mount => "mount",
            Self::Socket => "socket",
            Self::File => "file",
            Self::Directory => "directory",
            Self::Disk => "disk",
            Self::Row => "row",
        }
    }
}

/// One thing on this host that carries banger's marks or lies in its directories.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Thing {
    /// What it is.
    pub kind: ThingKind,
    /// What it is called on the host: a path, a process id with its command, a device's name.
    pub name: String,
    /// Whose it is, such as "VM `calm-otter`". `None`: it was left over.
    pub owner: Option<String>,
    /// What to do about it, where it has no owner.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fix: Option<String>,
}

/// What banger has on this host, of one state directory: `banger doctor --leaks`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Version of banger that made it.
    pub version: String,
    /// The state directory.
    pub state_dir: String,
    /// The id in banger's marks; `None` if no daemon has run yet.
    pub instance: Option<InstanceId>,
    /// Everything that was found, by kind and name.
    pub things: Vec<Thing>,
    /// What could not be looked at, with the reason.
    #[serde(default)]
    pub unseen: Vec<String>,
}

impl Inventory {
    /// What has no owner.
    pub fn leaks(&self) -> impl Iterator<Item = &Thing> {
        self.things.iter().filter(|thing| thing.owner.is_none())
    }
}

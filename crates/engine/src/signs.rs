//! What an engine notices of its guest without being asked.

use std::fmt;
use std::time::SystemTime;

use banger_proto::agent::DiskRole;
use serde::Deserialize;

/// What was noticed since the machine was launched or adopted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signs {
    /// How often an agent has taken up its end of the link.
    pub agent_came: u64,
    /// How often an agent has left it, whatever the reason.
    pub agent_left: u64,
    /// What could not be read or written, in the order in which it was noticed: each kind of
    /// failure of each disk once, with its first time.
    pub disk_errors: Vec<DiskError>,
}

/// The host could not do what the guest wanted of one of its disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskError {
    /// Which disk.
    pub disk: DiskRole,
    /// What was to be done with it.
    pub access: DiskAccess,
    /// What the host's system said.
    pub reason: String,
    /// When it was noticed first.
    pub at: SystemTime,
}

/// What a guest wants of a disk. The words are those of QEMU's `IoOperationType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskAccess {
    /// To read.
    Read,
    /// To write.
    Write,
}

impl fmt::Display for DiskAccess {
    /// The participle: "could not be ...".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "written",
        })
    }
}

impl Signs {
    /// Adds a failure of a disk, unless one like it is known; says whether it was added. A guest
    /// tries again without end.
    pub(crate) fn add(&mut self, error: DiskError) -> bool {
        let known = self.disk_errors.iter().any(|known| {
            (known.disk, known.access, &known.reason) == (error.disk, error.access, &error.reason)
        });
        if !known {
            self.disk_errors.push(error);
        }
        !known
    }
}

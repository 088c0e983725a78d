//! What a machine's things on the host are called, so that they are found again by name.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use banger_proto::agent::VSOCK_PORT;
use banger_proto::id::{InstanceId, VmId};

use crate::firecracker;

/// Where the machine of one VM lives on the host. Every path follows from these fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Whose daemon's it is.
    pub instance: InstanceId,
    /// The VM's slot.
    pub slot: u16,
    /// The VM.
    pub vm: VmId,
    /// The VM's own directory for sockets. It exists, is private to the daemon's user, and
    /// is short enough for socket addresses (at most 107 bytes with the file's name).
    pub runtime_dir: PathBuf,
    /// The VM's own directory for logs. It exists.
    pub log_dir: PathBuf,
}

impl Place {
    /// The mark that the machine's processes carry.
    pub fn mark(&self) -> Mark {
        Mark {
            instance: self.instance.clone(),
            slot: self.slot,
            vm: self.vm.clone(),
        }
    }

    /// What the engine's process is told to call the machine, where it takes a name. Everybody
    /// may read it, so it is as good as the mark to tell whose the process is.
    pub(crate) fn machine_name(&self) -> String {
        format!("banger-{}-{}", self.instance, self.slot)
    }

    /// The socket behind which the guest agent answers.
    pub fn agent_socket(&self) -> PathBuf {
        self.runtime_dir.join("agent.sock")
    }

    /// The socket on which the engine takes orders, where it has one.
    pub fn control_socket(&self) -> PathBuf {
        self.runtime_dir.join("control.sock")
    }

    /// The directory that a Firecracker works in, among the sockets.
    pub(crate) fn machine_dir(&self) -> PathBuf {
        self.runtime_dir.join("fc")
    }

    /// The socket of a Firecracker's API.
    pub(crate) fn api_socket(&self) -> PathBuf {
        self.machine_dir().join(firecracker::API)
    }

    /// The socket behind which the vsock of a Firecracker's guest is.
    pub(crate) fn vsock(&self) -> PathBuf {
        self.machine_dir().join(firecracker::LINK)
    }

    /// The socket at which the guest agent knocks: where Firecracker connects to when its
    /// guest connects to a port of the host.
    pub(crate) fn knock(&self) -> PathBuf {
        self.machine_dir()
            .join(format!("{}_{VSOCK_PORT}", firecracker::LINK))
    }

    /// The named pipe into which a Firecracker writes its log.
    pub(crate) fn log_pipe(&self) -> PathBuf {
        self.machine_dir().join(firecracker::LOG)
    }

    /// The named pipe into which a Firecracker writes what it counts.
    pub(crate) fn metrics_pipe(&self) -> PathBuf {
        self.machine_dir().join(firecracker::METRICS)
    }

    /// The empty directory on which a Firecracker's root is mounted, for itself alone.
    pub(crate) fn jail_dir(&self) -> PathBuf {
        self.runtime_dir.join("root")
    }

    /// What the guest's kernel and init print.
    pub fn console_log(&self) -> PathBuf {
        self.log_dir.join("console.log")
    }

    /// What the engine's process prints.
    pub fn engine_log(&self) -> PathBuf {
        self.log_dir.join("engine.log")
    }
}

/// Says whose a process is. It stands in the process's environment, as
/// `BANGER_MARK=<instance>/<slot>/<vm>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mark {
    /// Which daemon's.
    pub instance: InstanceId,
    /// The VM's slot.
    pub slot: u16,
    /// The VM.
    pub vm: VmId,
}

impl Mark {
    /// Name of the environment variable.
    pub const VARIABLE: &str = "BANGER_MARK";
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.instance, self.slot, self.vm)
    }
}

/// A text is not a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a mark: a mark is `<instance>/<slot>/<vm>`")]
pub struct InvalidMark;

impl FromStr for Mark {
    type Err = InvalidMark;

    fn from_str(text: &str) -> Result<Self, InvalidMark> {
        let mut parts = text.split('/');
        let (Some(instance), Some(slot), Some(vm), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(InvalidMark);
        };
        Ok(Self {
            instance: instance.parse().map_err(|_| InvalidMark)?,
            slot: slot.parse().map_err(|_| InvalidMark)?,
            vm: vm.parse().map_err(|_| InvalidMark)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_parses_back() {
        let mark = Mark {
            instance: InstanceId::new(),
            slot: 7,
            vm: VmId::new(),
        };
        assert_eq!(mark.to_string().parse(), Ok(mark));
    }

    #[test]
    fn what_others_put_into_the_environment_is_no_mark() {
        for text in [
            "",
            "1f2e",
            "1f2e/7",
            "1f2e/x/y",
            "1f2e/7/abc",
            "a/1/b/c",
            "1f2e/99999/0",
            "1f2e/7/0123456789abcdef0123456789abcdef",
        ] {
            assert_eq!(text.parse::<Mark>(), Err(InvalidMark), "{text}");
        }
    }
}

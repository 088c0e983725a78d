//! What the rest of banger sees of an engine: it launches, adopts and releases machines.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use banger_proto::api::EngineKind;
use banger_proto::size::ByteSize;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use crate::process::ProcessFailure;
use crate::process::ProcessId;
use crate::{Counters, Disk, MachineSpec, Place, Signs};

/// A way to run machines.
#[async_trait]
pub trait Engine: fmt::Debug + Send + Sync {
    /// Which engine it is.
    fn kind(&self) -> EngineKind;

    /// Why this one and how it runs guests, in one line for `vm show` and the log.
    fn reason(&self) -> String;

    /// By what factor everything takes longer than with hardware virtualisation. Whoever
    /// waits for a guest multiplies the limit by it.
    fn patience(&self) -> u32;

    /// Starts a machine; returns when the engine has accepted everything in `spec` and the
    /// CPUs run. The guest is not up then.
    ///
    /// When this fails, or the future is dropped, something may be left over:
    /// [`crate::release`] removes it.
    ///
    /// # Errors
    /// Something that `spec` names cannot be used, or the engine did not start.
    async fn launch(&self, spec: MachineSpec) -> Result<Arc<dyn Machine>, LaunchError>;
}

/// A running machine: the engine's process with one guest in it. When the value is dropped
/// the machine goes on.
#[async_trait]
pub trait Machine: fmt::Debug + Send + Sync {
    /// What finds this machine again after the daemon's death.
    fn handle(&self) -> &MachineHandle;

    /// Whose it is, and where its logs are.
    fn place(&self) -> &Place;

    /// Opens the byte stream to the guest agent. It can be opened before the guest is up:
    /// what is written waits. Only one stream at a time carries bytes; another one waits
    /// until the first is dropped. It breaks when the agent at its other end goes, be it that
    /// the socket does so by itself or that the engine tells.
    ///
    /// # Errors
    /// The machine is gone.
    async fn connect(&self) -> io::Result<Box<dyn AgentStream>>;

    /// What the engine notices of the guest by itself, as it goes on. The default is that of
    /// an engine that notices nothing: nobody is there who could change it.
    fn signs(&self) -> watch::Receiver<Signs> {
        watch::channel(Signs::default()).1
    }

    /// Resolves when the machine has ended; several may wait. Cancel-safe.
    async fn exited(&self) -> Exit;

    /// Ends the machine at once, as if its power were cut; returns when it is gone.
    /// Succeeds when it has ended already.
    ///
    /// # Errors
    /// The process could not be killed, or did not end in time.
    async fn kill(&self) -> Result<(), ControlError>;

    /// Sends a signal to the engine's process, and returns at once. What comes of it is seen by
    /// [`Machine::exited`]. Succeeds when it has ended already.
    ///
    /// # Errors
    /// The system refuses.
    fn signal(&self, signal: Signal) -> Result<(), ControlError>;

    /// Presses the guest's power button (ACPI). What follows is the guest's choice.
    ///
    /// # Errors
    /// The engine gives no answer or refuses.
    async fn power_button(&self) -> Result<(), ControlError>;

    /// Holds the guest's CPUs.
    ///
    /// # Errors
    /// The engine gives no answer or refuses.
    async fn pause(&self) -> Result<(), ControlError>;

    /// Lets the guest's CPUs go on.
    ///
    /// # Errors
    /// The engine gives no answer or refuses.
    async fn resume(&self) -> Result<(), ControlError>;

    /// Makes one of the machine's disks larger, file and device. The guest's kernel notices;
    /// its file system is the agent's to grow.
    ///
    /// # Errors
    /// The file is larger already, or the engine gives no answer or refuses.
    async fn grow_disk(&self, disk: &Disk, size: ByteSize) -> Result<(), ControlError>;

    /// What the engine has counted of the machine. The default is that of an engine that counts
    /// nothing.
    ///
    /// # Errors
    /// The engine gives no answer or refuses.
    async fn counters(&self) -> Result<Counters, ControlError> {
        Ok(Counters::default())
    }

    /// Whether the guest's CPUs run.
    ///
    /// # Errors
    /// The engine gives no answer or refuses.
    async fn activity(&self) -> Result<Activity, ControlError>;
}

/// The byte stream between the host and the guest agent.
pub trait AgentStream: AsyncRead + AsyncWrite + Send + Unpin {
    /// Whether the other side has taken all that was written. A hello that still waits to
    /// be taken need not be repeated.
    ///
    /// # Errors
    /// The stream is broken.
    fn all_taken(&self) -> io::Result<bool>;
}

/// Finds a machine again after the daemon's death. It goes into `handles.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineHandle {
    /// Which engine runs it.
    pub engine: EngineKind,
    /// The engine's process.
    pub process: ProcessId,
}

/// Whether a machine's CPUs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// They run.
    Running,
    /// They are held.
    Paused,
}

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Why.
    pub cause: ExitCause,
    /// The last lines that the engine's process printed.
    pub engine_log: Vec<String>,
}

/// Why a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitCause {
    /// The guest switched itself off.
    PoweredOff,
    /// The guest restarted, or its kernel panicked: a machine does not outlive that.
    Reset,
    /// This side ended it: [`Machine::kill`], or a signal to the process.
    Killed {
        /// The signal's number, where it is known.
        signal: Option<i32>,
    },
    /// The engine failed.
    Failed(ProcessFailure),
    /// Nobody was told: the daemon that had started it was gone.
    Unseen,
}

impl fmt::Display for ExitCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("the guest powered itself off"),
            Self::Reset => f.write_str("the guest restarted or its kernel panicked"),
            Self::Killed {
                signal: Some(signal),
            } => {
                write!(f, "the engine was ended by signal {signal}")
            }
            Self::Killed { signal: None } => f.write_str("the engine was ended"),
            Self::Failed(failure) => write!(f, "the engine failed: {failure}"),
            Self::Unseen => f.write_str("the engine ended, and nobody was told how"),
        }
    }
}

/// Why a machine did not start.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A file of the machine cannot be opened.
    #[error("could not open the {what} `{}`", path.display())]
    Open {
        /// What the file is for.
        what: String,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A socket of the machine cannot be made.
    #[error("could not make the socket `{}`", path.display())]
    Socket {
        /// Where it was to be.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The network of its tap cannot be entered.
    #[error("could not find the network of the VM's tap")]
    Network {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The engine's process cannot be started.
    #[error("could not start `{}`", program.display())]
    Spawn {
        /// The engine's binary.
        program: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The engine's process ended before the machine ran.
    #[error("the engine refused to start the machine")]
    Refused(#[source] ProcessFailure),
    /// The engine's process runs, but the machine does not.
    #[error("the engine did not bring the machine up")]
    Control(#[source] ControlError),
}

/// Why a machine was not adopted.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The host's processes cannot be looked at.
    #[error("could not look for the machine's process")]
    Processes(#[source] io::Error),
    /// A process seems to be its, and what it is may not be read.
    #[error(
        "process {pid} may be its engine, but its environment may not be read: that takes the \
         capability CAP_SYS_PTRACE"
    )]
    Unknown {
        /// The process.
        pid: u32,
    },
    /// The socket at which its agent knocks cannot be made anew.
    #[error("could not listen for the machine's agent")]
    Knock(#[source] io::Error),
}

/// What a release has left over.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// The host's processes cannot be looked at.
    #[error("could not look for the machine's process")]
    Processes(#[source] io::Error),
    /// A process does not go away.
    #[error("could not end process {pid}")]
    Kill {
        /// The process.
        pid: u32,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Its cgroup does not go away.
    #[error("could not remove its cgroup")]
    Cgroup(#[source] io::Error),
    /// A socket does not go away.
    #[error("could not remove the socket `{}`", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Whether the file of `disk` may be made `size` long: what is cut off it is lost, whatever
/// whoever asks believes its length to be.
///
/// # Errors
/// It is larger, or cannot be looked at.
pub(crate) fn refuse_to_shrink(disk: &Disk, size: ByteSize) -> Result<(), ControlError> {
    let file = fs::metadata(&disk.path).map_err(|source| ControlError::Io {
        order: "grow",
        source,
    })?;
    match file.len() > size.bytes() {
        true => Err(ControlError::Shrink {
            what: disk.role.as_str(),
            has: ByteSize::from_bytes(file.len()),
            wanted: size,
        }),
        false => Ok(()),
    }
}

/// Why an order to a machine was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A disk would lose its end.
    #[error("the file of its {what} disk has {has} and cannot shrink to {wanted}")]
    Shrink {
        /// Which disk.
        what: &'static str,
        /// The file's length.
        has: ByteSize,
        /// The length it was to have.
        wanted: ByteSize,
    },
    /// The machine has ended.
    #[error("the machine has ended")]
    Ended,
    /// The engine gives no answer.
    #[error("the engine gave no answer to `{order}` within {seconds} s")]
    Timeout {
        /// What was asked.
        order: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// The engine says no.
    #[error("the engine refused `{order}`: {reason}")]
    Refused {
        /// What was asked.
        order: &'static str,
        /// The engine's words.
        reason: String,
    },
    /// The engine speaks something else.
    #[error("the engine gave a malformed answer to `{order}`: {answer}")]
    Malformed {
        /// What was asked.
        order: &'static str,
        /// The beginning of the answer.
        answer: String,
    },
    /// The engine cannot be reached.
    #[error("could not send `{order}` to the engine")]
    Io {
        /// What was asked.
        order: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Access;
    use banger_proto::agent::DiskRole;

    #[test]
    fn a_disk_is_never_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk {
            role: DiskRole::Work,
            path: dir.path().join("work.ext4"),
            access: Access::ReadWrite,
        };
        fs::write(&disk.path, [0; 2048]).unwrap();
        for size in [2048, 4096] {
            refuse_to_shrink(&disk, ByteSize::from_bytes(size)).unwrap();
        }
        let refused = refuse_to_shrink(&disk, ByteSize::from_bytes(2047));
        assert!(matches!(refused, Err(ControlError::Shrink { .. })));
    }
}

//! VMs: what is asked of them, and what they are.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::agent::Health;
use crate::error::ApiError;
use crate::id::{ImageId, LeaseId, VmId};
use crate::name::{ArtifactName, VmName};
use crate::size::ByteSize;

/// The driver of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineKind {
    /// QEMU, with KVM where it is usable and software emulation elsewhere.
    Qemu,
    /// Firecracker.
    Firecracker,
    /// No VM at all: the agent as an ordinary process, for tests.
    Fake,
}

impl EngineKind {
    /// The word in the config file and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Firecracker => "firecracker",
            Self::Fake => "fake",
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The state of a VM, as everyone sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// Has a row and no disks yet, or was created and not started.
    Created,
    /// On its way to running.
    Starting,
    /// The agent answers.
    Running,
    /// The engine holds its CPUs.
    Paused,
    /// On its way to stopped.
    Stopping,
    /// Nothing of it runs; its disks are there.
    Stopped,
    /// The last start failed, or the engine died; the reason is in [`Vm::failure`].
    Failed,
}

impl VmState {
    /// The word in JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for VmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a new VM shall be. Everything left out has a default of the host's or the config's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVm {
    /// Its name; made up if absent.
    #[serde(default)]
    pub name: Option<VmName>,
    /// The image to boot; the default image if absent.
    #[serde(default)]
    pub image: Option<ArtifactName>,
    /// Number of virtual CPUs.
    #[serde(default)]
    pub vcpu: Option<u32>,
    /// Memory.
    #[serde(default)]
    pub memory: Option<ByteSize>,
    /// Size of the work disk, mounted at `/root`.
    #[serde(default)]
    pub disk_size: Option<ByteSize>,
    /// Size of the system disk, which overlays the image.
    #[serde(default)]
    pub system_size: Option<ByteSize>,
    /// The engine; chosen by the config and the host if absent.
    #[serde(default)]
    pub engine: Option<EngineKind>,
    /// Whether the VM may reach the outside; true if absent.
    #[serde(default)]
    pub nat: Option<bool>,
    /// Free marks of the user's.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Seconds after which it is deleted, whatever it does; for ever if absent.
    #[serde(default)]
    pub ttl_s: Option<u64>,
    /// Only create it, do not start it.
    #[serde(default)]
    pub no_start: bool,
    /// Delete the VM when this lease ends: `vm run --rm`.
    #[serde(default)]
    pub lease: Option<LeaseId>,
}

/// What is to be changed of a VM. What is left out stays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetVm {
    /// Its new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<VmName>,
    /// Number of virtual CPUs. The VM must be down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpu: Option<u32>,
    /// Memory. The VM must be down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// Size of the work disk, not less than it is. A running guest gets the room at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_size: Option<ByteSize>,
    /// Size of the system disk, in the same way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_size: Option<ByteSize>,
    /// Whether it may reach the outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat: Option<bool>,
    /// Labels to set, and with `null` those to take away.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Option<String>>,
    /// Seconds from now after which it is deleted; 0: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<u64>,
}

/// How a VM is ended at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KillVm {
    /// The signal's number for the engine's process; SIGKILL if absent. An engine that does not
    /// end by it within some seconds is killed.
    #[serde(default)]
    pub signal: Option<i32>,
}

/// The first line (JSON) that the daemon sends on a lease's stream. The lease ends when the
/// stream does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeaseGrant {
    /// What to name in [`CreateVm::lease`].
    pub lease: LeaseId,
}

/// A VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Vm {
    /// Its id.
    pub id: VmId,
    /// Its name.
    pub name: VmName,
    /// The host that it is on.
    pub node: String,
    /// What it does at the moment.
    pub state: VmState,
    /// Why it failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<ApiError>,
    /// What is wrong with it although it runs, each thing once. They go with the next start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Why it stops, has stopped or is being deleted, where nobody asked for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The image's name.
    pub image: ArtifactName,
    /// The image's id.
    pub image_id: Option<ImageId>,
    /// The kernel's name.
    pub kernel: Option<ArtifactName>,
    /// Number of virtual CPUs.
    pub vcpu: u32,
    /// Memory.
    pub memory: ByteSize,
    /// Size of the work disk.
    pub disk_size: ByteSize,
    /// Size of the system disk.
    pub system_size: ByteSize,
    /// The engine.
    pub engine: EngineKind,
    /// Why this engine, and how it emulates or accelerates.
    pub engine_reason: String,
    /// Whether it may reach the outside.
    pub nat: bool,
    /// Its address inside banger's network.
    pub ip: Option<String>,
    /// The host's own address at which the guest's TCP ports are reached while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loopback: Option<Ipv4Addr>,
    /// Free marks of the user's.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Deleted when the client that made it goes (`--rm`).
    #[serde(default)]
    pub ephemeral: bool,
    /// When it was created, RFC 3339.
    pub created_at: String,
    /// When it last became running, RFC 3339.
    pub started_at: Option<String>,
    /// When it is deleted, whatever it does, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// When someone last used it while this daemon ran, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<String>,
    /// The engine's process id while it runs.
    pub pid: Option<u32>,
    /// What its agent tells of the guest: kernel, init, the agent's version; where that was asked
    /// for and the agent answered in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<Health>,
    /// Stages of the last start, with their times.
    #[serde(default)]
    pub stages: Vec<StageTime>,
}

/// How long one stage of a start took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageTime {
    /// The stage's name.
    pub stage: String,
    /// Milliseconds from the operation's begin to the stage's begin.
    pub begin_ms: f64,
    /// Milliseconds that it took.
    pub took_ms: f64,
    /// It failed or was called off: the start came no further.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub failed: bool,
}

/// What an ssh client needs to reach a VM through banger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshTarget {
    /// The VM's name, used as host key alias.
    pub name: VmName,
    /// The user to log in as.
    pub user: String,
    /// The private key to log in with.
    pub identity_file: String,
    /// A `known_hosts` file that holds just this VM's key.
    pub known_hosts_file: String,
}

/// Which log of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogKind {
    /// What the guest's kernel and init print.
    Console,
    /// What the engine's process prints.
    Engine,
    /// Stages of the last start, with their times.
    Boot,
    /// What the guest's agent logs, with the ids of the requests that it serves. It is asked
    /// of the running guest, newest part only, and cannot be followed.
    Agent,
}

impl LogKind {
    /// The word in a query.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Console => "console",
            Self::Engine => "engine",
            Self::Boot => "boot",
            Self::Agent => "agent",
        }
    }
}

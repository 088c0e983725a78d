//! Objects of the daemon's HTTP API, version 1.
//!
//! | method and path                    | request                | answer                         |
//! |------------------------------------|------------------------|--------------------------------|
//! | `GET /v1/version`                  | -                      | [`Version`]                    |
//! | `GET /v1/daemon`                   | -                      | [`DaemonStatus`]               |
//! | `POST /v1/daemon/stop`             | -                      | 202                            |
//! | `POST /v1/leases`                  | upgrade                | [`LeaseGrant`] line, then held |
//! | `POST /v1/vms`                     | [`CreateVm`]           | 202 [`Operation`]              |
//! | `GET /v1/vms`                      | -                      | [`Vm`] list                    |
//! | `GET /v1/vms/{vm}`                 | -                      | [`Vm`]                         |
//! | `DELETE /v1/vms/{vm}`              | -                      | 202 [`Operation`]              |
//! | `POST /v1/vms/{vm}/start`          | -                      | 202 [`Operation`]              |
//! | `POST /v1/vms/{vm}/stop`           | -                      | 202 [`Operation`]              |
//! | `POST /v1/vms/{vm}/exec`           | upgrade                | [`crate::frame`] stream        |
//! | `POST /v1/vms/{vm}/ssh`            | upgrade                | bytes: an SSH connection       |
//! | `GET /v1/vms/{vm}/ssh-target`      | -                      | [`SshTarget`]                  |
//! | `GET /v1/vms/{vm}/logs?log=&follow=` | -                    | text                           |
//! | `GET /v1/images`                   | -                      | [`Image`] list                 |
//! | `POST /v1/images/{name}/pull`      | -                      | 202 [`Operation`]              |
//! | `GET /v1/kernels`                  | -                      | [`Kernel`] list                |
//! | `GET /v1/operations/{id}`          | -                      | [`Operation`]                  |
//! | `GET /v1/operations/{id}/events`   | -                      | server-sent [`OperationEvent`]s |
//! | `DELETE /v1/operations/{id}`       | -                      | 202: it is being called off    |
//!
//! `{vm}` is a name, an id, or an unambiguous beginning of an id. An upgrade is HTTP/1.1's
//! `Upgrade: banger-stream`, answered with 101. Errors are [`crate::error::ApiError`].

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::ApiError;
use crate::id::{ImageId, LeaseId, OperationId, VmId};
use crate::name::{ArtifactName, VmName};
use crate::size::ByteSize;

/// The token of the `Upgrade` header.
pub const UPGRADE_TOKEN: &str = "banger-stream";
/// Header with a key under which a repeated create returns the first one's operation.
pub const IDEMPOTENCY_HEADER: &str = "idempotency-key";

/// Versions of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The daemon's version.
    pub version: String,
    /// The API's version: 1.
    pub api: u32,
}

/// What the daemon tells of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// Its version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// The name of the host it runs on.
    pub node: String,
    /// When it started, RFC 3339.
    pub started_at: String,
    /// Its socket's path.
    pub socket: String,
    /// Where it keeps its state.
    pub state_dir: String,
    /// Number of VMs that it knows.
    pub vms: u32,
    /// Number of VMs that run.
    pub running: u32,
}

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
    /// Only create it, do not start it.
    #[serde(default)]
    pub no_start: bool,
    /// Delete the VM when this lease ends: `vm run --rm`.
    #[serde(default)]
    pub lease: Option<LeaseId>,
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
    /// The engine's process id while it runs.
    pub pid: Option<u32>,
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
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    /// Creates a VM, and starts it unless told otherwise.
    CreateVm,
    /// Starts a VM.
    StartVm,
    /// Stops a VM.
    StopVm,
    /// Deletes a VM.
    DeleteVm,
    /// Gets an image and the kernel it needs.
    PullImage,
}

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// It goes on.
    Running,
    /// It did what was asked.
    Succeeded,
    /// It did not; see [`Operation::error`].
    Failed,
}

/// Work that goes on after the request that began it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// Its id.
    pub id: OperationId,
    /// What it does.
    pub kind: OperationKind,
    /// How far it is.
    pub state: OperationState,
    /// The host that it runs on.
    pub node: String,
    /// The VM it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<VmId>,
    /// The VM's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_name: Option<VmName>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
    /// When it began, RFC 3339.
    pub created_at: String,
    /// Stages so far, with their times.
    #[serde(default)]
    pub stages: Vec<StageTime>,
}

/// One event of an operation, sent as the data of a server-sent event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum OperationEvent {
    /// A stage begins.
    Stage {
        /// Its name.
        stage: String,
    },
    /// A stage has ended.
    StageDone(StageTime),
    /// How far a long step inside a stage is.
    Progress(Progress),
    /// The operation has ended; the last event.
    Done(Box<Operation>),
}

/// How far a long step is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done, such as `download linux-image-6.12`; the key of one progress bar.
    pub what: String,
    /// How much is done.
    pub done: u64,
    /// How much there is, where that is known.
    pub total: Option<u64>,
    /// What `done` and `total` count.
    pub unit: ProgressUnit,
}

/// What a progress counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProgressUnit {
    /// Bytes.
    Bytes,
    /// Steps, packages, files.
    Items,
}

/// An image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// Its id.
    pub id: ImageId,
    /// Its name.
    pub name: ArtifactName,
    /// `sha256:` and the hash of what it was made from or of its root file system.
    pub digest: String,
    /// Where it came from, in words.
    pub source: String,
    /// Distribution and release, such as `debian 12`.
    pub distro: String,
    /// Architecture, such as `x86_64`.
    pub arch: String,
    /// When it was made, RFC 3339.
    pub created_at: String,
    /// Bytes that it takes on the disk.
    pub size: ByteSize,
    /// The kernel that it boots with.
    pub kernel: ArtifactName,
}

/// A kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kernel {
    /// Its name, such as `generic-6.12`.
    pub name: ArtifactName,
    /// Its release, as of `uname -r`.
    pub release: String,
    /// Where it came from, in words.
    pub source: String,
    /// Bytes that it takes on the disk.
    pub size: ByteSize,
    /// When it was made, RFC 3339.
    pub created_at: String,
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
}

//! Operations: work that goes on after the request that began it.

use serde::{Deserialize, Serialize};

use super::StageTime;
use crate::error::ApiError;
use crate::id::{OperationId, VmId};
use crate::name::VmName;

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
    /// Stops a VM and starts it again.
    RestartVm,
    /// Ends a VM at once, as if its power were cut.
    KillVm,
    /// Holds a VM's CPUs.
    PauseVm,
    /// Lets a VM's CPUs go on.
    ResumeVm,
    /// Changes what a VM is.
    SetVm,
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

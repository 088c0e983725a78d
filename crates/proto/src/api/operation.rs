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
    /// Gets a kernel.
    PullKernel,
    /// Installs an engine's program.
    InstallEngine,
    /// Removes an engine's program that banger has installed.
    UninstallEngine,
    /// Copies an image's files into the store.
    PromoteImage,
    /// Makes an image of a VM that is stopped.
    CommitVm,
    /// Makes an image of another one and what is done to it.
    BuildImage,
}

impl OperationKind {
    /// Every kind, for tables.
    pub const ALL: [Self; 16] = [
        Self::CreateVm,
        Self::StartVm,
        Self::StopVm,
        Self::RestartVm,
        Self::KillVm,
        Self::PauseVm,
        Self::ResumeVm,
        Self::SetVm,
        Self::DeleteVm,
        Self::PullImage,
        Self::PullKernel,
        Self::InstallEngine,
        Self::UninstallEngine,
        Self::PromoteImage,
        Self::CommitVm,
        Self::BuildImage,
    ];

    /// The word in JSON, in logs and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CreateVm => "create_vm",
            Self::StartVm => "start_vm",
            Self::StopVm => "stop_vm",
            Self::RestartVm => "restart_vm",
            Self::KillVm => "kill_vm",
            Self::PauseVm => "pause_vm",
            Self::ResumeVm => "resume_vm",
            Self::SetVm => "set_vm",
            Self::DeleteVm => "delete_vm",
            Self::PullImage => "pull_image",
            Self::PullKernel => "pull_kernel",
            Self::InstallEngine => "install_engine",
            Self::UninstallEngine => "uninstall_engine",
            Self::PromoteImage => "promote_image",
            Self::CommitVm => "commit_vm",
            Self::BuildImage => "build_image",
        }
    }
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
    /// It was called off before its end, by whoever asked for it or by another request; see
    /// [`Operation::error`].
    Cancelled,
}

impl OperationState {
    /// The word in JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
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
    /// Why banger does it, where nobody asked: `its time to live is over`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What was odd on the way, though it went on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Why it failed or was called off.
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
    /// What a command in a guest has printed.
    Output {
        /// Whole lines.
        text: String,
    },
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_has_the_same_word_everywhere() {
        for kind in OperationKind::ALL {
            let json = serde_json::to_value(kind).unwrap();
            assert_eq!(json, kind.as_str());
        }
    }

    #[test]
    fn a_state_has_the_same_word_everywhere() {
        use OperationState::{Cancelled, Failed, Running, Succeeded};
        for state in [Running, Succeeded, Failed, Cancelled] {
            let json = serde_json::to_value(state).unwrap();
            assert_eq!(json, state.as_str());
        }
    }
}

//! What a VM is up to, as its row keeps it. What may follow is for [`crate::vm::lifecycle`] to
//! say.

use banger_proto::api::VmState;
use serde::{Deserialize, Serialize};

/// What a VM is up to, as its durable row says it. What follows from a phase when the daemon
/// died in it is decided by [`crate::reconcile::diff`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Its first start goes on; if that fails, the VM is gone.
    Creating,
    /// It has disks and was never started.
    Created,
    /// A start of an existing VM goes on.
    Starting,
    /// The agent has answered.
    Running,
    /// Its CPUs are about to be held.
    Pausing,
    /// Its CPUs are held.
    Paused,
    /// Its CPUs are about to go on, and its clock to be set.
    Resuming,
    /// It is being shut down.
    Stopping,
    /// It is being shut down in order to start again.
    Restarting,
    /// Nothing of it runs.
    Stopped,
    /// The last start failed, or the engine died.
    Failed,
    /// It is being deleted.
    Deleting,
}

impl Phase {
    /// Every phase, for tables and tests.
    pub const ALL: [Self; 12] = [
        Self::Creating,
        Self::Created,
        Self::Starting,
        Self::Running,
        Self::Pausing,
        Self::Paused,
        Self::Resuming,
        Self::Stopping,
        Self::Restarting,
        Self::Stopped,
        Self::Failed,
        Self::Deleting,
    ];

    /// The word in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Resuming => "resuming",
            Self::Stopping => "stopping",
            Self::Restarting => "restarting",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Deleting => "deleting",
        }
    }

    /// The phase of a word in the database.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.as_str() == word)
    }

    /// The state as everyone sees it.
    pub fn state(self) -> VmState {
        match self {
            Self::Creating | Self::Starting => VmState::Starting,
            Self::Created => VmState::Created,
            Self::Running | Self::Pausing => VmState::Running,
            Self::Paused | Self::Resuming => VmState::Paused,
            Self::Stopping | Self::Restarting | Self::Deleting => VmState::Stopping,
            Self::Stopped => VmState::Stopped,
            Self::Failed => VmState::Failed,
        }
    }

    /// Whether nothing of the VM may be found on the host but its directory and disks.
    pub fn is_at_rest(self) -> bool {
        matches!(self, Self::Created | Self::Stopped | Self::Failed)
    }

    /// Whether work goes on that ends the phase.
    pub fn is_busy(self) -> bool {
        !self.is_at_rest() && !matches!(self, Self::Running | Self::Paused)
    }
}

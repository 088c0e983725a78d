//! What happens in a daemon, for whoever watches.

use serde::{Deserialize, Serialize};

use super::{OperationKind, OperationState, VmState};
use crate::error::ApiError;
use crate::id::{OperationId, VmId};
use crate::name::VmName;

/// One thing that happened. Sent as the data of a server-sent event whose `id` is
/// [`Event::id`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// `<daemon's start>-<number>`: numbers grow by one from event to event of one daemon.
    pub id: String,
    /// When it happened, RFC 3339.
    pub at: String,
    /// The host on which it happened.
    pub node: String,
    /// What happened.
    #[serde(flatten)]
    pub what: Happened,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Happened {
    /// A VM has got its row.
    VmCreated {
        /// Its id.
        vm: VmId,
        /// Its name.
        vm_name: VmName,
    },
    /// A VM has entered a state.
    VmState {
        /// Its id.
        vm: VmId,
        /// Its name.
        vm_name: VmName,
        /// The state.
        state: VmState,
        /// Why, where nobody asked for it: `nobody has used it for 30 min`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// Why it failed, if it did.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        failure: Option<ApiError>,
    },
    /// Something is wrong with a VM, which goes on.
    VmWarning {
        /// Its id.
        vm: VmId,
        /// Its name.
        vm_name: VmName,
        /// What, as in the warnings of [`super::Vm`].
        warning: String,
    },
    /// Something else of a VM has changed: its name, size, labels.
    VmChanged {
        /// Its id.
        vm: VmId,
        /// Its name, the new one if that has changed.
        vm_name: VmName,
    },
    /// A VM is gone, and everything of it.
    VmDeleted {
        /// Its id.
        vm: VmId,
        /// Its name.
        vm_name: VmName,
        /// Why, where nobody asked for it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// An operation has begun or ended.
    Operation {
        /// Its id.
        operation: OperationId,
        /// What it does.
        kind: OperationKind,
        /// How far it is.
        state: OperationState,
        /// The VM it is about.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vm: Option<VmId>,
        /// The VM's name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vm_name: Option<VmName>,
        /// Why banger does it, where nobody asked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// Why it failed or was called off.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<ApiError>,
    },
    /// Events before this one are forgotten: whoever followed has missed some.
    Missed,
}

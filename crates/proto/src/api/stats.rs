//! What VMs use, and how they do.

use serde::{Deserialize, Serialize};

use super::VmState;
use crate::agent::{Health, Stats};
use crate::error::ApiError;
use crate::id::VmId;
use crate::name::VmName;
use crate::size::ByteSize;

/// What a VM uses at a moment. Counters grow; whoever wants rates takes two looks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmStats {
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub vm_name: VmName,
    /// The host that it is on.
    pub node: String,
    /// Its state.
    pub state: VmState,
    /// When the look was taken, in microseconds of the host's monotonic clock.
    pub at_us: u64,
    /// What the engine's process uses; `None` while there is none.
    pub host: Option<HostUsage>,
    /// What the guest tells; `None` while it cannot be asked.
    pub guest: Option<Stats>,
    /// Why the guest was not asked or did not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_error: Option<ApiError>,
    /// Bytes that its own disks take on the host.
    pub disk_used: ByteSize,
}

/// What the engine's process uses on the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostUsage {
    /// Its process id.
    pub pid: u32,
    /// CPU time that it has used, in microseconds.
    pub cpu_us: u64,
    /// Memory that it holds.
    pub memory: ByteSize,
}

/// How a VM does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmHealth {
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub vm_name: VmName,
    /// Its state.
    pub state: VmState,
    /// Whether it runs and its agent answers.
    pub healthy: bool,
    /// How long the agent took to answer, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_trip_ms: Option<f64>,
    /// What the agent tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Health>,
    /// Why it is not healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
}

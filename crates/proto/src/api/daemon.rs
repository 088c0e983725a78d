//! The daemon itself.

use serde::{Deserialize, Serialize};

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
    /// Number of operations that go on.
    #[serde(default)]
    pub operations: u32,
    /// Number of streams that are open: commands, shells, ssh connections and copies.
    #[serde(default)]
    pub streams: u32,
    /// What is odd and lasts, such as a damaged database that was replaced; a sentence each.
    #[serde(default)]
    pub warnings: Vec<String>,
}

//! How the guest came up: written by init, told by the agent.

use std::fs;
use std::io;
use std::path::Path;

use banger_proto::agent::BootStep;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Where init leaves its report for the agent, in the image's root.
pub const REPORT_PATH: &str = "/run/banger/boot.json";

/// Steps and troubles of the boot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BootReport {
    /// What is PID 1, in the words of [`banger_proto::agent::Health::init`].
    pub init: String,
    /// What was done, in order.
    pub steps: Vec<BootStep>,
    /// What went wrong without stopping the boot.
    pub warnings: Vec<String>,
}

impl BootReport {
    /// Notes the end of a step.
    pub fn step(&mut self, name: &str) {
        self.steps.push(BootStep {
            name: name.to_owned(),
            at_us: uptime_us(),
        });
    }

    /// Reads what init wrote.
    ///
    /// # Errors
    /// The file is missing or no report.
    pub fn read(path: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(path)?)?)
    }

    /// Leaves the report for the agent.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        fs::write(path, serde_json::to_vec(self)?)
    }
}

/// Microseconds since the kernel's start.
pub fn uptime_us() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    seconds * 1_000_000 + u64::try_from(time.tv_nsec).unwrap_or_default() / 1000
}

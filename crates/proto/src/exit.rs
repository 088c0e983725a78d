//! Exit statuses of `banger`, shared by the CLI and the guest agent.
//!
//! They follow what shells, `env` and `timeout` use, so that scripts need learn nothing new.

use serde::{Deserialize, Serialize};

/// Bad usage of a banger command (clap's own choice).
pub const USAGE: u8 = 2;
/// A command other than `vm run`, `vm exec` and `vm ssh` failed.
pub const FAILURE: u8 = 1;
/// The guest command ran into `--timeout`.
pub const TIMEOUT: u8 = 124;
/// banger itself failed to run the guest command.
pub const BANGER: u8 = 125;
/// The guest command was found but could not be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// The guest command was not found.
pub const NOT_FOUND: u8 = 127;

/// How a guest command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// It returned this code.
    Code(u8),
    /// This signal killed it.
    Signal(i32),
}

impl ExitStatus {
    /// The status that a shell would report: the code, or 128 + the signal.
    pub fn shell_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_reported_as_a_shell_does() {
        assert_eq!(ExitStatus::Signal(9).shell_code(), 137);
        assert_eq!(ExitStatus::Code(3).shell_code(), 3);
        assert_eq!(ExitStatus::Signal(1000).shell_code(), 255);
    }
}

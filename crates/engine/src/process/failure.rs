//! What is told of a process that failed: always the same three things.

use std::fmt;

/// A process failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessFailure {
    /// The program's name.
    pub command: String,
    /// How it ended, such as `exit status 1`.
    pub status: String,
    /// The last lines that it printed to standard error.
    pub stderr: Vec<String>,
}

impl fmt::Display for ProcessFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` ended with {}", self.command, self.status)?;
        match self.stderr.is_empty() {
            true => f.write_str(" and printed nothing"),
            false => write!(f, ": {}", self.stderr.join("; ")),
        }
    }
}

impl std::error::Error for ProcessFailure {}

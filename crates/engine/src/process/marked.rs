//! A process that carries a mark of banger's.

use std::io;

use banger_proto::id::InstanceId;

use crate::Mark;
use crate::process::{Look, Process, ProcessId};

/// A process that carries a mark, or descends from one that does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marked {
    /// Whose it is.
    pub mark: Mark,
    /// The process.
    pub process: ProcessId,
}

impl Marked {
    /// Kills the process; returns when it is gone. Succeeds when it has ended already.
    ///
    /// # Errors
    /// The system refuses, or the process does not go.
    pub async fn kill(&self) -> io::Result<()> {
        match Process::open(&self.process)? {
            Some(process) => process.kill().await.map(|_| ()),
            None => Ok(()),
        }
    }
}

/// All processes with a mark of this instance. Those of other users are seen only by root.
///
/// # Errors
/// `/proc` cannot be read.
pub fn marked(instance: &InstanceId) -> io::Result<Vec<Marked>> {
    Ok(Look::take()?.marked(instance))
}

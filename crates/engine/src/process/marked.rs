//! Which processes of this host carry banger's marks.

use std::fs;
use std::io;

use crate::Mark;
use crate::process::{Process, ProcessId};

/// A process that carries a mark.
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
pub fn marked(instance: &str) -> io::Result<Vec<Marked>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid == std::process::id() {
            continue;
        }
        // A process may end, or belong to someone else: then it is none of ours.
        let Ok(process) = ProcessId::of(pid) else {
            continue;
        };
        let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else {
            continue;
        };
        if let Some(mark) = mark_in(&environment).filter(|mark| mark.instance == instance) {
            found.push(Marked { mark, process });
        }
    }
    Ok(found)
}

/// The mark in an environment, as `/proc/<pid>/environ` shows it.
fn mark_in(environment: &[u8]) -> Option<Mark> {
    let value = environment.split(|byte| *byte == 0).find_map(|variable| {
        variable
            .strip_prefix(Mark::VARIABLE.as_bytes())?
            .strip_prefix(b"=")
    })?;
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_mark_is_found_among_other_variables() {
        let vm = banger_proto::id::VmId::new();
        let environment = format!("PATH=/bin\0BANGER_MARKS=no\0BANGER_MARK=1f2e/7/{vm}\0A=b\0");
        let mark = mark_in(environment.as_bytes()).unwrap();
        assert_eq!((mark.slot, mark.vm), (7, vm));
    }

    proptest! {
        #[test]
        fn any_environment_can_be_looked_at(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = mark_in(&bytes);
        }
    }
}

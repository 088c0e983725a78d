//! Which processes of this host carry banger's marks.

use std::fs;
use std::io;

use crate::process::{Process, ProcessId};
use crate::{MachineHandle, Mark, Place};

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
        if let Some(mark) = mark_of(pid).filter(|mark| mark.instance == instance) {
            found.push(Marked { mark, process });
        }
    }
    Ok(found)
}

/// The running machine of `place`: the process that the handle names, if it is still that
/// one and carries the mark, or else the oldest process that carries it.
///
/// # Errors
/// `/proc` cannot be read.
pub(crate) fn find(place: &Place, handle: Option<&MachineHandle>) -> io::Result<Option<Process>> {
    let mark = place.mark();
    if let Some(handle) = handle
        && let Some(process) = Process::open(&handle.process)?
        && mark_of(handle.process.pid).as_ref() == Some(&mark)
    {
        return Ok(Some(process));
    }
    let oldest = marked(&place.instance)?
        .into_iter()
        .filter(|found| found.mark == mark)
        .min_by_key(|found| found.process.start_time);
    match oldest {
        Some(found) => Process::open(&found.process),
        None => Ok(None),
    }
}

/// The mark of a process; `None` also when it may not be looked at.
fn mark_of(pid: u32) -> Option<Mark> {
    mark_in(&fs::read(format!("/proc/{pid}/environ")).ok()?)
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

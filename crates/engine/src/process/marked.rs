//! Which processes of this host carry banger's marks.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;

use crate::process::{Identity, Process, ProcessId};
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
    for process in processes()? {
        // One that may not be looked at is as a rule someone else's.
        if let Seen::Mark(mark) = see(process.pid)
            && mark.instance == instance
        {
            found.push(Marked { mark, process });
        }
    }
    Ok(found)
}

/// All processes with the mark of `place`.
///
/// # Errors
/// `/proc` cannot be read, or a process seems to be the machine's and its mark may not be
/// read: whether the machine runs is unknown then.
pub(crate) fn marked_at(place: &Place) -> io::Result<Vec<Marked>> {
    let (own, user) = (place.mark(), engine_user(place));
    let mut found = Vec::new();
    for process in processes()? {
        match see(process.pid) {
            Seen::Mark(mark) if mark == own => found.push(Marked { mark, process }),
            Seen::Hidden if user_of(process.pid) == Some(user) && names(process.pid, place) => {
                let message = format!(
                    "process {} may be the machine's, but its environment may not be read: \
                     that takes the capability CAP_SYS_PTRACE",
                    process.pid
                );
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
            }
            Seen::Mark(_) | Seen::NoMark | Seen::Hidden => {}
        }
    }
    Ok(found)
}

/// The running machine of `place`: the process that the handle names, if it still runs and
/// does not visibly lack the mark, or else the oldest process that carries it.
///
/// # Errors
/// As [`marked_at`].
pub(crate) fn find(place: &Place, handle: Option<&MachineHandle>) -> io::Result<Option<Process>> {
    if let Some(handle) = handle
        && let Some(process) = Process::open(&handle.process)?
    {
        match see(handle.process.pid) {
            Seen::Mark(mark) if mark == place.mark() => return Ok(Some(process)),
            // Its pid, start time and boot name it for ever; the mark would only confirm it.
            Seen::Hidden => return Ok(Some(process)),
            Seen::Mark(_) | Seen::NoMark => {}
        }
    }
    let oldest = marked_at(place)?
        .into_iter()
        .min_by_key(|found| found.process.start_time);
    match oldest {
        Some(found) => Process::open(&found.process),
        None => Ok(None),
    }
}

/// All processes but this one. Those that end meanwhile are left out.
fn processes() -> io::Result<Vec<ProcessId>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let pid = name.to_str().and_then(|name| name.parse::<u32>().ok());
        if let Some(pid) = pid.filter(|pid| *pid != std::process::id()) {
            found.extend(ProcessId::of(pid).ok());
        }
    }
    Ok(found)
}

/// What a look at a process's environment shows.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    /// It carries this mark.
    Mark(Mark),
    /// It carries none, or has ended.
    NoMark,
    /// It cannot be told, as a rule for want of permission (ptrace(2), "Ptrace access mode
    /// checking").
    Hidden,
}

fn see(pid: u32) -> Seen {
    match fs::read(format!("/proc/{pid}/environ")) {
        Ok(environment) => mark_in(&environment).map_or(Seen::NoMark, Seen::Mark),
        Err(error) => match (error.kind(), error.raw_os_error()) {
            (io::ErrorKind::NotFound, _) | (_, Some(libc::ESRCH)) => Seen::NoMark,
            _ => Seen::Hidden,
        },
    }
}

/// As whom the engine at `place` runs.
fn engine_user(place: &Place) -> u32 {
    Identity::for_engine(&place.instance, place.slot, None)
        .map_or_else(rustix::process::geteuid, |identity| identity.uid)
        .as_raw()
}

/// The real user of a process (`/proc/<pid>/status`, which everybody may read).
fn user_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    ids.split_ascii_whitespace().next()?.parse().ok()
}

/// Whether a process's arguments name the machine of `place`, as every engine's do: by its
/// name or by its socket. Everybody may read them.
fn names(pid: u32, place: &Place) -> bool {
    let socket = place.agent_socket();
    let (name, socket) = (place.machine_name(), socket.as_os_str().as_bytes());
    fs::read(format!("/proc/{pid}/cmdline"))
        .unwrap_or_default()
        .split(|byte| *byte == 0)
        .any(|argument| argument == name.as_bytes() || argument == socket)
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
    use crate::process::Detached;
    use proptest::prelude::*;
    use rustix::thread::CapabilitySet;

    #[test]
    fn a_mark_is_found_among_other_variables() {
        let vm = banger_proto::id::VmId::new();
        let environment = format!("PATH=/bin\0BANGER_MARKS=no\0BANGER_MARK=1f2e/7/{vm}\0A=b\0");
        let mark = mark_in(environment.as_bytes()).unwrap();
        assert_eq!((mark.slot, mark.vm), (7, vm));
    }

    #[tokio::test]
    async fn what_may_not_be_looked_at_is_known_by_its_handle_and_else_an_error() {
        let vm = banger_proto::id::VmId::new();
        let directory = tempfile::tempdir().unwrap();
        let place = Place {
            instance: vm.as_str()[..4].to_owned(),
            slot: 7,
            vm,
            runtime_dir: directory.path().to_owned(),
            log_dir: directory.path().to_owned(),
        };
        let (Some(identity), Ok(capabilities)) = (
            Identity::for_engine(&place.instance, place.slot, None),
            rustix::thread::capabilities(None),
        ) else {
            eprintln!("skipped: only root starts processes of other users");
            return;
        };
        let process = Detached {
            program: "sh".into(),
            arguments: ["-c", "kill -STOP $$", &place.machine_name()]
                .map(Into::into)
                .into(),
            mark: place.mark(),
            inherited: Vec::new(),
            log: fs::File::create(place.engine_log()).unwrap(),
            identity: Some(identity),
        }
        .spawn()
        .unwrap();
        let mut without = capabilities;
        // All that lets root read another user's environment, the file's mode included.
        let needed = CapabilitySet::SYS_PTRACE
            | CapabilitySet::PERFMON
            | CapabilitySet::DAC_OVERRIDE
            | CapabilitySet::DAC_READ_SEARCH;
        without.effective.remove(needed);
        // Of this thread alone.
        rustix::thread::set_capabilities(None, without).unwrap();

        let handle = |id: &ProcessId| MachineHandle {
            engine: banger_proto::api::EngineKind::Qemu,
            process: id.clone(),
        };
        let by_handle = find(&place, Some(&handle(process.id())));
        let by_mark = find(&place, None);
        let stale = ProcessId {
            start_time: process.id().start_time - 1,
            ..process.id().clone()
        };
        let by_stale_handle = find(&place, Some(&handle(&stale)));
        let released = crate::release::release(&place).await;
        let elsewhere = Place {
            slot: 8,
            ..place.clone()
        };
        let nothing_elsewhere = find(&elsewhere, None);
        rustix::thread::set_capabilities(None, capabilities).unwrap();
        let seen = find(&place, None);
        process.kill().await.unwrap();

        assert_eq!(by_handle.unwrap().unwrap().id(), process.id());
        for unknown in [by_mark, by_stale_handle] {
            let error = unknown.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            let pid = process.id().pid.to_string();
            assert!(error.to_string().contains(&pid), "{error}");
        }
        assert!(matches!(released, Err(crate::ReleaseError::Processes(_))));
        assert!(nothing_elsewhere.unwrap().is_none());
        assert_eq!(seen.unwrap().unwrap().id(), process.id());
    }

    proptest! {
        #[test]
        fn any_environment_can_be_looked_at(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = mark_in(&bytes);
        }
    }
}

//! A process that may be waited for and killed without ever meaning another one: it is held
//! by a pidfd, and recognised by its start time and the host's boot.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::reactor;

/// How long a killed process may take to go.
const KILL_LIMIT: Duration = Duration::from_secs(20);

/// Names one process of one boot of the host for ever.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// The process id; another process may get it later.
    pub pid: u32,
    /// Clock ticks from the host's boot to the process's start (`/proc/<pid>/stat`, field 22).
    pub start_time: u64,
    /// The host's boot (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
}

impl ProcessId {
    /// What the process that has `pid` at the moment is called.
    ///
    /// # Errors
    /// There is none.
    pub fn of(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let start_time = start_time(&stat)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "malformed stat"))?;
        Ok(Self {
            pid,
            start_time,
            boot_id: boot_id()?,
        })
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With this status.
    Status(ExitStatus),
    /// It was not this process's child, so that nobody here was told.
    Unseen,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => f.write_str(&banger_process::status(*status)),
            Self::Unseen => f.write_str("an unknown status"),
        }
    }
}

/// A process, running or ended. Clones mean the same process; dropping them ends nothing.
#[derive(Clone, Debug)]
pub struct Process {
    id: ProcessId,
    pidfd: Arc<AsyncFd<OwnedFd>>,
    ended: watch::Receiver<Option<Ended>>,
}

impl Process {
    /// Holds the process of this name. `None`: it has ended.
    ///
    /// # Errors
    /// The system refuses; also outside of a tokio runtime.
    pub fn open(id: &ProcessId) -> io::Result<Option<Self>> {
        if id.boot_id != boot_id()? {
            return Ok(None);
        }
        let Some(pid) = i32::try_from(id.pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Looked at after the pidfd is held: if the start time is right now, the pidfd means
        // that process and no later one.
        match fs::read_to_string(format!("/proc/{}/stat", id.pid)) {
            Ok(stat) if start_time(&stat) == Some(id.start_time) && !is_zombie(&stat) => {
                Self::watch(id.clone(), pidfd, Parent::Other).map(Some)
            }
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes over a child that nobody else waits for.
    pub(super) fn child(pid: u32) -> io::Result<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let raw = raw.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let pidfd = rustix::process::pidfd_open(raw, PidfdFlags::empty())?;
        Self::watch(ProcessId::of(pid)?, pidfd, Parent::Own)
    }

    fn watch(id: ProcessId, pidfd: OwnedFd, parent: Parent) -> io::Result<Self> {
        let pidfd = Arc::new(reactor::readable(pidfd)?);
        let watched = Arc::clone(&pidfd);
        let (tell, ended) = watch::channel(None);
        // The task, not a method, waits, so that a child is reaped whoever is interested.
        tokio::spawn(async move {
            // The guard's readiness is never cleared: a pidfd becomes readable once, for good.
            let how = match watched.readable().await {
                Ok(_) => status(watched.get_ref().as_fd(), parent),
                Err(_) => Ended::Unseen,
            };
            tell.send_replace(Some(how));
        });
        Ok(Self { id, pidfd, ended })
    }

    /// The process's name.
    pub fn id(&self) -> &ProcessId {
        &self.id
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<Ended> {
        *self.ended.borrow()
    }

    /// Resolves when the process has ended. Cancel-safe.
    pub async fn wait(&self) -> Ended {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(how) => how.unwrap_or(Ended::Unseen),
            // The watching task is gone: its runtime shuts down.
            Err(_) => Ended::Unseen,
        }
    }

    /// Sends a signal; succeeds when the process has ended.
    ///
    /// # Errors
    /// The system refuses.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(self.pidfd.get_ref(), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether a signal holds the process.
    ///
    /// # Errors
    /// It has ended.
    pub(crate) fn is_stopped(&self) -> io::Result<bool> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.id.pid))?;
        match start_time(&stat) == Some(self.id.start_time) && !is_zombie(&stat) {
            true => Ok(state(&stat) == Some('T')),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Kills the process; returns when it is gone.
    ///
    /// # Errors
    /// The system refuses, or the process does not go within 20 s.
    pub async fn kill(&self) -> io::Result<Ended> {
        self.signal(Signal::KILL)?;
        tokio::time::timeout(KILL_LIMIT, self.wait())
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "killed, but it does not end"))
    }
}

/// Who is to reap a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parent {
    /// The watcher that started it.
    Own,
    /// Someone else, who must find the status where it is.
    Other,
}

fn status(pidfd: BorrowedFd<'_>, parent: Parent) -> Ended {
    let mut options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    if parent == Parent::Other {
        options |= WaitIdOptions::NOWAIT;
    }
    let Ok(Some(status)) = rustix::process::waitid(WaitId::PidFd(pidfd), options) else {
        return Ended::Unseen;
    };
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Ended::Status(ExitStatus::from_raw((code & 0xff) << 8)),
        (None, Some(signal)) => Ended::Status(ExitStatus::from_raw(signal)),
        (None, None) => Ended::Unseen,
    }
}

/// Field 22 of `/proc/<pid>/stat`. The second field, the name in parentheses, may hold
/// anything, so that the count begins behind its end.
pub(super) fn start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn is_zombie(stat: &str) -> bool {
    matches!(state(stat), Some('Z' | 'X'))
}

/// Field 3 of `/proc/<pid>/stat`.
fn state(stat: &str) -> Option<char> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.trim_start().chars().next()
}

pub(super) fn boot_id() -> io::Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_process_cannot_hide_its_start_time() {
        let stat = "42 (a) R 1) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 777 8 9";
        assert_eq!(start_time(stat), Some(777));
        assert_eq!(start_time("42 (a"), None);
        assert_eq!(start_time("42 (a) S 1"), None);
    }

    #[tokio::test]
    async fn a_process_with_the_same_pid_is_not_the_same_process() {
        let id = ProcessId::of(std::process::id()).unwrap();
        assert!(Process::open(&id).unwrap().is_some());
        let earlier = ProcessId {
            start_time: id.start_time - 1,
            ..id.clone()
        };
        assert!(Process::open(&earlier).unwrap().is_none());
        let other_boot = ProcessId {
            boot_id: "another".to_owned(),
            ..id
        };
        assert!(Process::open(&other_boot).unwrap().is_none());
    }
}

//! How an engine's process is started.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use rustix::process::{Resource, Rlimit};

use crate::Mark;
use crate::process::{Identity, Process, Space};

/// Most descriptors that an engine may have open.
const OPEN_FILES: u64 = 4096;

/// A process to be started: detached from the daemon, unprivileged, and marked.
#[derive(Debug)]
pub(crate) struct Detached {
    /// The program; looked for in `PATH` if it has no slash.
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    pub mark: Mark,
    /// Descriptors that the process inherits, under the numbers that they have here.
    pub inherited: Vec<OwnedFd>,
    /// Where its output goes, if not to the log.
    pub output: Option<File>,
    /// Where its output and its errors go.
    pub log: File,
    /// Its working directory, if not the root.
    pub directory: Option<OwnedFd>,
    /// The namespaces that it enters; `None`: it stays in this process's.
    pub space: Option<Space>,
    /// Whom it becomes; `None`: nobody else.
    pub identity: Option<Identity>,
}

impl Detached {
    /// Starts it. Nothing in here awaits: the caller's future, when dropped, has started
    /// the process and can find it by its mark, or has not.
    ///
    /// # Errors
    /// The program cannot be executed, or the system refuses one of the measures.
    pub(crate) fn spawn(self) -> io::Result<Process> {
        let inherited: Vec<RawFd> = self.inherited.iter().map(AsRawFd::as_raw_fd).collect();
        let (space, directory, identity) = (self.space, self.directory, self.identity);
        let output = match self.output {
            Some(output) => output,
            None => self.log.try_clone()?,
        };
        let mut command = banger_process::command(&self.program);
        banger_process::detach(&mut command)
            .args(&self.arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("LC_ALL", "C.UTF-8")
            .env(Mark::VARIABLE, self.mark.to_string())
            .stdout(output)
            .stderr(self.log);
        // SAFETY: between fork and exec only async-signal-safe calls are allowed. `confine`
        // makes system calls and nothing else; it does not allocate, not even on failure.
        unsafe {
            command.pre_exec(move || {
                confine(
                    &inherited,
                    directory.as_ref(),
                    space.as_ref(),
                    identity.as_ref(),
                )
            })
        };
        let child = command.spawn()?;
        Process::child(child.id())
    }
}

/// Runs in the child, after it is cut loose.
fn confine(
    inherited: &[RawFd],
    directory: Option<&OwnedFd>,
    space: Option<&Space>,
    identity: Option<&Identity>,
) -> io::Result<()> {
    for fd in inherited {
        // SAFETY: the parent holds the descriptor open for as long as it spawns.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(*fd) };
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
    }
    limit(Resource::Core, 0)?;
    limit(Resource::Nofile, OPEN_FILES)?;
    if let Some(directory) = directory {
        // While this process may still go there by right of its user.
        rustix::process::fchdir(directory)?;
    }
    if let Some(space) = space {
        space.enter()?;
    }
    if let Some(identity) = identity {
        rustix::thread::set_thread_groups(&identity.groups)?;
        rustix::thread::set_thread_res_gid(identity.gid, identity.gid, identity.gid)?;
        rustix::thread::set_thread_res_uid(identity.uid, identity.uid, identity.uid)?;
    }
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

/// Lowers a limit, never raises it.
fn limit(resource: Resource, most: u64) -> io::Result<()> {
    let now = rustix::process::getrlimit(resource);
    let least = |limit: Option<u64>| Some(limit.map_or(most, |limit| limit.min(most)));
    let new = Rlimit {
        current: least(now.current),
        maximum: least(now.maximum),
    };
    Ok(rustix::process::setrlimit(resource, new)?)
}

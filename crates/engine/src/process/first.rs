//! A process that is the first one of a PID namespace: no other process of the host can be
//! named in there, so it can send none a signal, whoever its user is.
//!
//! ```text
//! daemon ── fork ──> a process that unshares: clone(CLONE_PARENT) ──> the engine
//!    ^               it says the engine's id, and ends                  │
//!    └──────────────────────────── its child ──────────────────────────┘
//! ```
//!
//! Who unshares a PID namespace stays outside, and only what it starts is in there. So there is
//! one process between, which is gone before the engine runs; the daemon is the engine's parent
//! all the same (clone(2), `CLONE_PARENT`), and is told how it ends.
//!
//! The kernel keeps from a first process every signal that would end it and that it has not
//! asked for, but for SIGKILL from outside and what an error of its own is answered with
//! (pid_namespaces(7), signal(7)).

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::process::Child;

use rustix::pipe::PipeFlags;
use rustix::process::{Pid, WaitOptions};

use crate::process::Process;

/// The daemon's end of the pipe.
#[derive(Debug)]
pub(super) struct Told(OwnedFd);

/// The other end, for the process between.
#[derive(Debug)]
pub(super) struct Teller(OwnedFd);

/// Both ends. Neither outlives an exec.
pub(super) fn pipe() -> io::Result<(Told, Teller)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    Ok((Told(read), Teller(write)))
}

impl Teller {
    /// Returns as the first process of a new PID namespace, in a session of its own; the process
    /// that called it ends. For the child between fork and exec: makes system calls only.
    pub(super) fn become_first(&self) -> io::Result<()> {
        // SAFETY: unshare takes a number.
        if unsafe { libc::unshare(libc::CLONE_NEWPID) } == -1 {
            return Err(io::Error::last_os_error());
        }
        let flags = libc::c_long::from(libc::CLONE_PARENT | libc::SIGCHLD);
        let none: libc::c_long = 0;
        // SAFETY: without CLONE_VM and with no stack of its own this is a fork: the new process
        // has a copy of the only thread, and of all memory.
        match unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) } {
            -1 => Err(io::Error::last_os_error()),
            0 => Ok(rustix::process::setsid().map(drop)?),
            engine => {
                let told = rustix::io::write(&self.0, &engine.to_ne_bytes());
                // SAFETY: ends this process, at once.
                unsafe { libc::_exit(told.is_err().into()) }
            }
        }
    }
}

impl Told {
    /// The engine of which `spawned`, the process between, has told. Every end of the pipe but
    /// this one was closed here.
    pub(super) fn engine(self, spawned: io::Result<Child>) -> io::Result<Process> {
        let engine = self.id();
        match spawned {
            Ok(mut between) => {
                between.wait()?;
                Process::child(engine?)
            }
            Err(error) => {
                // What could not become the engine has ended, and this is its parent.
                if let Some(pid) = engine.ok().and_then(|id| Pid::from_raw(id.cast_signed())) {
                    rustix::process::waitpid(Some(pid), WaitOptions::empty())?;
                }
                Err(error)
            }
        }
    }

    fn id(self) -> io::Result<u32> {
        let mut id = [0; size_of::<libc::c_long>()];
        File::from(self.0).read_exact(&mut id)?;
        let id = libc::c_long::from_ne_bytes(id);
        u32::try_from(id).map_err(io::Error::other)
    }
}

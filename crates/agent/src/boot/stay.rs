//! PID 1 where the image has no init: reaps orphans, keeps the agent alive, powers off.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::process::Child;
use std::ptr;
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitOptions, wait};

use super::BootError;
use crate::power;

/// The signal by which the agent asks for the end.
pub(super) const POWER_OFF: i32 = libc::SIGUSR1;

/// How long processes have to end by themselves.
const GRACE: Duration = Duration::from_secs(5);
/// How long after its start an agent may die and be started again at once.
const LEAST_LIFE: Duration = Duration::from_secs(1);

/// Does an init's work until the machine is off.
pub(super) fn stay(agent: Child, system: Option<OwnedFd>) -> Result<Infallible, BootError> {
    let signals = block_signals().map_err(BootError::Wait)?;
    // Ctrl-Alt-Del sends SIGINT from now on, rather than resetting the machine.
    let _ = rustix::system::reboot(rustix::system::RebootCommand::CadOff);
    let mut agent = Agent {
        pid: pid_of(&agent),
        started: Instant::now(),
    };
    loop {
        match next_signal(&signals, None).map_err(BootError::Wait)? {
            Some(libc::SIGCHLD) => agent.reap(system.as_ref(), &signals)?,
            Some(_) => {
                end_processes(agent.pid, &signals);
                power::power_off(system.as_ref());
            }
            None => {}
        }
    }
}

struct Agent {
    pid: Pid,
    started: Instant,
}

impl Agent {
    /// Takes every child that has ended; if the agent is among them, starts it again.
    fn reap(
        &mut self,
        system: Option<&OwnedFd>,
        signals: &libc::sigset_t,
    ) -> Result<(), BootError> {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if pid != self.pid {
                continue;
            }
            let how = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => format!("with status {code}"),
                (None, Some(signal)) => format!("by signal {signal}"),
                (None, None) => "somehow".to_owned(),
            };
            super::say(&format!("the agent ended {how} and is started again"));
            if self.started.elapsed() < LEAST_LIFE {
                // Not at once again and again. Whatever ends meanwhile is reaped after it.
                next_signal_but_child(signals, LEAST_LIFE);
            }
            let child =
                super::start_agent(super::Start::Again, system).map_err(BootError::Agent)?;
            *self = Self {
                pid: pid_of(&child),
                started: Instant::now(),
            };
        }
        Ok(())
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// Asks all processes but the agent to end, then makes them.
fn end_processes(agent: Pid, signals: &libc::sigset_t) {
    // SAFETY: kill has no memory to go wrong with; -1 means all but PID 1.
    unsafe { libc::kill(-1, libc::SIGTERM) };
    let end = Instant::now() + GRACE;
    while others(agent) {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        // Orphans are this process's children, so their end is a SIGCHLD.
        let _ = next_signal(signals, Some(left));
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
    }
    // SAFETY: as above.
    unsafe { libc::kill(-1, libc::SIGKILL) };
}

/// Whether processes other than PID 1, the agent and the kernel's own threads live.
fn others(agent: Pid) -> bool {
    let entries = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|&pid| pid != 1 && pid != agent.as_raw_pid())
        // Only user processes have a command line.
        .any(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty()))
}

fn block_signals() -> io::Result<libc::sigset_t> {
    // SAFETY: sigset_t is plain memory that sigemptyset initialises; all calls get valid
    // pointers, and this process has one thread.
    unsafe {
        let mut signals: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut signals);
        for signal in [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, POWER_OFF] {
            libc::sigaddset(&raw mut signals, signal);
        }
        match libc::sigprocmask(libc::SIG_BLOCK, &raw const signals, ptr::null_mut()) {
            0 => Ok(signals),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Waits for one of the blocked signals; `None` at the limit.
fn next_signal(signals: &libc::sigset_t, limit: Option<Duration>) -> io::Result<Option<i32>> {
    let limit = limit.map(|limit| libc::timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(limit.subsec_nanos()),
    });
    let limit = limit.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: the set is initialised, the limit valid or null, and no information wanted.
    match unsafe { libc::sigtimedwait(signals, ptr::null_mut(), limit) } {
        -1 => match io::Error::last_os_error() {
            error if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => Ok(None),
            error => Err(error),
        },
        signal => Ok(Some(signal)),
    }
}

/// Lets time pass, but not when the machine is to be powered off: that signal stays pending.
fn next_signal_but_child(signals: &libc::sigset_t, limit: Duration) {
    let mut others = *signals;
    // SAFETY: the set is initialised.
    unsafe { libc::sigdelset(&raw mut others, libc::SIGCHLD) };
    if let Ok(Some(signal)) = next_signal(&others, Some(limit)) {
        // SAFETY: kill has no memory to go wrong with; the signal is blocked here.
        unsafe { libc::kill(1, signal) };
    }
}

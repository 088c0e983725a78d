//! Keeps the guest's agent running: whoever dies in a guest, the host can reach it again.
//!
//! ```text
//! image with an init:  init (PID 1)      @banger-keeper ── @banger-vsock-agent
//! without one:         PID 1 = `stay` ── @banger-vsock-agent
//! ```
//!
//! An agent that ends is started again, at once when it has lived for a while, and after a pause
//! that grows up to [`PAUSE_MAX`] when it has not. The keeper starts no runtime and holds nothing
//! but the system disk's directory, so that it is small and has no reason to die by itself.

use std::convert::Infallible;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};

use super::BootError;
use super::signals::{self, Signals};
use crate::guest::{SYSTEM_DESCRIPTOR, settle};

/// How long an agent must have lived to be started again without a pause.
const LONG_LIFE: Duration = Duration::from_secs(10);
/// The first and the longest pause after agents that did not live long.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// What keeper and agent say when there is no log.
const ERRORS: &str = "/run/banger/agent.err";

/// Which of its starts an agent has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// The link is fresh.
    First,
    /// The agent before has ended, in these words. The host may be in the middle of a
    /// conversation with it.
    Again(String),
}

/// The agent, as its parent sees it.
pub(super) struct Keeper {
    system: Option<OwnedFd>,
    agent: Option<Pid>,
    started: Instant,
    /// The next start, and when it is due.
    next: Option<(Instant, Start)>,
    pause: Duration,
}

impl Keeper {
    /// Starts the agent; one that cannot be started now is started later.
    pub(super) fn start(system: Option<OwnedFd>) -> Self {
        let mut keeper = Self::without_agent(system);
        keeper.next = Some((keeper.started, Start::First));
        keeper.start_what_is_due();
        keeper
    }

    /// Only reaps: another process keeps the agent.
    pub(super) fn without_agent(system: Option<OwnedFd>) -> Self {
        Self {
            system,
            agent: None,
            started: Instant::now(),
            next: None,
            pause: Duration::ZERO,
        }
    }

    pub(super) fn system(&self) -> Option<&OwnedFd> {
        self.system.as_ref()
    }

    /// How long it is until the agent must be started; `None`: it need not.
    pub(super) fn wait(&self) -> Option<Duration> {
        let (due, _) = self.next.as_ref()?;
        Some(due.saturating_duration_since(Instant::now()))
    }

    /// Starts the agent if it is time for that.
    pub(super) fn start_what_is_due(&mut self) {
        let now = Instant::now();
        let Some((_, start)) = self.next.take_if(|(due, _)| *due <= now) else {
            return;
        };
        self.started = now;
        let arguments = match &start {
            Start::First => vec!["guest"],
            Start::Again(how) => vec!["guest-again", how.as_str()],
        };
        match spawn("@banger-vsock-agent", &arguments, self.system.as_ref()) {
            Ok(pid) => self.agent = Some(pid),
            Err(error) => {
                super::say(&format!("could not start the agent: {error}"));
                self.again(start);
            }
        }
    }

    /// Takes every child that has ended.
    pub(super) fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if Some(pid) == self.agent {
                self.agent = None;
                let how = Ended(status).to_string();
                super::say(&format!("the agent ended {how} and is started again"));
                self.again(Start::Again(how));
            }
        }
    }

    fn again(&mut self, start: Start) {
        self.pause = next_pause(self.pause, self.started.elapsed());
        self.next = Some((Instant::now() + self.pause, start));
    }
}

/// How long the next start waits, after the pause before and a life of this length.
fn next_pause(before: Duration, life: Duration) -> Duration {
    match life >= LONG_LIFE {
        true => Duration::ZERO,
        false => (before * 2).clamp(PAUSE_MIN, PAUSE_MAX),
    }
}

/// How a process has ended.
struct Ended(WaitStatus);

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.exit_status(), self.0.terminating_signal()) {
            (Some(code), _) => write!(f, "with status {code}"),
            (None, Some(signal)) => write!(f, "by signal {signal}"),
            (None, None) => f.write_str("somehow"),
        }
    }
}

/// Starts the process that keeps the agent beside the image's init.
pub(super) fn start_keeper(system: Option<&OwnedFd>) -> io::Result<()> {
    spawn("@banger-keeper", &["keep"], system).map(drop)
}

/// The keeper's process, until the machine is off.
///
/// # Errors
/// It cannot wait for its child.
pub fn keep() -> Result<Infallible, BootError> {
    let system = settle(c"banger-keeper");
    // Init systems send these to all processes at shutdown; banger's stay for the end.
    let signals = [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
    let signals = Signals::block(&signals).map_err(BootError::Wait)?;
    let mut keeper = Keeper::start(system);
    loop {
        if signals.next(keeper.wait()).map_err(BootError::Wait)? == Some(libc::SIGCHLD) {
            keeper.reap();
        }
        keeper.start_what_is_due();
    }
}

/// Starts this very program, whose file is already gone from the root.
///
/// Its name begins with `@`, by which systemd knows a process that must outlive the others
/// at shutdown (systemd.io/ROOT_STORAGE_DAEMONS).
#[expect(
    clippy::disallowed_methods,
    reason = "the guest's program shares nothing with the host's"
)]
fn spawn(name: &str, arguments: &[&str], system: Option<&OwnedFd>) -> io::Result<Pid> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(name).args(arguments);
    command.current_dir("/").env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::null());
    // An init may have covered /run: then it goes where this process's own words go.
    if let Ok(errors) = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(ERRORS)
    {
        command.stderr(errors);
    }
    // Another number than the one it gets there, where dup2 would not clear close-on-exec.
    let system = system
        .map(|system| fcntl_dupfd_cloexec(system, SYSTEM_DESCRIPTOR + 1))
        .transpose()?;
    // SAFETY: it is async-signal-safe.
    unsafe { command.pre_exec(signals::unblock_all) };
    if let Some(system) = &system {
        let system = system.as_raw_fd();
        // SAFETY: `system` stays open in the child until it executes the program; dup2 is
        // async-signal-safe.
        unsafe {
            command.pre_exec(move || match libc::dup2(system, SYSTEM_DESCRIPTOR) {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(()),
            });
        }
    }
    command.spawn().map(|child| Pid::from_child(&child))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_dies_soon_is_started_after_a_pause_that_grows_to_its_limit() {
        let (soon, late) = (Duration::from_millis(1), LONG_LIFE);
        let mut pause = Duration::ZERO;
        let mut pauses = Vec::new();
        for _ in 0..10 {
            pause = next_pause(pause, soon);
            pauses.push(pause.as_millis());
        }
        assert_eq!(
            pauses,
            [100, 200, 400, 800, 1600, 3200, 6400, 10000, 10000, 10000]
        );
        assert_eq!(next_pause(pause, late), Duration::ZERO);
    }
}

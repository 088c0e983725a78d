//! PID 1 where the image has no init: reaps orphans, keeps the agent alive, powers off.

use std::convert::Infallible;
use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{WaitOptions, wait};

use super::BootError;
use super::keep::Keeper;
use super::signals::Signals;
use crate::power;

/// The signal by which the agent asks for the end.
pub(super) const POWER_OFF: i32 = libc::SIGUSR1;

/// How long processes have to end by themselves.
const GRACE: Duration = Duration::from_secs(5);

/// Does an init's work until the machine is off.
pub(super) fn stay(start: impl FnOnce() -> Keeper) -> Result<Infallible, BootError> {
    let signals = [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, POWER_OFF];
    // Blocked before there is an agent, so that none of its signals is lost.
    let signals = Signals::block(&signals).map_err(BootError::Wait)?;
    // Ctrl-Alt-Del sends SIGINT from now on, rather than resetting the machine.
    let _ = rustix::system::reboot(rustix::system::RebootCommand::CadOff);
    let mut keeper = start();
    loop {
        match signals.next(keeper.wait()).map_err(BootError::Wait)? {
            Some(libc::SIGCHLD) => keeper.reap(),
            Some(_) => {
                end_processes(&signals);
                power::power_off(keeper.system());
            }
            None => {}
        }
        keeper.start_what_is_due();
    }
}

/// Asks all processes but banger's own to end, then makes them.
fn end_processes(signals: &Signals) {
    // SAFETY: kill has no memory to go wrong with; -1 means all but PID 1.
    unsafe { libc::kill(-1, libc::SIGTERM) };
    let end = Instant::now() + GRACE;
    while others() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        // Orphans are this process's children, so their end is a SIGCHLD.
        let _ = signals.next(Some(left));
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
    }
    // SAFETY: as above.
    unsafe { libc::kill(-1, libc::SIGKILL) };
}

/// Whether processes other than PID 1, banger's own and the kernel's threads live.
fn others() -> bool {
    let entries = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|&pid| pid != 1)
        // Only user processes have a command line, and banger's begin with `@`.
        .any(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline"));
            line.is_ok_and(|line| !line.is_empty() && line[0] != b'@')
        })
}

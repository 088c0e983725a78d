//! Runs a short program to its end, for what it prints.

use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

/// Runs `program` and returns what it prints to standard output. Blocks.
///
/// # Errors
/// It cannot be executed, fails, or is not done within `limit`.
pub(crate) fn capture(program: &Path, arguments: &[&str], limit: Duration) -> io::Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    let ended = rustix::process::pidfd_open(pid, PidfdFlags::empty()).and_then(|pidfd| {
        let timeout = Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: 0,
        };
        rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout))
    });
    if !matches!(ended, Ok(1)) {
        child.kill()?;
        child.wait()?;
        return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not end"));
    }
    let status = child.wait()?;
    if !status.success() {
        return Err(io::Error::other(format!("it ended with {status}")));
    }
    let mut printed = String::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(64 * 1024).read_to_string(&mut printed)?;
    }
    Ok(printed)
}

//! Runs a program to its end, for what it prints.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use crate::ProcessFailure;

/// Most of the output that is kept: enough for all that is run for its output.
const OUTPUT_MAX: usize = 16 << 20;
/// Most of standard error that is kept: its end.
const STDERR_MAX: usize = 16 << 10;

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It cannot be executed.
    #[error("could not start `{command}`")]
    Start {
        /// The program, as it was named.
        command: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It cannot be waited for.
    #[error("could not wait for `{command}`")]
    Wait {
        /// The program, as it was named.
        command: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It failed.
    #[error(transparent)]
    Failed(#[from] ProcessFailure),
    /// It was killed, as it took too long.
    #[error("`{command}` did not end within {} s", limit.as_secs_f32())]
    Timeout {
        /// The program, as it was named.
        command: String,
        /// How long it had.
        limit: Duration,
    },
}

/// Runs `command` to its end, and returns what it prints to standard output. Blocks; with a
/// `limit` the program is killed then.
///
/// # Errors
/// It cannot be executed, fails, or is not done within `limit`.
pub fn run(command: &mut Command, limit: Option<Duration>) -> Result<Vec<u8>, RunError> {
    let named = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| RunError::Start {
            command: named.clone(),
            source,
        })?;
    let read = read_to_end(&mut child, limit.map(|limit| Instant::now() + limit));
    if !matches!(read, Ok(Some(_))) {
        // It fails for a process that has ended, which is what is wanted.
        let _ = child.kill();
    }
    let unwaited = |source| RunError::Wait {
        command: named.clone(),
        source,
    };
    let status = child.wait().map_err(unwaited)?;
    match read.map_err(unwaited)? {
        None => Err(RunError::Timeout {
            command: named,
            limit: limit.unwrap_or_default(),
        }),
        Some(printed) if status.success() => Ok(printed.output),
        Some(printed) => Err(ProcessFailure::new(&named, status, &printed.stderr).into()),
    }
}

/// What a process has printed.
#[derive(Default)]
struct Printed {
    output: Vec<u8>,
    stderr: Vec<u8>,
}

/// Reads both pipes until they and the process have ended. `None`: the deadline came first.
fn read_to_end(child: &mut Child, deadline: Option<Instant>) -> io::Result<Option<Printed>> {
    let pidfd = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let mut stdout = child
        .stdout
        .take()
        .map(|pipe| File::from(OwnedFd::from(pipe)));
    let mut stderr = child
        .stderr
        .take()
        .map(|pipe| File::from(OwnedFd::from(pipe)));
    let mut process = Some(pidfd);
    let mut printed = Printed::default();
    loop {
        let waited = [
            stdout.as_ref().map(AsFd::as_fd),
            stderr.as_ref().map(AsFd::as_fd),
            process.as_ref().map(AsFd::as_fd),
        ];
        let mut polled: Vec<PollFd<'_>> = waited
            .iter()
            .flatten()
            .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
            .collect();
        if polled.is_empty() {
            return Ok(Some(printed));
        }
        match rustix::event::poll(&mut polled, time_left(deadline).as_ref()) {
            Ok(0) => return Ok(None),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = polled.iter().map(|fd| !fd.revents().is_empty());
        let [out, err, end] = waited.map(|fd| fd.is_some() && ready.next().unwrap_or(false));
        if out {
            stdout = read_some(stdout, &mut printed.output)?;
            printed.output.truncate(OUTPUT_MAX);
        }
        if err {
            stderr = read_some(stderr, &mut printed.stderr)?;
            let surplus = printed.stderr.len().saturating_sub(STDERR_MAX);
            printed.stderr.drain(..surplus);
        }
        if end {
            process = None;
        }
    }
}

/// Takes what there is to read. `None`: the pipe has ended.
fn read_some(pipe: Option<File>, into: &mut Vec<u8>) -> io::Result<Option<File>> {
    let mut room = [0; 16 << 10];
    let Some(mut open) = pipe else {
        return Ok(None);
    };
    let length = open.read(&mut room)?;
    into.extend_from_slice(&room[..length]);
    Ok((length > 0).then_some(open))
}

fn time_left(deadline: Option<Instant>) -> Option<Timespec> {
    let left = deadline?.saturating_duration_since(Instant::now());
    Some(Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Option<Duration> = Some(Duration::from_secs(60));

    fn script(script: &str) -> Command {
        let mut command = crate::command("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_program_that_fails_is_told_of_by_command_status_and_last_words() {
        let failure = |words: &str| run(&mut script(words), LIMIT).unwrap_err().to_string();
        let failures = [
            failure("echo out; echo first >&2; echo last >&2; exit 3"),
            failure("kill -9 $$"),
        ];
        assert_eq!(
            failures,
            [
                "`sh` ended with exit status 3: first; last",
                "`sh` ended with signal 9 and printed nothing"
            ]
        );
    }

    #[test]
    fn more_than_a_pipe_holds_is_read_from_both_pipes() {
        let printed = run(
            &mut script("head -c 300000 /dev/zero >&2; head -c 400000 /dev/zero"),
            LIMIT,
        );
        assert_eq!(printed.unwrap().len(), 400_000);
    }

    #[test]
    fn a_program_that_does_not_end_is_killed_when_its_time_is_over() {
        let mut endless = crate::command("sleep");
        endless.arg("3600");
        let begun = Instant::now();
        let error = run(&mut endless, Some(Duration::from_millis(50))).unwrap_err();
        assert_eq!(error.to_string(), "`sleep` did not end within 0.05 s");
        assert!(begun.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = run(&mut crate::command("/nonexistent/program"), None).unwrap_err();
        assert_eq!(error.to_string(), "could not start `/nonexistent/program`");
    }
}

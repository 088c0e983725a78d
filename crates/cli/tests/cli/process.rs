//! Runs `banger`, with a limit on everything.

#![expect(clippy::disallowed_methods, reason = "tests start what they test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::daemon::LIMIT;

/// `banger` in the home of a test, with nothing of the tester's environment.
pub fn banger(home: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_banger"));
    command
        .args(words)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("BANGER_HOME", home)
        .env("BANGER_DAEMON_BIN", "/nowhere/bangerd")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs it to its end.
pub fn run(home: &Path, words: &[&str]) -> Said {
    Running::start(banger(home, words)).wait()
}

/// What a command said and how it ended.
#[derive(Debug)]
pub struct Said {
    pub status: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Said {
    pub fn stdout(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

/// A command that runs; killed if the test forgets it.
pub struct Running {
    pub child: Child,
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        Self {
            child: command.spawn().unwrap(),
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Gives it its whole input, from a thread.
    pub fn feed(&mut self, bytes: Vec<u8>) {
        let mut stdin = self.child.stdin.take().unwrap();
        std::thread::spawn(move || stdin.write_all(&bytes));
    }

    /// The next line of its output.
    pub fn line(&mut self) -> String {
        let stdout = self.child.stdout.as_mut().unwrap();
        let mut line = String::new();
        // One byte at a time, so that what follows stays in the pipe.
        BufReader::with_capacity(1, stdout)
            .read_line(&mut line)
            .unwrap();
        line
    }

    pub fn error_line(&mut self) -> String {
        let mut line = String::new();
        BufReader::with_capacity(1, self.child.stderr.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        line
    }

    /// Waits for its end, at most for the limit.
    pub fn wait(mut self) -> Said {
        let mut stdout = self.child.stdout.take();
        let mut stderr = self.child.stderr.take();
        let reading = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(stdout) = &mut stdout {
                let _ = stdout.read_to_end(&mut bytes);
            }
            bytes
        });
        let complaining = std::thread::spawn(move || {
            let mut text = String::new();
            if let Some(stderr) = &mut stderr {
                let _ = stderr.read_to_string(&mut text);
            }
            text
        });
        let status = self.status();
        Said {
            status,
            stdout: reading.join().unwrap(),
            stderr: complaining.join().unwrap(),
        }
    }

    pub fn status(&mut self) -> Option<i32> {
        let process = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).unwrap();
        let limit = Timespec {
            tv_sec: i64::try_from(LIMIT.as_secs()).unwrap(),
            tv_nsec: 0,
        };
        let mut ended = [PollFd::new(&process, PollFlags::IN)];
        assert_eq!(
            poll(&mut ended, Some(&limit)).unwrap(),
            1,
            "it did not end in time"
        );
        self.child.wait().unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

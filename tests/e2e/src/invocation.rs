//! One command of a test: what it gets, how long it may take, and what came of it.
//!
//! Nothing in here waits without a limit: a command that hangs fails its test and is killed.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// Enough for a VM to boot on a busy machine without hardware virtualisation.
const LIMIT: Duration = Duration::from_secs(180);
/// How long the ends of a command's output may stay open after it has exited.
const OUTPUT_LIMIT: Duration = Duration::from_secs(10);

/// By what factor everything takes longer in this run: `BANGER_TEST_PATIENCE`.
pub(crate) fn patience() -> u32 {
    let set = std::env::var("BANGER_TEST_PATIENCE");
    set.map_or(1, |factor| {
        factor.parse().expect("BANGER_TEST_PATIENCE is a number")
    })
}

/// A command that has not started yet.
#[derive(Debug)]
pub struct Invocation {
    command: Command,
    input: Input,
    limit: Duration,
}

/// What a command reads.
#[derive(Debug)]
enum Input {
    Nothing,
    All(Vec<u8>),
    Open,
}

impl Invocation {
    /// A command without input.
    pub fn new(command: Command) -> Self {
        Self {
            command,
            input: Input::Nothing,
            limit: LIMIT * patience(),
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Gives it this as its whole input.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Input::All(bytes.into());
        self
    }

    /// Keeps its input open, for [`Running::write`] and [`Running::close_stdin`].
    #[must_use]
    pub fn open_stdin(mut self) -> Self {
        self.input = Input::Open;
        self
    }

    /// Gives it so much time.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit * patience();
        self
    }

    /// The command itself, for those who start it in their own way.
    pub fn into_command(self) -> Command {
        self.command
    }

    /// Runs it to its end.
    pub fn run(self) -> Output {
        self.start().wait()
    }

    /// Starts it.
    pub fn start(mut self) -> Running {
        let shown = show(&self.command);
        let mut child = self
            .command
            .stdin(match self.input {
                Input::Nothing => Stdio::null(),
                Input::All(_) | Input::Open => Stdio::piped(),
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("could not start `{shown}`: {error}"));
        let mut stdin = child.stdin.take();
        if let Input::All(bytes) = self.input {
            let mut pipe = stdin.take().expect("it is piped");
            // A command that ends before it read everything closes the pipe: not our affair.
            std::thread::spawn(move || pipe.write_all(&bytes));
        }
        Running {
            stdout: Collected::of(child.stdout.take().expect("it is piped")),
            stderr: Collected::of(child.stderr.take().expect("it is piped")),
            stdin,
            child,
            shown,
            limit: self.limit,
        }
    }
}

/// A command that runs.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdin: Option<std::process::ChildStdin>,
    stdout: Collected,
    stderr: Collected,
    shown: String,
    limit: Duration,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes to its input.
    pub fn write(&mut self, bytes: &[u8]) {
        let pipe = self.stdin.as_mut().expect("its input is still open");
        pipe.write_all(bytes).expect("it reads its input");
    }

    /// Ends its input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it has not been waited for");
    }

    /// Waits until its standard output holds `words`.
    #[track_caller]
    pub fn expect_stdout(&mut self, words: &str) {
        let found = self.stdout.wait_for(words, self.limit);
        assert!(found, "no `{words}`: {self:?}");
    }

    /// Waits until its standard error holds `words`.
    #[track_caller]
    pub fn expect_stderr(&mut self, words: &str) {
        let found = self.stderr.wait_for(words, self.limit);
        assert!(found, "no `{words}`: {self:?}");
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Output {
        let exited = exits_within(&self.child, self.limit);
        if !exited {
            let _ = self.child.kill();
        }
        let status = self.child.wait().expect("it is our child");
        self.stdin = None;
        let output = Output {
            status,
            stdout: self.stdout.all("standard output", &self.shown),
            stderr: String::from_utf8_lossy(&self.stderr.all("standard error", &self.shown))
                .into_owned(),
            shown: self.shown,
        };
        assert!(exited, "it did not end within {:?}: {output:?}", self.limit);
        output
    }
}

/// What came of a command.
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: String,
    shown: String,
}

impl Output {
    /// Asserts that it succeeded, and returns its standard output as text without the last
    /// line's end.
    #[track_caller]
    pub fn text(self) -> String {
        let output = self.exited_with(0);
        match String::from_utf8(output.stdout) {
            Ok(text) => text.trim_end_matches('\n').to_owned(),
            Err(error) => panic!("`{}` wrote no text: {error}", output.shown),
        }
    }

    /// Asserts that it succeeded, and returns its standard output as JSON.
    #[track_caller]
    pub fn json(self) -> serde_json::Value {
        let text = self.text();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in: {text}"))
    }

    /// Asserts its exit status.
    #[track_caller]
    pub fn exited_with(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "{self:?}");
        self
    }

    /// Asserts that standard error tells this.
    #[track_caller]
    pub fn says(self, words: &str) -> Self {
        assert!(self.stderr.contains(words), "no `{words}` in {self:?}");
        self
    }
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const SHOWN: usize = 4096;
        let stdout = &self.stdout[..self.stdout.len().min(SHOWN)];
        writeln!(f, "`{}`", self.shown)?;
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => writeln!(f, "exited with {code}")?,
            (None, signal) => writeln!(f, "was killed by {signal:?}")?,
        }
        writeln!(f, "--- {} bytes of stdout", self.stdout.len())?;
        writeln!(f, "{}", String::from_utf8_lossy(stdout))?;
        write!(f, "--- stderr\n{}", self.stderr)
    }
}

/// Waits for the end of a process without taking its status: true if it came in time.
pub fn exits_within(child: &Child, limit: Duration) -> bool {
    pid_exits_within(Pid::from_child(child), limit)
}

/// The same for any process of ours to watch.
pub fn pid_exits_within(pid: Pid, limit: Duration) -> bool {
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => becomes_readable(&pidfd, limit),
        Err(_) => true, // there is no such process any more
    }
}

/// Waits until there is something to read: true if it came in time.
pub fn becomes_readable(descriptor: &OwnedFd, limit: Duration) -> bool {
    let limit = Timespec::try_from(limit).expect("limits are short");
    let mut descriptors = [PollFd::new(descriptor, PollFlags::IN)];
    poll(&mut descriptors, Some(&limit)).expect("poll works on a descriptor of ours") > 0
}

/// What a thread of its own reads from a command's output.
struct Collected {
    chunks: Receiver<Vec<u8>>,
    bytes: Vec<u8>,
}

impl Collected {
    fn of(mut from: impl Read + Send + 'static) -> Self {
        let (sender, chunks) = channel();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(length @ 1..) = from.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self {
            chunks,
            bytes: Vec::new(),
        }
    }

    /// Reads on until `words` were there: true if they came in time.
    fn wait_for(&mut self, words: &str, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            if String::from_utf8_lossy(&self.bytes).contains(words) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.chunks.recv_timeout(left) {
                Ok(chunk) => self.bytes.extend(chunk),
                Err(_) => return false,
            }
        }
    }

    /// Everything to its end, which must come soon now that the command has ended.
    fn all(mut self, what: &str, shown: &str) -> Vec<u8> {
        loop {
            match self.chunks.recv_timeout(OUTPUT_LIMIT) {
                Ok(chunk) => self.bytes.extend(chunk),
                Err(RecvTimeoutError::Disconnected) => return self.bytes,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("`{shown}` has ended, and something still holds its {what}")
                }
            }
        }
    }
}

impl std::fmt::Debug for Collected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.bytes))
    }
}

fn show(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let mut shown = program
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    for argument in command.get_args() {
        shown.push(' ');
        shown.push_str(&argument.to_string_lossy());
    }
    shown
}

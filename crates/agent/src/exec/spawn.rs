//! How a plan becomes a process: fork, the steps of the child, and what their failure means.
//!
//! The child can report one number through the standard library's pipe. It puts the step
//! that failed above the error number, so that a missing directory is told from a missing
//! command without a second look at the file system.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::ptr;

use banger_proto::agent::Pty;
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::pty::{OpenptFlags, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::Refusal;
use super::plan::Plan;
use super::process::{Ends, Process};
use super::user::User;

/// Room in a pipe: enough that the command rarely waits for the agent's next turn.
const PIPE_SIZE: usize = 256 * 1024;

/// Steps of the child that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Session = 1,
    User = 2,
    Directory = 3,
    Execute = 4,
}

/// Bits that an error number has at most: Linux has errors up to 4095 (`MAX_ERRNO`).
const ERRNO_BITS: i32 = 12;

#[expect(
    clippy::disallowed_methods,
    reason = "the guest's program shares nothing with the host's"
)]
pub(super) fn spawn(plan: &Plan) -> Result<Process, Refusal> {
    let unusable = |what: &str, error: io::Error| Refusal::Unusable(format!("{what}: {error}"));
    let (ends, stdio) = match &plan.terminal {
        Some(size) => open_terminal(size, plan.user.as_ref())
            .map_err(|error| unusable("could not open a terminal", error))?,
        None => open_pipes(plan.input).map_err(|error| unusable("could not open pipes", error))?,
    };
    // The name is never executed: the child calls execve itself, below.
    let mut command = Command::new("/");
    let [stdin, stdout, stderr] = stdio;
    command.stdin(stdin).stdout(stdout).stderr(stderr);
    let child = Child::new(plan);
    // SAFETY: between fork and exec, `Child::become_command` only makes system calls on
    // memory that was allocated before the fork.
    unsafe { command.pre_exec(move || child.become_command()) };
    let child = command.spawn().map_err(|error| refusal(plan, &error))?;
    Process::new(child, ends).map_err(|error| unusable("could not watch the command", error))
}

fn open_pipes(input: bool) -> io::Result<(Ends, [Stdio; 3])> {
    let pipe = || -> io::Result<(OwnedFd, OwnedFd)> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        // Refused beyond the user's pipe quota (pipe(7)): the default size works as well.
        let _ = fcntl_setpipe_size(&write, PIPE_SIZE);
        Ok((read, write))
    };
    let (stdin, input) = if input {
        let (read, write) = pipe()?;
        (Stdio::from(read), Some(write))
    } else {
        (Stdio::null(), None)
    };
    let (output, stdout) = pipe()?;
    let (error, stderr) = pipe()?;
    let ends = Ends::Pipes {
        input,
        output,
        error,
    };
    Ok((ends, [stdin, stdout.into(), stderr.into()]))
}

fn open_terminal(size: &Pty, user: Option<&User>) -> io::Result<(Ends, [Stdio; 3])> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    unlockpt(&master)?;
    let window = Winsize {
        ws_col: size.columns,
        ws_row: size.rows,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&master, window)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    if let Some(user) = user {
        // As grantpt(3) and login(1) do; devpts gives the group.
        rustix::fs::fchown(&slave, Some(Uid::from_raw(user.uid)), None::<Gid>)?;
        rustix::fs::fchmod(&slave, Mode::from_raw_mode(0o620))?;
    }
    let stdio = [
        slave.try_clone()?.into(),
        slave.try_clone()?.into(),
        slave.into(),
    ];
    Ok((Ends::Terminal(master), stdio))
}

/// What the child needs, in the form in which the system calls take it.
struct Child {
    candidates: Vec<CString>,
    directories: Vec<CString>,
    /// Null-terminated pointers into `_strings`.
    arguments: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
    /// Owns what the pointers point to; the texts do not move with the vector.
    _strings: Vec<CString>,
    user: Option<(u32, u32, Vec<u32>)>,
    terminal: bool,
}

// SAFETY: the raw pointers point into `_strings`, which the struct owns and never changes.
unsafe impl Send for Child {}
// SAFETY: as above.
unsafe impl Sync for Child {}

impl Child {
    fn new(plan: &Plan) -> Self {
        let strings: Vec<CString> = plan
            .arguments
            .iter()
            .chain(&plan.environment)
            .cloned()
            .collect();
        let pointers = |texts: &[CString]| {
            texts
                .iter()
                .map(|text| text.as_ptr())
                .chain([ptr::null()])
                .collect::<Vec<_>>()
        };
        let (arguments, environment) = strings.split_at(plan.arguments.len());
        Self {
            candidates: plan.candidates.clone(),
            directories: plan.directories.clone(),
            arguments: pointers(arguments),
            environment: pointers(environment),
            _strings: strings,
            user: plan
                .user
                .as_ref()
                .map(|user| (user.uid, user.gid, user.groups.clone())),
            terminal: plan.terminal.is_some(),
        }
    }

    /// Runs in the child, after the standard library has set up descriptors 0 to 2, the
    /// signal mask and `SIGPIPE`. Returns only if something failed.
    fn become_command(&self) -> io::Result<()> {
        self.start_session()
            .map_err(|errno| failed(Step::Session, errno))?;
        self.change_user()
            .map_err(|errno| failed(Step::User, errno))?;
        self.change_directory()
            .map_err(|errno| failed(Step::Directory, errno))?;
        Err(failed(Step::Execute, self.execute()))
    }

    fn start_session(&self) -> Result<(), Errno> {
        rustix::process::setsid()?;
        if self.terminal {
            // SAFETY: descriptor 0 is the terminal and stays open during the call.
            let stdin = unsafe { std::os::fd::BorrowedFd::borrow_raw(0) };
            rustix::process::ioctl_tiocsctty(stdin)?;
        }
        // The agent protects itself from the out-of-memory killer; its commands do not
        // inherit that. Where the file cannot be written the score is not raised either.
        if let Ok(file) = rustix::fs::open(
            c"/proc/self/oom_score_adj",
            OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::empty(),
        ) {
            let _ = rustix::io::write(file, b"0");
        }
        rustix::process::umask(Mode::from_raw_mode(0o022));
        Ok(())
    }

    fn change_user(&self) -> Result<(), Errno> {
        let Some((uid, gid, groups)) = &self.user else {
            return Ok(());
        };
        // SAFETY: `groups` is valid for the length given; the calls have no other
        // preconditions. The C library's versions would signal other threads, of which a
        // forked child has none, so the system calls are made directly.
        let done = unsafe {
            libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) == 0
                && libc::syscall(libc::SYS_setresgid, *gid, *gid, *gid) == 0
                && libc::syscall(libc::SYS_setresuid, *uid, *uid, *uid) == 0
        };
        if done { Ok(()) } else { Err(last_errno()) }
    }

    fn change_directory(&self) -> Result<(), Errno> {
        let mut first = None;
        for directory in &self.directories {
            match rustix::process::chdir(directory.as_c_str()) {
                Ok(()) => return Ok(()),
                Err(errno) => first = first.or(Some(errno)),
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// Tries the candidates as `execvp(3)` does, but never hands a file without a known
    /// format to a shell.
    fn execute(&self) -> Errno {
        let mut result = Errno::NOENT;
        for candidate in &self.candidates {
            // SAFETY: both arrays end with a null pointer, and their texts live in `self`.
            unsafe {
                libc::execve(
                    candidate.as_ptr(),
                    self.arguments.as_ptr(),
                    self.environment.as_ptr(),
                );
            }
            match last_errno() {
                Errno::ACCESS => result = Errno::ACCESS,
                Errno::NOENT => {}
                Errno::NOTDIR if self.candidates.len() > 1 => {}
                errno => return errno,
            }
        }
        result
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

fn failed(step: Step, errno: Errno) -> io::Error {
    io::Error::from_raw_os_error(((step as i32) << ERRNO_BITS) | errno.raw_os_error())
}

/// What a failure of the child means for whoever wanted the command.
fn refusal(plan: &Plan, error: &io::Error) -> Refusal {
    let Some(code) = error.raw_os_error() else {
        return Refusal::Unusable(error.to_string());
    };
    let reason = io::Error::from_raw_os_error(code & ((1 << ERRNO_BITS) - 1));
    let steps = [Step::Session, Step::User, Step::Directory, Step::Execute];
    let step = steps
        .into_iter()
        .find(|step| *step as i32 == code >> ERRNO_BITS);
    match step {
        None => Refusal::Unusable(format!("could not start a process: {reason}")),
        Some(Step::Session) => Refusal::Unusable(format!("could not start a session: {reason}")),
        Some(Step::User) => {
            let name = plan.user.as_ref().map_or("", |user| &user.name);
            Refusal::Unusable(format!("could not become user `{name}`: {reason}"))
        }
        Some(Step::Directory) => {
            let directory = plan
                .directories
                .first()
                .map_or_else(Default::default, |it| text(it));
            Refusal::Unusable(format!(
                "could not change to directory `{directory}`: {reason}"
            ))
        }
        Some(Step::Execute) => refused_execution(plan, &reason),
    }
}

fn refused_execution(plan: &Plan, reason: &io::Error) -> Refusal {
    let command = &plan.command;
    if reason.raw_os_error() != Some(libc::ENOENT) {
        return Refusal::NotExecutable(format!("could not execute `{command}`: {reason}"));
    }
    // Only for the words: a script that is there, but not its interpreter, or a binary that
    // is there, but not its dynamic loader.
    let present = plan
        .candidates
        .iter()
        .find(|candidate| File::open(text(candidate)).is_ok());
    Refusal::NotFound(match present {
        Some(present) => {
            format!(
                "`{}` is there, but its interpreter or loader is not",
                text(present)
            )
        }
        None if command.contains('/') => format!("`{command}` does not exist"),
        None => format!("command `{command}` not found in PATH"),
    })
}

fn text(text: &CStr) -> String {
    text.to_string_lossy().into_owned()
}

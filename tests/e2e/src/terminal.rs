//! A command on a real terminal: a pseudo terminal that is its controlling one.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, ioctl_tiocsctty, pidfd_open, setsid};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};

use crate::invocation::{Invocation, patience};

/// Enough for a VM to boot on a busy machine without hardware virtualisation.
const LIMIT: Duration = Duration::from_secs(180);

/// A command on a terminal, and the terminal's other end.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    screen: File,
    seen: Vec<u8>,
}

/// What came while the screen was watched.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Event {
    Output,
    Exited,
    Nothing,
}

impl Terminal {
    /// Starts a command on a new terminal of this size.
    pub fn start(invocation: Invocation, columns: u16, rows: u16) -> Self {
        let screen = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .expect("there are pseudo terminals");
        grantpt(&screen).expect("it is ours");
        unlockpt(&screen).expect("it is ours");
        set_size(&screen, columns, rows);
        let line = ioctl_tiocgptpeer(
            &screen,
            OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
        )
        .expect("it has another end");
        let ends = [(); 3].map(|()| line.try_clone().expect("descriptors are to be had"));
        let [stdin, stdout, stderr] = ends;

        let mut command = invocation.into_command();
        command
            .env("TERM", "xterm")
            .stdin(stdin)
            .stdout(stdout)
            .stderr(stderr);
        let start = move || {
            setsid()?;
            ioctl_tiocsctty(&line)?;
            Ok(())
        };
        // SAFETY: between fork and exec only two system calls are made.
        unsafe { command.pre_exec(start) };
        let child = command.spawn().expect("the command can be started");

        Self {
            child,
            screen: File::from(screen),
            seen: Vec::new(),
        }
    }

    /// Types this.
    pub fn send(&mut self, keys: &str) {
        self.screen
            .write_all(keys.as_bytes())
            .expect("the terminal is open");
    }

    /// Gives the window another size; the kernel signals it.
    pub fn resize(&self, columns: u16, rows: u16) {
        set_size(&self.screen, columns, rows);
    }

    /// Whether keys arrive as lines that the terminal echoes: not so in raw mode.
    pub fn is_cooked(&self) -> bool {
        use rustix::termios::LocalModes;
        let modes = tcgetattr(&self.screen)
            .expect("it is a terminal")
            .local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO)
    }

    /// Waits until the screen shows `words` after what was expected before, and returns
    /// everything up to them.
    #[track_caller]
    pub fn expect(&mut self, words: &str) -> String {
        let deadline = Instant::now() + LIMIT * patience();
        loop {
            if let Some(at) = find(&self.seen, words.as_bytes()) {
                let rest = self.seen.split_off(at + words.len());
                let before = std::mem::replace(&mut self.seen, rest);
                return String::from_utf8_lossy(&before).into_owned();
            }
            let event = self.watch(deadline.saturating_duration_since(Instant::now()));
            assert!(
                event == Event::Output,
                "no `{words}` on the screen, and {}: {:?}",
                match event {
                    Event::Exited => "the command has ended",
                    _ => "the time is up",
                },
                String::from_utf8_lossy(&self.seen)
            );
        }
    }

    /// Closes the window, which is a hangup for the command, and waits for its end.
    pub fn close(self) -> ExitStatus {
        let Self {
            mut child, screen, ..
        } = self;
        drop(screen);
        let exited = crate::invocation::exits_within(&child, LIMIT * patience());
        if !exited {
            let _ = child.kill();
        }
        assert!(exited, "the command did not end with its terminal");
        child.wait().expect("it is our child")
    }

    /// Waits for the command's end, and returns its status and the rest of the screen.
    #[track_caller]
    pub fn wait(self) -> (ExitStatus, String) {
        let (status, text, _) = self.wait_and_look();
        (status, text)
    }

    /// The same, and whether the terminal is cooked after it.
    #[track_caller]
    pub fn wait_and_look(mut self) -> (ExitStatus, String, bool) {
        let deadline = Instant::now() + LIMIT * patience();
        loop {
            match self.watch(deadline.saturating_duration_since(Instant::now())) {
                Event::Output => {}
                Event::Exited => break,
                Event::Nothing => {
                    let _ = self.child.kill();
                    panic!("the command on the terminal did not end");
                }
            }
        }
        let status = self.child.wait().expect("it is our child");
        let text = String::from_utf8_lossy(&self.seen).into_owned();
        (status, text, self.is_cooked())
    }

    /// Waits for output, which it adds to what was seen, or for the command's end.
    fn watch(&mut self, limit: Duration) -> Event {
        let limit = Timespec::try_from(limit).expect("limits are short");
        let process = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty())
            .expect("it has not been waited for");
        let mut descriptors = [
            PollFd::new(&self.screen, PollFlags::IN),
            PollFd::new(&process, PollFlags::IN),
        ];
        poll(&mut descriptors, Some(&limit)).expect("poll works on descriptors of ours");
        let [screen, process] = descriptors.map(|descriptor| descriptor.revents());
        if screen.contains(PollFlags::IN) {
            let mut buffer = [0; 4096];
            // The read fails with EIO when the last holder of the other end is gone.
            if let Ok(length @ 1..) = self.screen.read(&mut buffer) {
                self.seen.extend(&buffer[..length]);
                return Event::Output;
            }
        }
        match (process.is_empty(), screen.contains(PollFlags::HUP)) {
            (false, _) => Event::Exited,
            (true, true) => {
                match crate::invocation::exits_within(&self.child, LIMIT * patience()) {
                    true => Event::Exited,
                    false => Event::Nothing,
                }
            }
            (true, false) => Event::Nothing,
        }
    }
}

fn set_size(screen: &impl std::os::fd::AsFd, columns: u16, rows: u16) {
    let size = Winsize {
        ws_col: columns,
        ws_row: rows,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(screen, size).expect("a terminal has a size");
}

fn find(text: &[u8], words: &[u8]) -> Option<usize> {
    text.windows(words.len()).position(|window| window == words)
}

//! Guest commands joined to a real terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Signal, ioctl_tiocsctty, setsid};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::daemon::{Daemon, Deed, LIMIT};
use crate::process::{Running, banger};

/// A terminal, and a command in it.
pub struct Terminal {
    keyboard: File,
    /// Kept open, so that the terminal's modes can be looked at when the command has ended.
    screen: OwnedFd,
    seen: String,
    pub running: Running,
}

impl Terminal {
    fn start(daemon: &Daemon, words: &[&str]) -> Self {
        let mut command = banger(daemon.home(), words);
        command.env("TERM", "vt220");
        Self::of(command)
    }

    pub fn of(mut command: Command) -> Self {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let screen = ioctl_tiocgptpeer(
            &master,
            OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
        )
        .unwrap();
        resize(&master, 91, 33);
        let side = || Stdio::from(screen.try_clone().unwrap());
        command.stdin(side()).stdout(side()).stderr(side());
        // SAFETY: two system calls between fork and exec.
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                ioctl_tiocsctty(rustix::stdio::stdin())?;
                Ok(())
            })
        };
        let running = Running::start(command);
        Self {
            keyboard: File::from(master),
            screen,
            seen: String::new(),
            running,
        }
    }

    pub fn type_in(&mut self, text: &[u8]) {
        self.keyboard.write_all(text).unwrap();
    }

    /// Waits until the screen has shown this, from where the last such wait ended.
    pub fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(place) = self.seen.find(text) {
                self.seen.drain(..place + text.len());
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let mut readable = [PollFd::new(&self.keyboard, PollFlags::IN)];
            let ready = poll(&mut readable, Some(&left.try_into().unwrap())).unwrap();
            assert_eq!(ready, 1, "no {text:?} in time in {:?}", self.seen);
            let mut buffer = [0; 4096];
            // A terminal that nobody has open any more fails to be read.
            match self.keyboard.read(&mut buffer) {
                Ok(length @ 1..) => {
                    self.seen
                        .push_str(&String::from_utf8_lossy(&buffer[..length]));
                }
                _ => panic!("no {text:?} in {:?}", self.seen),
            }
        }
    }

    pub fn resize(&self, columns: u16, rows: u16) {
        resize(&self.keyboard, columns, rows);
    }

    fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.screen).unwrap().local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    fn shows_control_keys(&self) -> bool {
        let modes = tcgetattr(&self.screen).unwrap().local_modes;
        modes.contains(LocalModes::ECHOCTL)
    }

    pub fn is_cooked(&self) -> bool {
        let modes = tcgetattr(&self.screen).unwrap().local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }
}

fn resize(terminal: impl AsFd, columns: u16, rows: u16) {
    let size = Winsize {
        ws_col: columns,
        ws_row: rows,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).unwrap();
}

#[test]
fn a_terminal_is_passed_through_and_restored() {
    let daemon = Daemon::start();
    let mut terminal = Terminal::start(&daemon, &["vm", "exec", "calm-otter", "--", "tty"]);
    terminal.expect("ready");
    assert!(terminal.is_raw());
    // Ctrl-C, Ctrl-D and Ctrl-Z are bytes for the guest's terminal.
    terminal.type_in(b"\x03");
    terminal.expect("typed [03]");
    terminal.type_in(b"\x04\x1a");
    terminal.expect("typed [04, 1a]");
    terminal.type_in("ä".as_bytes());
    terminal.expect("typed [c3, a4]");
    terminal.type_in(b"q");
    assert_eq!(terminal.running.status(), Some(5));
    assert!(terminal.is_cooked());
}

#[test]
fn the_guest_knows_the_terminals_type_and_size() {
    let daemon = Daemon::start();
    let mut terminal = Terminal::start(&daemon, &["vm", "exec", "calm-otter", "--", "request"]);
    terminal.expect(r#""pty":{"term":"vt220","columns":91,"rows":33}"#);
    assert_eq!(terminal.running.status(), Some(0));
}

#[test]
fn a_new_size_reaches_the_guest() {
    let daemon = Daemon::start();
    let mut terminal = Terminal::start(&daemon, &["vm", "exec", "calm-otter", "--", "tty"]);
    terminal.expect("ready");
    terminal.resize(120, 40);
    terminal.expect("size 120x40");
    terminal.resize(60, 20);
    terminal.expect("size 60x20");
    terminal.type_in(b"q");
    assert_eq!(terminal.running.status(), Some(5));
}

#[test]
fn the_terminal_is_restored_when_a_signal_ends_banger() {
    let daemon = Daemon::start();
    for (signal, status) in [(Signal::TERM, 143), (Signal::HUP, 129), (Signal::QUIT, 131)] {
        let mut terminal = Terminal::start(&daemon, &["vm", "exec", "calm-otter", "--", "tty"]);
        terminal.expect("ready");
        assert!(terminal.is_raw());
        terminal.running.signal(signal);
        assert_eq!(terminal.running.status(), Some(status));
        assert!(terminal.is_cooked(), "{signal:?}");
    }
}

#[test]
fn a_closed_terminal_ends_the_session_and_the_lease() {
    let daemon = Daemon::start();
    let mut terminal = Terminal::start(&daemon, &["vm", "run", "--rm"]);
    terminal.expect("ready\r\n");
    assert_eq!(daemon.deed(), Deed::LeaseTaken);
    assert!(matches!(daemon.deed(), Deed::Created(_)));
    let Terminal {
        keyboard,
        mut running,
        ..
    } = terminal;
    // The last descriptor of the terminal's other side: the kernel hangs it up.
    drop(keyboard);
    assert_eq!(running.status(), Some(129));
    let mut ends = [daemon.deed(), daemon.deed()];
    ends.sort_by_key(|deed| *deed == Deed::LeaseEnded);
    assert_eq!(ends[1], Deed::LeaseEnded);
}

#[test]
fn without_a_terminal_for_output_the_guest_has_none_either() {
    let daemon = Daemon::start();
    let mut terminal = Terminal::start(
        &daemon,
        &["vm", "exec", "-T", "calm-otter", "--", "request"],
    );
    terminal.expect(r#""pty":null"#);
    assert!(terminal.is_cooked());
    assert_eq!(terminal.running.status(), Some(0));
}

#[test]
fn leaving_a_shell_says_how_to_come_back() {
    let daemon = Daemon::start();
    let mut terminal = Terminal::start(&daemon, &["vm", "run"]);
    terminal.expect("ready after");
    terminal.expect("ready\r\n");
    terminal.type_in(b"q");
    terminal.expect("VM `new-vm` goes on running\r\n  come back: banger vm exec new-vm");
    assert_eq!(terminal.running.status(), Some(5));
}

#[test]
fn ctrl_c_during_the_creation_calls_it_off() {
    let daemon = Daemon::start();
    let mut terminal = Terminal::start(&daemon, &["vm", "run", "--name", "slow"]);
    terminal.expect("creating VM `slow`");
    assert!(matches!(daemon.deed(), Deed::Created(_)));
    terminal.expect("disks");
    // `^C` on the screen would push the moving lines, and leave one of them there.
    assert!(!terminal.shows_control_keys());
    terminal.type_in(b"\x03");
    assert_eq!(daemon.deed(), Deed::CalledOff);
    terminal.expect("cancelled; nothing of the VM is left");
    assert_eq!(terminal.running.status(), Some(130));
    assert!(terminal.is_cooked());
    assert!(terminal.shows_control_keys());
}

#[test]
fn errors_on_a_terminal_have_colour_unless_the_user_wants_none() {
    let daemon = Daemon::start();
    let show = |no_color: &str| {
        let mut command = banger(daemon.home(), &["vm", "show", "nobody"]);
        command.env("TERM", "vt220").env("NO_COLOR", no_color);
        Terminal::of(command)
    };
    show("").expect("\x1b[1;31merror:\x1b[0m no VM `nobody`");
    show("1").expect("error: no VM `nobody`");
}

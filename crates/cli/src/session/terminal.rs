//! This process's terminal: its size, its raw mode, and the certain way back.

use std::io;
use std::sync::{Mutex, PoisonError};

use banger_proto::agent::Pty;
use banger_proto::frame::Frame;
use rustix::stdio::{stdin, stdout};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::Failure;
use crate::signals::could_not_listen;

/// The size of a terminal that is none, or that does not know its own.
const DEFAULT_SIZE: (u16, u16) = (80, 24);

/// Whether the guest command gets a terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum PtyChoice {
    /// If this process has one for both input and output.
    #[default]
    Automatic,
    /// Yes: `-t`.
    Always,
    /// No: `-T`.
    Never,
}

/// The terminal that the guest command gets, like this process's own.
pub(crate) fn local_pty(choice: PtyChoice) -> Option<Pty> {
    let wanted = match choice {
        PtyChoice::Automatic => isatty(stdin()) && isatty(stdout()),
        PtyChoice::Always => true,
        PtyChoice::Never => false,
    };
    wanted.then(|| {
        let (columns, rows) = size();
        let term = std::env::var("TERM").ok().filter(|term| !term.is_empty());
        Pty {
            term: term.unwrap_or_else(|| "xterm".into()),
            columns,
            rows,
        }
    })
}

/// Columns and rows.
pub(crate) fn size() -> (u16, u16) {
    let size = tcgetwinsize(stdout()).or_else(|_| tcgetwinsize(stdin()));
    match size {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col, size.ws_row),
        _ => DEFAULT_SIZE,
    }
}

/// How the terminal was before it became raw; `None` while it is not.
static COOKED: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal in raw mode, until this is dropped or the process panics.
#[derive(Debug)]
pub(super) struct RawMode(());

impl RawMode {
    /// Puts the terminal into raw mode; `None` if standard input is none.
    pub(super) fn enter() -> io::Result<Option<Self>> {
        if !isatty(stdin()) {
            return Ok(None);
        }
        let cooked = tcgetattr(stdin())?;
        *COOKED.lock().unwrap_or_else(PoisonError::into_inner) = Some(cooked.clone());
        let raw = Self(());
        raw.apply(cooked)?;
        Ok(Some(raw))
    }

    /// Enters raw mode again after something else had the terminal.
    fn again(&self) {
        let cooked = COOKED
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(cooked) = cooked {
            // If the terminal is gone, reading it will tell.
            let _ = self.apply(cooked);
        }
    }

    fn apply(&self, mut termios: Termios) -> io::Result<()> {
        termios.make_raw();
        Ok(tcsetattr(stdin(), OptionalActions::Now, &termios)?)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    let cooked = COOKED.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(cooked) = cooked {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &cooked);
    }
}

/// Restores the terminal before a panic's message is printed. Signals end the process by way
/// of [`RawMode`]'s drop; nothing can be done about SIGKILL.
pub(crate) fn restore_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        print(panic);
    }));
}

/// Changes of the terminal's size, as frames.
#[derive(Debug)]
pub(super) struct Resizes {
    streams: Option<(Signal, Signal)>,
    last: (u16, u16),
}

impl Resizes {
    /// Begins to listen, if the command has a terminal, which knows the size in `pty` already.
    pub(super) fn listen(pty: Option<&Pty>) -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| could_not_listen(&error));
        let streams = match pty {
            Some(_) => Some((
                listen(SignalKind::window_change())?,
                listen(SignalKind::from_raw(nix::libc::SIGCONT))?,
            )),
            None => None,
        };
        let last = pty.map_or(DEFAULT_SIZE, |pty| (pty.columns, pty.rows));
        Ok(Self { streams, last })
    }

    /// The next change. Cancel-safe.
    pub(super) async fn next(&mut self, raw: Option<&RawMode>) -> Frame {
        let Some((resized, continued)) = &mut self.streams else {
            return std::future::pending().await;
        };
        loop {
            // The size may have changed before we listened, so look before waiting.
            let (columns, rows) = size();
            if (columns, rows) != self.last {
                self.last = (columns, rows);
                return Frame::Resize { columns, rows };
            }
            tokio::select! {
                Some(()) = resized.recv() => {}
                Some(()) = continued.recv() => {
                    if let Some(raw) = raw {
                        raw.again();
                    }
                }
                else => return std::future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
    use rustix::termios::LocalModes;
    use std::process::Stdio;

    const CHILD: &str = "BANGER_TEST_PANICS_IN_RAW_MODE";

    /// Runs itself in a terminal, where it panics.
    #[test]
    fn a_panic_restores_the_terminal() {
        if std::env::var_os(CHILD).is_some() {
            restore_on_panic();
            // Forgotten, so that only the hook can restore.
            std::mem::forget(RawMode::enter().unwrap().unwrap());
            let modes = tcgetattr(stdin()).unwrap().local_modes;
            assert!(!modes.contains(LocalModes::ECHO), "not raw");
            panic!("in raw mode");
        }
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let terminal = ioctl_tiocgptpeer(&master, flags).unwrap();
        let name = "session::terminal::tests::a_panic_restores_the_terminal";
        let child = banger_process::command(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture"])
            .env(CHILD, "1")
            .stdin(Stdio::from(terminal.try_clone().unwrap()))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stderr).into_owned();
        assert!(said.contains("in raw mode"), "{said}");
        let modes = tcgetattr(&terminal).unwrap().local_modes;
        assert!(modes.contains(LocalModes::ECHO | LocalModes::ICANON));
    }
}

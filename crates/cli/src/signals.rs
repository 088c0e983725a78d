//! Signals that ask this process to end, as something to await.

use std::io;

use banger_proto::error::{ApiError, ErrorKind};
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

use crate::failure::Failure;

/// A signal that asks to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Ctrl-C.
    Interrupt,
    /// `kill`.
    Terminate,
    /// The terminal was closed.
    HangUp,
    /// Ctrl-\.
    Quit,
}

impl Signal {
    /// Its number, the same on all of Linux's architectures (signal(7)).
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::HangUp => 1,
            Self::Interrupt => 2,
            Self::Quit => 3,
            Self::Terminate => 15,
        }
    }

    /// The exit status of a program that it ended.
    pub(crate) fn status(self) -> u8 {
        128 + self.number()
    }
}

/// All of them, from when this was made; before that, and without it, they end the process.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Option<Stream>,
    terminate: Option<Stream>,
    hang_up: Option<Stream>,
    quit: Option<Stream>,
}

impl Signals {
    /// Begins to listen. A signal that whoever started this process chose to ignore, as
    /// `nohup` and shells without job control do, stays ignored.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let ignored = ignored_by_parent();
        let stream = |wanted: Signal| -> Result<Option<Stream>, Failure> {
            if ignored & (1 << (wanted.number() - 1)) != 0 {
                return Ok(None);
            }
            match signal(SignalKind::from_raw(wanted.number().into())) {
                Ok(stream) => Ok(Some(stream)),
                Err(error) => Err(could_not_listen(&error)),
            }
        };
        Ok(Self {
            interrupt: stream(Signal::Interrupt)?,
            terminate: stream(Signal::Terminate)?,
            hang_up: stream(Signal::HangUp)?,
            quit: stream(Signal::Quit)?,
        })
    }

    /// What `work` comes to, or the end by the first signal, which drops `work`.
    pub(crate) async fn or<T, E: Into<Failure>>(
        &mut self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            result = work => result.map_err(Into::into),
            signal = self.next() => Err(Failure::silent(signal.status())),
        }
    }

    /// The next one. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Signal {
        tokio::select! {
            () = received(&mut self.interrupt) => Signal::Interrupt,
            () = received(&mut self.terminate) => Signal::Terminate,
            () = received(&mut self.hang_up) => Signal::HangUp,
            () = received(&mut self.quit) => Signal::Quit,
        }
    }
}

/// Waits for a signal of this kind; for ever if it is ignored.
async fn received(stream: &mut Option<Stream>) {
    match stream {
        Some(stream) => {
            if stream.recv().await.is_none() {
                std::future::pending().await
            }
        }
        None => std::future::pending().await,
    }
}

pub(crate) fn could_not_listen(error: &io::Error) -> Failure {
    ApiError::new(ErrorKind::Failed, "could not listen for signals")
        .caused_by(error)
        .into()
}

/// The set of ignored signals (proc_pid_status(5): bit n - 1 stands for signal n).
fn ignored_by_parent() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    parse_ignored(&status).unwrap_or(0)
}

fn parse_ignored(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_what_is_ignored() {
        let status = "Name:\tbanger\nSigIgn:\t0000000000001001\nSigCgt:\t0\n";
        assert_eq!(parse_ignored(status), Some(0x1001));
        assert_eq!(parse_ignored("Name:\tx\n"), None);
    }

    #[test]
    fn statuses_are_a_shells() {
        assert_eq!(Signal::Interrupt.status(), 130);
        assert_eq!(Signal::Terminate.status(), 143);
    }
}

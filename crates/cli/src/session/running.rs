//! A guest command from its start to its end: what signals, limits and readers that go away
//! mean for it.
//!
//! ```text
//! Normal ──first signal──▶ Signalled ──another one──▶ given up
//!    │ └──nobody reads────▶ Unread ──END_LIMIT──▶ given up
//!    └──time is up──▶ TimedOut (SIGTERM) ──END_LIMIT──▶ Killed (SIGKILL) ──END_LIMIT──▶ given up
//! ```

use std::time::Duration;

use banger_proto::exit::ExitStatus;
use banger_proto::frame::Frame;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::terminal::{RawMode, Resizes};
use super::wire::{Outbox, WireError};
use super::{Ending, Event, Session};
use crate::failure::{BROKEN_PIPE, Failure};
use crate::signals::{Signal, Signals};

/// How long a command has to end once it was asked to (by `--timeout`, or because nobody reads
/// its output), before harder means.
const END_LIMIT: Duration = Duration::from_secs(5);
/// How long a last frame has to get out when a command is given up.
const FAREWELL_LIMIT: Duration = Duration::from_millis(200);
/// Numbers of signals to guest commands (signal(7)).
const SIGKILL: i32 = 9;
const SIGPIPE: i32 = 13;
const SIGTERM: i32 = 15;

/// What has been asked of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attention {
    /// Nothing.
    Normal,
    /// A signal was forwarded; the next one gives up.
    Signalled,
    /// Its time was up: it was asked to end.
    TimedOut,
    /// Its time was up and it did not end: it was killed.
    Killed,
    /// Nobody reads its output: it was told so.
    Unread,
}

/// A command that runs, from here.
#[derive(Debug)]
pub(super) struct Running<'a> {
    session: &'a Session<'a>,
    outbox: Outbox,
    events: mpsc::UnboundedReceiver<Event>,
    raw: Option<RawMode>,
    /// Number of pipes that are still being written.
    draining: u8,
    ended: Option<Result<ExitStatus, WireError>>,
    attention: Attention,
    deadline: Option<Instant>,
}

impl<'a> Running<'a> {
    /// A command that has just started; what its parts tell comes by `events`.
    pub(super) fn new(
        session: &'a Session<'a>,
        outbox: Outbox,
        events: mpsc::UnboundedReceiver<Event>,
        raw: Option<RawMode>,
    ) -> Self {
        Self {
            session,
            outbox,
            events,
            raw,
            draining: 2,
            ended: None,
            attention: Attention::Normal,
            deadline: session.limit.map(|limit| Instant::now() + limit),
        }
    }

    /// Watches it to its end, or until it is given up.
    pub(super) async fn watch(&mut self, signals: &mut Signals) -> Result<u8, Ending> {
        let mut resizes = Resizes::listen(self.session.request.pty.as_ref())?;
        loop {
            if self.draining == 0
                && let Some(end) = self.ended.take()
            {
                return self.conclude(end);
            }
            tokio::select! {
                Some(event) = self.events.recv() => match event {
                    // The kernel's signal for it may not have come yet.
                    Event::HungUp => return self.give_up(Signal::HangUp).await,
                    event => self.event(event)?,
                },
                signal = signals.next() => {
                    if self.is_second() || self.ends_session(signal) {
                        return self.give_up(signal).await;
                    }
                    self.outbox.send(Frame::Signal(signal.number().into()));
                    self.attention = Attention::Signalled;
                }
                frame = resizes.next(self.raw.as_ref()) => self.outbox.send(frame),
                () = until(self.deadline) => {
                    if let Some(end) = self.deadline_passed() {
                        return end;
                    }
                }
            }
        }
    }

    fn event(&mut self, event: Event) -> Result<(), Ending> {
        match event {
            Event::Ended(end) => {
                self.ended = Some(end);
                // What is left is for the readers of our output; signals still end that.
                self.deadline = None;
            }
            Event::Drained => self.draining -= 1,
            Event::BrokenPipe if self.ended.is_none() => {
                self.outbox.send(Frame::Signal(SIGPIPE));
                self.attention = Attention::Unread;
                self.deadline = Some(Instant::now() + END_LIMIT);
            }
            Event::BrokenPipe | Event::HungUp => {}
            Event::Failed(failure) => return Err(failure.into()),
        }
        Ok(())
    }

    /// Whether the command has been asked to end already, or has ended and only its output is
    /// still to be read.
    fn is_second(&self) -> bool {
        self.attention != Attention::Normal || self.ended.is_some()
    }

    /// Whether a first signal is not only for the guest's command.
    fn ends_session(&self, signal: Signal) -> bool {
        let interactive = self.session.request.pty.is_some();
        match signal {
            Signal::HangUp => true,
            // Who ends the terminal's own process wants no more of it; Ctrl-C is none of that.
            Signal::Terminate | Signal::Quit => interactive,
            Signal::Interrupt => false,
        }
    }

    /// Tells the guest's command why, and leaves it.
    async fn give_up(&mut self, signal: Signal) -> Result<u8, Ending> {
        if self.attention == Attention::Normal || signal == Signal::HangUp {
            self.outbox.send(Frame::Signal(signal.number().into()));
        }
        self.outbox.close(FAREWELL_LIMIT).await;
        Ok(signal.status())
    }

    /// What follows when time is up; an end if there is nothing left to try.
    fn deadline_passed(&mut self) -> Option<Result<u8, Ending>> {
        let harder = match self.attention {
            Attention::Normal | Attention::Signalled => (Attention::TimedOut, SIGTERM),
            Attention::TimedOut => (Attention::Killed, SIGKILL),
            Attention::Killed => return Some(Err(self.session.timed_out().into())),
            Attention::Unread => return Some(Err(Failure::silent(BROKEN_PIPE).into())),
        };
        self.attention = harder.0;
        self.outbox.send(Frame::Signal(harder.1));
        self.deadline = Some(Instant::now() + END_LIMIT);
        None
    }

    fn conclude(&self, end: Result<ExitStatus, WireError>) -> Result<u8, Ending> {
        match (self.attention, end) {
            (Attention::TimedOut | Attention::Killed, _) => Err(self.session.timed_out().into()),
            (_, Ok(status)) => Ok(status.shell_code()),
            (_, Err(error)) => Err(Ending::Lost(error)),
        }
    }
}

/// Waits until `deadline`; for ever without one.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

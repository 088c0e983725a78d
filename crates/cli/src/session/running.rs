//! A guest command from its start to its end: what signals, limits and readers that go away
//! mean for it.
//!
//! ```text
//! Normal ──first signal──▶ Signalled ──another one, or a guest that does not answer──▶ given up
//!    │ └──nobody reads────▶ Unread ──END_LIMIT──▶ given up
//!    └──time is up──▶ TimedOut (SIGTERM) ──END_LIMIT──▶ Killed (SIGKILL) ──END_LIMIT──▶ given up
//! ```
//!
//! A command may take its time after a signal, as it may on this host, but only in a guest that
//! lives: that is asked now and then.

use std::time::Duration;

use banger_client::Client;
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::exit::ExitStatus;
use banger_proto::frame::Frame;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::terminal::{RawMode, Resizes};
use super::wire::{Outbox, WireError};
use super::{Ending, Event, Session};
use crate::failure::{BROKEN_PIPE, Failure};
use crate::signals::{Signal, Signals};

/// How long a command has to end once it was asked to (by `--timeout`, or because nobody reads
/// its output), before harder means.
const END_LIMIT: Duration = Duration::from_secs(5);
/// How long a command that was sent a signal may go on before its guest is asked whether it
/// lives, and then until it is asked again.
const LIFE_EVERY: Duration = Duration::from_secs(5);
/// How long the guest has to answer.
const LIFE_LIMIT: Duration = Duration::from_secs(5);
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
    /// This signal was forwarded; the next one gives up.
    Signalled(Signal),
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
    client: &'a Client,
    outbox: Outbox,
    events: mpsc::UnboundedReceiver<Event>,
    /// For what this tells itself.
    own_events: mpsc::UnboundedSender<Event>,
    raw: Option<RawMode>,
    /// Number of pipes that are still being written.
    draining: u8,
    ended: Option<Result<ExitStatus, WireError>>,
    attention: Attention,
    deadline: Option<Instant>,
    /// When the guest is asked whether it lives.
    next_look: Option<Instant>,
}

/// What a session gives to its main loop.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) outbox: Outbox,
    pub(super) events: mpsc::UnboundedReceiver<Event>,
    pub(super) own_events: mpsc::UnboundedSender<Event>,
    pub(super) raw: Option<RawMode>,
}

impl<'a> Running<'a> {
    /// A command that has just started.
    pub(super) fn new(session: &'a Session<'a>, client: &'a Client, parts: Parts) -> Self {
        Self {
            session,
            client,
            outbox: parts.outbox,
            events: parts.events,
            own_events: parts.own_events,
            raw: parts.raw,
            draining: 2,
            ended: None,
            attention: Attention::Normal,
            deadline: session.limit.map(|limit| Instant::now() + limit),
            next_look: None,
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
                    Event::GuestIsMute => return self.leave_mute_guest().await,
                    event => self.event(event)?,
                },
                signal = signals.next() => {
                    if self.is_second() || self.ends_session(signal) {
                        return self.give_up(signal).await;
                    }
                    self.outbox.send(Frame::Signal(signal.number().into()));
                    self.attention = Attention::Signalled(signal);
                    self.next_look = Some(Instant::now() + LIFE_EVERY);
                }
                frame = resizes.next(self.raw.as_ref()) => self.outbox.send(frame),
                () = until(self.next_look) => self.look_for_life(),
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
                self.next_look = None;
            }
            Event::Drained => self.draining -= 1,
            Event::BrokenPipe if self.ended.is_none() => {
                self.outbox.send(Frame::Signal(SIGPIPE));
                self.attention = Attention::Unread;
                self.deadline = Some(Instant::now() + END_LIMIT);
            }
            Event::GuestLives if self.ended.is_none() => {
                self.next_look = Some(Instant::now() + LIFE_EVERY);
            }
            Event::BrokenPipe | Event::HungUp | Event::GuestLives | Event::GuestIsMute => {}
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

    /// Asks the guest whether it lives, beside all else; the answer comes as an event.
    fn look_for_life(&mut self) {
        self.next_look = None;
        let (client, vm) = (self.client.clone(), self.session.vm.to_owned());
        let events = self.own_events.clone();
        tokio::spawn(async move {
            let health = timeout(LIFE_LIMIT, client.vm_health(&vm)).await;
            let lives = matches!(health, Ok(Ok(health)) if health.healthy);
            // The main loop is gone when the command has ended meanwhile.
            let _ = events.send(match lives {
                true => Event::GuestLives,
                false => Event::GuestIsMute,
            });
        });
    }

    /// Leaves a command that was sent a signal and cannot have heard it.
    async fn leave_mute_guest(&mut self) -> Result<u8, Ending> {
        let Attention::Signalled(signal) = self.attention else {
            return self.give_up(Signal::Terminate).await;
        };
        self.outbox.close(FAREWELL_LIMIT).await;
        let vm = self.session.vm;
        let message = format!(
            "VM `{vm}` does not answer, so `{}` is given up after signal {}",
            self.session.command_name(),
            signal.number()
        );
        let error = ApiError::new(ErrorKind::Unavailable, message).with_hint(format!(
            "`banger vm show {vm}` says how it is, and `banger vm kill {vm}` ends it"
        ));
        Err(Failure::with_status(error, signal.status()).into())
    }

    /// What follows when time is up; an end if there is nothing left to try.
    fn deadline_passed(&mut self) -> Option<Result<u8, Ending>> {
        let harder = match self.attention {
            Attention::Normal | Attention::Signalled(_) => (Attention::TimedOut, SIGTERM),
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

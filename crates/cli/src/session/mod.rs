//! A guest command joined to this terminal, or to this process's pipes.
//!
//! ```text
//! stdin  ─thread─▶ chunks ─┐                            ┌─▶ thread ─▶ stdout
//!                          ├─ sender ─▶ socket ─▶ reader┤
//! signals, size ─▶ frames ─┘                            └─▶ thread ─▶ stderr
//! ```
//!
//! Reading and writing this process's own descriptors blocks, and they may be shared with
//! other processes, so that they must not be made non-blocking: threads do it. The threads
//! read and write whole buffers; the runtime only moves those between them and the socket.
//!
//! A terminal is passed through: it is in raw mode, and Ctrl-C is a byte that the guest's
//! terminal turns into a signal. With pipes, the first signal to this process is forwarded to
//! the guest command; a second one, or a hang-up, gives the command up.

mod input;
mod output;
mod terminal;
mod wire;

use std::time::Duration;

use banger_client::{ByteStream, Client};
use banger_proto::agent::{ExecRefusal, ExecRefused, ExecRequest};
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::exit::{self, ExitStatus};
use banger_proto::frame::Frame;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use crate::failure::{BROKEN_PIPE, Failure, Outcome};
use crate::near;
use crate::signals::{Signal, Signals};

pub(crate) use self::terminal::restore_on_panic as restore_terminal_on_panic;
pub(crate) use self::terminal::{PtyChoice, local_pty};

use self::output::Pipe;
use self::terminal::{RawMode, Resizes};
use self::wire::{FrameReader, Outbox, WireError};

/// How long the guest may take to start the command.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a command has to end once it was asked to (by `--timeout`, or because nobody reads
/// its output), before harder means.
const END_LIMIT: Duration = Duration::from_secs(5);
/// How long a last frame has to get out when a command is given up.
const FAREWELL_LIMIT: Duration = Duration::from_millis(200);
/// Numbers of signals to guest commands (signal(7)).
const SIGKILL: i32 = 9;
const SIGPIPE: i32 = 13;
const SIGTERM: i32 = 15;

/// What to run, and where.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    /// The VM's name or id.
    pub(crate) vm: &'a str,
    /// The command.
    pub(crate) request: ExecRequest,
    /// How long it may run.
    pub(crate) limit: Option<Duration>,
}

/// What the parts of a session tell its main loop.
#[derive(Debug)]
enum Event {
    /// The guest has said its last, or the stream broke.
    Ended(Result<ExitStatus, WireError>),
    /// All output of one pipe is written, or nobody reads it.
    Drained,
    /// Nobody reads standard output any more.
    BrokenPipe,
    /// Standard input or output failed in a way that must not pass for its end.
    Failed(Failure),
}

impl Session<'_> {
    /// Runs the command to its end and gives its exit status as a shell would.
    ///
    /// # Errors
    /// The command could not be started (126, 127), ran into its limit (124), or the VM or
    /// the daemon went away.
    pub(crate) async fn run(self, client: &Client, signals: &mut Signals) -> Outcome {
        let stream = tokio::select! {
            stream = client.exec(self.vm) => match stream {
                Ok(stream) => stream,
                Err(error) => return Err(near::explain(client, self.vm, error).await),
            },
            signal = signals.next() => return Ok(signal.status()),
        };
        let outcome = self.join(stream, signals).await;
        match outcome {
            Err(Ending::Lost(cause)) => Err(self.lost(client, &cause).await),
            Err(Ending::Other(failure)) => Err(failure),
            Ok(status) => Ok(status),
        }
    }

    async fn join(&self, stream: ByteStream, signals: &mut Signals) -> Result<u8, Ending> {
        let (reader, writer) = stream.into_split();
        let mut reader = FrameReader::new(reader);
        let (outbox, chunks) = Outbox::new(writer);
        outbox.send(Frame::Start(Box::new(self.request.clone())));
        tokio::select! {
            first = timeout(START_LIMIT, reader.next()) => match first {
                Err(_) => return Err(self.slow_start().into()),
                Ok(Err(error)) => return Err(Ending::Lost(error)),
                Ok(Ok(Frame::Started(_))) => {}
                Ok(Ok(Frame::Refused(refused))) => return Err(self.refused(&refused).into()),
                Ok(Ok(_)) => return Err(Ending::Lost(WireError::OutOfOrder)),
            },
            signal = signals.next() => return Ok(signal.status()),
        }
        let raw = match self.request.pty {
            Some(_) => RawMode::enter().map_err(|error| {
                Failure::system("could not put the terminal into raw mode", &error)
            })?,
            None => None,
        };
        let (events, inbox) = mpsc::unbounded_channel();
        if self.request.stdin {
            input::start(chunks, events.clone());
        }
        let stdout = output::start(Pipe::Stdout, events.clone());
        let stderr = output::start(Pipe::Stderr, events.clone());
        tokio::spawn(async move {
            let end = reader.pass_on(stdout, stderr).await;
            // The main loop is gone only when nobody waits for the end any more.
            let _ = events.send(Event::Ended(end));
        });
        let mut running = Running {
            session: self,
            outbox,
            inbox,
            raw,
            draining: 2,
            ended: None,
            attention: Attention::Normal,
            deadline: self.limit.map(|limit| Instant::now() + limit),
        };
        running.watch(signals).await
    }

    fn command_name(&self) -> &str {
        self.request
            .command
            .first()
            .map_or("the login shell", |name| name)
    }

    fn slow_start(&self) -> ApiError {
        ApiError::new(
            ErrorKind::Timeout,
            format!(
                "VM `{}` did not start `{}` within {} s",
                self.vm,
                self.command_name(),
                START_LIMIT.as_secs()
            ),
        )
        .with_hint(format!("run `banger vm logs {}`", self.vm))
    }

    fn refused(&self, refused: &ExecRefused) -> Failure {
        let message = format!(
            "could not run `{}` in VM `{}`",
            self.command_name(),
            self.vm
        );
        let error = ApiError {
            causes: vec![refused.message.clone()],
            ..ApiError::new(ErrorKind::Invalid, message)
        };
        let status = match refused.refusal {
            ExecRefusal::NotFound => exit::NOT_FOUND,
            ExecRefusal::NotExecutable => exit::NOT_EXECUTABLE,
            ExecRefusal::Unusable => exit::BANGER,
        };
        Failure::with_status(error, status)
    }

    fn timed_out(&self) -> Failure {
        let limit = self.limit.unwrap_or_default();
        let error = ApiError::new(
            ErrorKind::Timeout,
            format!(
                "`{}` ran longer than {} in VM `{}`",
                self.command_name(),
                crate::render::time::took(limit),
                self.vm
            ),
        );
        Failure::with_status(error, exit::TIMEOUT)
    }

    /// Says what became of the VM, where that is to be known.
    async fn lost(&self, client: &Client, cause: &WireError) -> Failure {
        let message = match client.vm(self.vm).await {
            Ok(vm) if vm.state != banger_proto::api::VmState::Running => {
                format!(
                    "VM `{}` is {} and took `{}` with it",
                    vm.name,
                    vm.state,
                    self.command_name()
                )
            }
            _ => format!(
                "the connection to VM `{}` ended before `{}` did",
                self.vm,
                self.command_name()
            ),
        };
        ApiError::new(ErrorKind::Unavailable, message)
            .caused_by(cause)
            .with_hint(format!("run `banger vm logs {}`", self.vm))
            .into()
    }
}

/// Why there is no exit status.
#[derive(Debug)]
enum Ending {
    /// The stream broke.
    Lost(WireError),
    /// All else.
    Other(Failure),
}

impl From<Failure> for Ending {
    fn from(failure: Failure) -> Self {
        Self::Other(failure)
    }
}

impl From<ApiError> for Ending {
    fn from(error: ApiError) -> Self {
        Self::Other(error.into())
    }
}

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

struct Running<'a> {
    session: &'a Session<'a>,
    outbox: Outbox,
    inbox: mpsc::UnboundedReceiver<Event>,
    raw: Option<RawMode>,
    /// Number of pipes that are still being written.
    draining: u8,
    ended: Option<Result<ExitStatus, WireError>>,
    attention: Attention,
    deadline: Option<Instant>,
}

impl Running<'_> {
    async fn watch(&mut self, signals: &mut Signals) -> Result<u8, Ending> {
        let mut resizes = Resizes::listen(self.session.request.pty.as_ref())?;
        loop {
            if self.draining == 0
                && let Some(end) = self.ended.take()
            {
                return self.conclude(end);
            }
            tokio::select! {
                Some(event) = self.inbox.recv() => self.event(event)?,
                signal = signals.next() => {
                    if self.forward(signal) {
                        self.outbox.close(FAREWELL_LIMIT).await;
                        return Ok(signal.status());
                    }
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
            Event::BrokenPipe => {}
            Event::Failed(failure) => return Err(failure.into()),
        }
        Ok(())
    }

    /// Passes a signal on; true if the command is given up instead, or as well.
    fn forward(&mut self, signal: Signal) -> bool {
        let first = self.attention == Attention::Normal && self.ended.is_none();
        if first || signal == Signal::HangUp {
            self.outbox.send(Frame::Signal(signal.number().into()));
        }
        if first {
            self.attention = Attention::Signalled;
        }
        // Who closes the terminal, or ends the terminal's own process, wants no more of it.
        let interactive = self.session.request.pty.is_some() && signal != Signal::Interrupt;
        !first || signal == Signal::HangUp || interactive
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

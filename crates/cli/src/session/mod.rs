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
//! the guest command; a second one, or a hang-up, gives the command up, and so does a guest
//! that does not answer any more.

mod input;
mod output;
mod running;
mod terminal;
mod wire;

use std::time::Duration;

use banger_client::{ByteStream, Client};
use banger_proto::agent::{ExecRefusal, ExecRefused, ExecRequest};
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::exit::{self, ExitStatus};
use banger_proto::frame::Frame;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::failure::{Failure, Outcome};
use crate::near;
use crate::signals::Signals;

pub(crate) use self::terminal::restore_on_panic as restore_terminal_on_panic;
pub(crate) use self::terminal::{PtyChoice, local_pty, size as terminal_size};

use self::output::Pipe;
use self::running::{Parts, Running};
use self::terminal::RawMode;
use self::wire::{FrameReader, Outbox, Window, WireError};

/// How long the guest may take to start the command.
const START_LIMIT: Duration = Duration::from_secs(60);
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
    /// The terminal was closed.
    HungUp,
    /// The guest answered when it was asked whether it lives.
    GuestLives,
    /// It did not.
    GuestIsMute,
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
        let outcome = self.join(stream, client, signals).await;
        match outcome {
            Err(Ending::Lost(cause)) => Err(self.lost(client, &cause).await),
            Err(Ending::Other(failure)) => Err(failure),
            Ok(status) => Ok(status),
        }
    }

    async fn join(
        &self,
        stream: ByteStream,
        client: &Client,
        signals: &mut Signals,
    ) -> Result<u8, Ending> {
        let (reader, writer) = stream.into_split();
        let mut reader = FrameReader::new(reader);
        let window = Window::closed();
        let (outbox, chunks) = Outbox::new(writer, window.clone());
        outbox.send(Frame::Start(Box::new(self.request.clone())));
        tokio::select! {
            first = timeout(START_LIMIT, reader.next()) => match first {
                Err(_) => return Err(self.slow_start().into()),
                Ok(Err(error)) => return Err(Ending::Lost(error)),
                Ok(Ok(Frame::Started(started))) => window.open(started.input_window),
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
            input::start(chunks, raw.is_some(), events.clone());
        }
        let stdout = output::start(Pipe::Stdout, events.clone());
        let stderr = output::start(Pipe::Stderr, events.clone());
        let own_events = events.clone();
        tokio::spawn(async move {
            let end = reader.pass_on(stdout, stderr, &window).await;
            // The main loop is gone only when nobody waits for the end any more.
            let _ = events.send(Event::Ended(end));
        });
        let parts = Parts {
            outbox,
            events: inbox,
            own_events,
            raw,
        };
        Running::new(self, client, parts).watch(signals).await
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
        .with_hint(format!(
            "`banger vm health {0}` asks whether its agent answers; `banger vm stop {0}` ends it \
             in any case",
            self.vm
        ))
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

    fn lost_daemon(&self, cause: &WireError) -> Failure {
        let message = format!(
            "the daemon ended while `{}` ran in VM `{}`",
            self.command_name(),
            self.vm
        );
        ApiError::new(ErrorKind::Unavailable, message)
            .caused_by(cause)
            .with_hint("run `banger daemon logs`; VMs outlive the daemon, see `banger vm list`")
            .into()
    }

    /// Says what became of the VM, where that is to be known.
    async fn lost(&self, client: &Client, cause: &WireError) -> Failure {
        let (vm, command) = (self.vm, self.command_name());
        let (message, hint) = match client.vm(vm).await {
            Ok(found) if found.state != banger_proto::api::VmState::Running => (
                format!(
                    "VM `{}` is {} and took `{command}` with it",
                    found.name, found.state
                ),
                format!("run `banger vm logs {vm}`"),
            ),
            Ok(_) => (
                format!("the connection to VM `{vm}` ended before `{command}` did"),
                format!(
                    "`{command}` may still run there: `banger vm exec {vm} -- ps ax` shows it; \
                     `banger vm health {vm}` tells how the VM is"
                ),
            ),
            Err(_) => return self.lost_daemon(cause),
        };
        ApiError::new(ErrorKind::Unavailable, message)
            .caused_by(cause)
            .with_hint(hint)
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

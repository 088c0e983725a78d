//! How bytes go between an SSH channel and a command or connection.
//!
//! russh reads a connection's messages one after another, and stops while a channel's queue
//! is full. A window adjustment that would set our output free may then wait behind the
//! client's input, while the input waits for a command that waits for its output. So while
//! output is held back, more input is taken than otherwise.

use std::collections::VecDeque;
use std::future::Future;
use std::mem;
use std::pin::Pin;

use banger_proto::exit::ExitStatus;
use bytes::Bytes;
use russh::server::{Handle, Msg};
use russh::{Channel as RusshChannel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use tokio::sync::mpsc;

/// Input that waits for a slow command.
const QUEUE: usize = 256 * 1024;
/// The same while output is held back by the client's window.
const QUEUE_IN_NEED: usize = 64 * 1024 * 1024;

/// What goes to the client.
pub(super) enum Output {
    Data(Bytes),
    Error(Bytes),
    Exit(ExitStatus),
    Nothing,
}

/// An open channel.
pub(super) struct Channel {
    pub read: ChannelReadHalf,
    pub write: ChannelWriteHalf<Msg>,
    pub handle: Handle,
}

impl Channel {
    /// A channel of the connection that `handle` leads to.
    pub(super) fn new(channel: RusshChannel<Msg>, handle: Handle) -> Self {
        let (read, write) = channel.split();
        Self {
            read,
            write,
            handle,
        }
    }
}

type Writing<'a> = Pin<Box<dyn Future<Output = Result<(), russh::Error>> + Send + 'a>>;

/// Carries bytes until the output ends or the client closes the channel. `convert` says
/// what an item of output is for the client; `None` ends it.
pub(super) async fn carry<T: Send>(
    channel: Channel,
    input: Option<mpsc::Sender<Bytes>>,
    mut output: mpsc::Receiver<T>,
    convert: impl Fn(T) -> Option<Output> + Send,
) {
    let Channel {
        mut read,
        write,
        handle,
    } = channel;
    let mut input = Input {
        sender: input,
        queue: VecDeque::new(),
        length: 0,
        ended: false,
    };
    let mut writing: Option<Writing<'_>> = None;
    loop {
        let limit = if writing.is_some() {
            QUEUE_IN_NEED
        } else {
            QUEUE
        };
        tokio::select! {
            message = read.wait(), if input.length < limit => match message {
                Some(ChannelMsg::Data { data }) => input.push(data),
                Some(ChannelMsg::Eof) => input.end(),
                // Dropping the queues hangs the command up or closes the connection.
                Some(ChannelMsg::Close) | None => return,
                Some(_) => {}
            },
            () = input.pass_on(), if !input.queue.is_empty() => {}
            result = until_written(&mut writing), if writing.is_some() => {
                writing = None;
                if result.is_err() {
                    return;
                }
            }
            item = output.recv(), if writing.is_none() => match item.and_then(&convert) {
                Some(item) => writing = Some(Box::pin(send(&write, &handle, item))),
                None => break,
            },
        }
    }
    // The client may be gone by now.
    let _ = write.eof().await;
    let _ = write.close().await;
}

async fn until_written(writing: &mut Option<Writing<'_>>) -> Result<(), russh::Error> {
    match writing {
        Some(writing) => writing.await,
        None => Ok(()),
    }
}

async fn send(
    write: &ChannelWriteHalf<Msg>,
    handle: &Handle,
    item: Output,
) -> Result<(), russh::Error> {
    match item {
        Output::Data(bytes) => write.data_bytes(bytes).await,
        Output::Nothing => Ok(()),
        Output::Error(bytes) => write.extended_data_bytes(1, bytes).await,
        Output::Exit(ExitStatus::Code(code)) => write.exit_status(code.into()).await,
        Output::Exit(ExitStatus::Signal(signal)) => {
            let (none, id) = (String::new(), write.id());
            let sent = handle.exit_signal_request(id, name(signal), false, none.clone(), none);
            sent.await.map_err(|_| russh::Error::SendError)
        }
    }
}

/// Input on its way to a command.
struct Input {
    sender: Option<mpsc::Sender<Bytes>>,
    queue: VecDeque<Bytes>,
    length: usize,
    ended: bool,
}

impl Input {
    fn push(&mut self, bytes: Bytes) {
        // Where nobody takes input any more, it is dropped.
        if self.sender.is_some() {
            self.length += bytes.len();
            self.queue.push_back(bytes);
        }
    }

    fn end(&mut self) {
        self.ended = true;
        if self.queue.is_empty() {
            self.sender = None;
        }
    }

    /// Passes one piece on. Cancel-safe: a piece leaves the queue once there is room for it.
    async fn pass_on(&mut self) {
        let Some(sender) = &self.sender else {
            return;
        };
        match sender.reserve().await {
            Ok(permit) => {
                if let Some(bytes) = self.queue.pop_front() {
                    self.length -= bytes.len();
                    permit.send(bytes);
                }
            }
            Err(_) => {
                self.queue.clear();
                self.length = 0;
                self.ended = true;
            }
        }
        if self.ended && self.queue.is_empty() {
            self.sender = None;
        }
    }
}

/// RFC 4254, section 6.10, names signals without `SIG`.
const SIGNALS: [(Sig, i32); 12] = [
    (Sig::ABRT, libc::SIGABRT),
    (Sig::ALRM, libc::SIGALRM),
    (Sig::FPE, libc::SIGFPE),
    (Sig::HUP, libc::SIGHUP),
    (Sig::ILL, libc::SIGILL),
    (Sig::INT, libc::SIGINT),
    (Sig::KILL, libc::SIGKILL),
    (Sig::PIPE, libc::SIGPIPE),
    (Sig::QUIT, libc::SIGQUIT),
    (Sig::SEGV, libc::SIGSEGV),
    (Sig::TERM, libc::SIGTERM),
    (Sig::USR1, libc::SIGUSR1),
];

fn name(signal: i32) -> Sig {
    let known = SIGNALS.into_iter().find(|(_, number)| *number == signal);
    known.map_or_else(|| Sig::Custom(format!("{signal}@banger")), |(name, _)| name)
}

/// The number of a signal that a client names.
pub(super) fn number(signal: &Sig) -> Option<i32> {
    if let Sig::Custom(name) = signal {
        return match name.as_str() {
            "USR2" => Some(libc::SIGUSR2),
            "STOP" => Some(libc::SIGSTOP),
            "CONT" => Some(libc::SIGCONT),
            "WINCH" => Some(libc::SIGWINCH),
            _ => None,
        };
    }
    let same = |name: &Sig| mem::discriminant(name) == mem::discriminant(signal);
    SIGNALS
        .into_iter()
        .find(|(name, _)| same(name))
        .map(|(_, number)| number)
}

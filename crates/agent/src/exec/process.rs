//! A running command from its start to its exit status: input, output, hang-up.
//!
//! ```text
//! running --exits--> draining --end of output, or quiet--> Exit
//!    └─ nobody listens --> SIGHUP --5 s--> SIGKILL
//! ```

use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use banger_proto::exit::ExitStatus;
use banger_proto::frame::{DataKind, HEADER_LEN};
use bytes::{BufMut, Bytes, BytesMut};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::watch::watch;

/// Largest piece of output, header included: one HTTP/2 frame of the largest size.
const CHUNK_SIZE: usize = 64 * 1024;
/// Less room than this is not worth a system call; a new buffer is taken instead.
const LEAST_ROOM: usize = 8 * 1024;
/// How long output may be quiet after the command's end before whoever still holds its
/// pipes (a process in the background) is no longer waited for.
const QUIET: Duration = Duration::from_millis(100);
/// How many bytes such a process may still write. The command's own last output is not
/// cut: no pipe holds as much.
const CHATTER: usize = 1024 * 1024;
/// How long a command has to end after a hang-up.
const HANG_UP: Duration = Duration::from_secs(5);

/// The agent's ends of a command's input and output.
#[derive(Debug)]
pub(super) enum Ends {
    Pipes {
        input: Option<OwnedFd>,
        output: OwnedFd,
        error: OwnedFd,
    },
    Terminal(OwnedFd),
}

/// Which of its two outputs a command wrote to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output; everything on a terminal.
    Output,
    /// Standard error.
    Error,
}

/// What comes out of a command.
#[derive(Debug)]
pub enum Event {
    /// It runs.
    Started(u32),
    /// It wrote something.
    Wrote(Stream, Chunk),
    /// It ended; the last event.
    Exited(ExitStatus),
}

/// A piece of output, with room for a frame header in front of it.
#[derive(Debug)]
pub struct Chunk(BytesMut);

impl Chunk {
    /// The output alone.
    pub fn into_bytes(self) -> Bytes {
        self.0.freeze().slice(HEADER_LEN..)
    }

    /// The output behind a frame header of this kind.
    pub fn into_frame(mut self, kind: DataKind) -> Bytes {
        let header = kind.header(self.0.len() - HEADER_LEN);
        self.0[..HEADER_LEN].copy_from_slice(&header);
        self.0.freeze()
    }
}

/// Signals and terminal size of a command, for as long as it runs.
#[derive(Clone, Debug)]
pub struct Control {
    leader: Pid,
    terminal: Option<Arc<OwnedFd>>,
    /// Once it was waited for, its id may be another process's.
    reaped: Arc<AtomicBool>,
}

impl Control {
    /// Sends a signal to the command's process group, on a terminal also to the one in
    /// the foreground.
    pub fn signal(&self, signal: i32) {
        if self.reaped.load(Ordering::Relaxed) || !(1..=64).contains(&signal) {
            return;
        }
        let foreground = self
            .terminal
            .as_ref()
            .and_then(|terminal| rustix::termios::tcgetpgrp(terminal).ok())
            .filter(|group| *group != self.leader);
        for group in [Some(self.leader), foreground].into_iter().flatten() {
            // SAFETY: the call has no memory to go wrong with. It is made directly because
            // rustix reserves real-time signals; a group that is gone is no error here.
            unsafe { libc::kill(-group.as_raw_pid(), signal) };
        }
    }

    /// Tells the command's terminal its new size.
    pub fn resize(&self, columns: u16, rows: u16) {
        if let Some(terminal) = &self.terminal {
            let window = Winsize {
                ws_col: columns,
                ws_row: rows,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            // The terminal is open, so there is nothing that could be refused.
            let _ = tcsetwinsize(terminal, window);
        }
    }
}

/// A command that was just started.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    pidfd: AsyncFd<OwnedFd>,
    input: Option<Pipe>,
    output: Pipe,
    error: Option<Pipe>,
    control: Control,
}

impl Process {
    pub(super) fn new(mut child: Child, ends: Ends) -> io::Result<Self> {
        match Self::watch(&child, ends) {
            Ok((pidfd, [input, output, error], control)) => {
                let output = output.expect("both kinds of ends have an output");
                Ok(Self {
                    child,
                    pidfd,
                    input,
                    output,
                    error,
                    control,
                })
            }
            Err(error) => {
                // Nobody could follow it, so it must not run on.
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    fn watch(
        child: &Child,
        ends: Ends,
    ) -> io::Result<(AsyncFd<OwnedFd>, [Option<Pipe>; 3], Control)> {
        let leader = Pid::from_child(child);
        let pidfd = watch(pidfd_open(leader, PidfdFlags::empty())?, Interest::READABLE)?;
        let (pipes, terminal) = match ends {
            Ends::Pipes {
                input,
                output,
                error,
            } => {
                let input = input
                    .map(|input| Pipe::new(input, Interest::WRITABLE))
                    .transpose()?;
                let output = Pipe::new(output, Interest::READABLE)?;
                let error = Pipe::new(error, Interest::READABLE)?;
                ([input, Some(output), Some(error)], None)
            }
            Ends::Terminal(master) => {
                let input = Pipe::new(master.try_clone()?, Interest::WRITABLE)?;
                let output = Pipe::new(master.try_clone()?, Interest::READABLE)?;
                ([Some(input), Some(output), None], Some(Arc::new(master)))
            }
        };
        let control = Control {
            leader,
            terminal,
            reaped: Arc::default(),
        };
        Ok((pidfd, pipes, control))
    }

    pub(super) fn pid(&self) -> Pid {
        self.control.leader
    }

    pub(super) fn control(&self) -> Control {
        self.control.clone()
    }

    /// Follows the command to its end.
    pub(super) async fn run(self, input: mpsc::Receiver<Bytes>, events: mpsc::Sender<Event>) {
        let Self {
            mut child,
            pidfd,
            input: sink,
            output,
            error,
            control,
        } = self;
        let pid = control.leader.as_raw_pid().unsigned_abs();
        // Where nobody listens any more, the hang-up below takes notice.
        let _ = events.send(Event::Started(pid)).await;

        let exited = tokio::sync::watch::Sender::new(false);
        let wait = async {
            let status = wait(&mut child, &pidfd, &control, &events).await;
            exited.send_replace(true);
            status
        };
        let drain = async {
            let error = async {
                if let Some(error) = &error {
                    pump(error, Stream::Error, &events, exited.subscribe()).await;
                }
            };
            tokio::join!(
                pump(&output, Stream::Output, &events, exited.subscribe()),
                error
            );
        };
        let follow = async { tokio::join!(wait, drain).0 };
        let status = beside(feed(sink, input, control.terminal.is_some()), follow).await;
        let _ = events.send(Event::Exited(status)).await;
    }
}

/// Runs `side` along with `main`, whose end ends both.
async fn beside<T>(side: impl Future<Output = ()>, main: impl Future<Output = T>) -> T {
    tokio::pin!(main);
    tokio::select! {
        result = &mut main => return result,
        () = side => {}
    }
    main.await
}

/// Waits for the command's end, and brings it about if nobody listens any more.
async fn wait(
    child: &mut Child,
    pidfd: &AsyncFd<OwnedFd>,
    control: &Control,
    events: &mpsc::Sender<Event>,
) -> ExitStatus {
    let gone = async {
        events.closed().await;
        for signal in [Signal::HUP, Signal::CONT] {
            control.signal(signal.as_raw());
        }
        sleep(HANG_UP).await;
        control.signal(Signal::KILL.as_raw());
    };
    // An error would mean that the descriptor is not watched; waiting below is then right.
    let ended = async {
        let _ = pidfd.readable().await;
    };
    beside(gone, ended).await;
    let status = child.wait();
    control.reaped.store(true, Ordering::Relaxed);
    status.map_or(ExitStatus::Signal(libc::SIGKILL), exit_status)
}

fn exit_status(status: std::process::ExitStatus) -> ExitStatus {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => ExitStatus::Code(u8::try_from(code & 0xff).expect("8 bits")),
        (None, Some(signal)) => ExitStatus::Signal(signal),
        (None, None) => ExitStatus::Signal(libc::SIGKILL),
    }
}

/// Passes input on until its end or until the command takes no more.
async fn feed(sink: Option<Pipe>, mut input: mpsc::Receiver<Bytes>, terminal: bool) {
    let Some(sink) = sink else {
        return;
    };
    while let Some(bytes) = input.recv().await {
        if sink.write_all(&bytes).await.is_err() {
            // Nobody reads. The client may go on sending: that is dropped.
            drop(sink);
            while input.recv().await.is_some() {}
            return;
        }
    }
    if terminal {
        // A terminal has no end of input but this character (termios(3), VEOF).
        let _ = sink.write_all(&[4]).await;
    }
}

/// Passes output on until its end, or until it is quiet after the command's end.
async fn pump(
    source: &Pipe,
    stream: Stream,
    events: &mpsc::Sender<Event>,
    exited: tokio::sync::watch::Receiver<bool>,
) {
    let mut buffer = BytesMut::new();
    let mut after_exit = 0;
    loop {
        let mut exited = exited.clone();
        let quiet = async {
            // The sender outlives the pumps.
            let _ = exited.wait_for(|&exited| exited).await;
            sleep(QUIET).await;
        };
        let chunk = tokio::select! {
            biased;
            chunk = source.read(&mut buffer) => chunk,
            () = quiet => return,
        };
        let Some(chunk) = chunk else {
            return;
        };
        if *exited.borrow() {
            after_exit += chunk.0.len();
        }
        if events.send(Event::Wrote(stream, chunk)).await.is_err() || after_exit > CHATTER {
            return;
        }
    }
}

/// One of the agent's ends, ready to be awaited.
#[derive(Debug)]
struct Pipe(AsyncFd<OwnedFd>);

impl Pipe {
    fn new(descriptor: OwnedFd, interest: Interest) -> io::Result<Self> {
        let flags = fcntl_getfl(&descriptor)?;
        fcntl_setfl(&descriptor, flags | OFlags::NONBLOCK)?;
        Ok(Self(watch(descriptor, interest)?))
    }

    /// Reads one chunk; `None` at the end. Cancel-safe.
    async fn read(&self, buffer: &mut BytesMut) -> Option<Chunk> {
        loop {
            let mut guard = self.0.readable().await.ok()?;
            match read_chunk(guard.get_inner(), buffer) {
                Ok(chunk) => return chunk,
                Err(Errno::AGAIN) => guard.clear_ready(),
                Err(Errno::INTR) => {}
                // EIO: the terminal's last other end was closed.
                Err(_) => return None,
            }
        }
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut guard = self.0.writable().await?;
            match rustix::io::write(guard.get_inner(), bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::AGAIN) => guard.clear_ready(),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

fn read_chunk(descriptor: &OwnedFd, buffer: &mut BytesMut) -> Result<Option<Chunk>, Errno> {
    buffer.clear();
    if buffer.capacity() < LEAST_ROOM {
        buffer.reserve(CHUNK_SIZE);
    }
    buffer.put_bytes(0, HEADER_LEN);
    let room: &mut [MaybeUninit<u8>] = buffer.spare_capacity_mut();
    let room_len = room.len().min(CHUNK_SIZE - HEADER_LEN);
    let (filled, _) = rustix::io::read(descriptor, &mut room[..room_len])?;
    let count = filled.len();
    if count == 0 {
        return Ok(None);
    }
    // SAFETY: the header and the `count` bytes that were read are initialised.
    unsafe { buffer.set_len(HEADER_LEN + count) };
    Ok(Some(Chunk(buffer.split())))
}

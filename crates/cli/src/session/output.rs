//! Writes standard output and standard error, each on a thread of its own.

use std::io;
use std::thread;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use rustix::stdio::{stderr, stdout};
use rustix::termios::isatty;
use tokio::sync::mpsc;

use super::Event;
use crate::failure::Failure;

/// How many pieces of output may wait for their reader.
const PIECES_WAITING: usize = 8;

/// Where a guest command's output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pipe {
    Stdout,
    Stderr,
}

impl Pipe {
    fn descriptor(self) -> BorrowedFd<'static> {
        match self {
            Self::Stdout => stdout(),
            Self::Stderr => stderr(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "standard output",
            Self::Stderr => "standard error",
        }
    }
}

/// Begins to write what the result is given, until that is dropped.
pub(super) fn start(pipe: Pipe, events: mpsc::UnboundedSender<Event>) -> mpsc::Sender<Bytes> {
    let (sender, mut pieces) = mpsc::channel::<Bytes>(PIECES_WAITING);
    thread::spawn(move || {
        // Asked before the terminal may be gone, when it would no longer tell.
        let terminal = isatty(pipe.descriptor());
        if let Err(error) = write_to_end(pipe, &mut pieces) {
            if let Some(event) = complaint(pipe, terminal, error) {
                let _ = events.send(event);
            }
            // What still comes is taken and dropped, so that the other pipe is not held up.
            while pieces.blocking_recv().is_some() {}
        }
        let _ = events.send(Event::Drained);
    });
    sender
}

fn complaint(pipe: Pipe, terminal: bool, error: Errno) -> Option<Event> {
    match (pipe, error) {
        (_, Errno::IO) if terminal => Some(Event::HungUp),
        (Pipe::Stdout, Errno::PIPE) => Some(Event::BrokenPipe),
        // Other programs do not end either when nobody reads their complaints.
        (Pipe::Stderr, Errno::PIPE) => None,
        _ => Some(Event::Failed(Failure::system(
            format!("could not write to {}", pipe.name()),
            &io::Error::from(error),
        ))),
    }
}

fn write_to_end(pipe: Pipe, pieces: &mut mpsc::Receiver<Bytes>) -> rustix::io::Result<()> {
    while let Some(piece) = pieces.blocking_recv() {
        write_all(pipe.descriptor(), &piece)?;
    }
    Ok(())
}

fn write_all(descriptor: BorrowedFd<'_>, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(descriptor, bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(Errno::INTR) => {}
            // Whoever shares the descriptor made it non-blocking.
            Err(Errno::AGAIN) => {
                let mut writable = [PollFd::new(&descriptor, PollFlags::OUT)];
                match poll(&mut writable, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

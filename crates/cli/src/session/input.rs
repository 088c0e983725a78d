//! Reads standard input on a thread of its own, into buffers that are frames already.

use std::io;
use std::thread;

use banger_proto::frame::{DataKind, HEADER_LEN};
use nix::sys::signal::{SigSet, Signal};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::stdio::stdin;
use rustix::termios::isatty;
use tokio::sync::mpsc;

use super::Event;
use crate::failure::Failure;

/// How many bytes one frame of input carries at most.
const CHUNK_SIZE: usize = 256 << 10;
/// How many chunks may wait for the socket.
const CHUNKS_WAITING: usize = 2;

/// A frame of input, in a buffer that is used again.
#[derive(Debug)]
pub(super) struct Chunk {
    buffer: Vec<u8>,
    length: usize,
}

impl Chunk {
    fn new() -> Self {
        Self {
            buffer: vec![0; HEADER_LEN + CHUNK_SIZE],
            length: HEADER_LEN,
        }
    }

    /// The frame's bytes.
    pub(super) fn frame(&self) -> &[u8] {
        &self.buffer[..self.length]
    }

    /// Number of bytes of input in it.
    pub(super) fn payload(&self) -> usize {
        self.length - HEADER_LEN
    }

    /// Where the payload goes.
    fn room(&mut self) -> &mut [u8] {
        &mut self.buffer[HEADER_LEN..]
    }

    /// Makes a frame of the first `length` bytes of the room.
    fn seal(&mut self, length: usize) {
        self.buffer[..HEADER_LEN].copy_from_slice(&DataKind::Stdin.header(length));
        self.length = HEADER_LEN + length;
    }
}

/// The reading thread's end: full chunks go out, empty ones come back.
#[derive(Debug)]
pub(super) struct ChunkSource {
    full: mpsc::Sender<Chunk>,
    spare: std::sync::mpsc::Receiver<Chunk>,
}

impl ChunkSource {
    pub(super) fn new() -> (Self, mpsc::Receiver<Chunk>, std::sync::mpsc::Sender<Chunk>) {
        let (full, chunks) = mpsc::channel(CHUNKS_WAITING);
        let (back, spare) = std::sync::mpsc::channel();
        (Self { full, spare }, chunks, back)
    }
}

/// Begins to read. The thread ends with the input, or with the process: a read cannot be
/// called off.
///
/// A raw terminal has no end of input, so that its end means that it was closed.
pub(super) fn start(source: ChunkSource, raw: bool, events: mpsc::UnboundedSender<Event>) {
    thread::spawn(move || {
        // In the background, reading the terminal then fails instead of stopping banger.
        let _ = SigSet::from_iter([Signal::SIGTTIN]).thread_block();
        match read_to_end(&source) {
            Ok(()) if raw => drop(events.send(Event::HungUp)),
            Ok(()) => {}
            Err(error) => {
                let failure = Failure::system("could not read standard input", &error);
                let _ = events.send(Event::Failed(failure));
            }
        }
    });
}

fn read_to_end(source: &ChunkSource) -> io::Result<()> {
    // Asked before the terminal may be gone, when it would no longer tell.
    let terminal = isatty(stdin());
    loop {
        let mut chunk = source.spare.try_recv().unwrap_or_else(|_| Chunk::new());
        let length = read(chunk.room(), terminal)?;
        chunk.seal(length);
        // An empty frame is the end of input.
        if source.full.blocking_send(chunk).is_err() || length == 0 {
            return Ok(());
        }
    }
}

fn read(room: &mut [u8], terminal: bool) -> io::Result<usize> {
    let stdin = stdin();
    loop {
        match rustix::io::read(stdin, &mut *room) {
            Ok(length) => return Ok(length),
            Err(Errno::INTR) => {}
            // Whoever shares the descriptor made it non-blocking.
            Err(Errno::AGAIN) => {
                let mut readable = [PollFd::new(&stdin, PollFlags::IN)];
                match poll(&mut readable, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            // The terminal is gone, or another process group has it.
            Err(Errno::IO) if terminal => return Ok(0),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_proto::frame::Frame;
    use bytes::BytesMut;

    #[test]
    fn a_sealed_chunk_is_a_frame_however_often_it_is_used() {
        let mut chunk = Chunk::new();
        for text in [&b"hello"[..], b"", b"a"] {
            chunk.room()[..text.len()].copy_from_slice(text);
            chunk.seal(text.len());
            let frame = Frame::decode(&mut BytesMut::from(chunk.frame())).unwrap();
            assert_eq!(frame, Some(Frame::Stdin(text.to_vec().into())));
        }
    }
}

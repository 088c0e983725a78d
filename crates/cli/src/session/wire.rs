//! Frames from and to the socket.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use banger_client::{ByteStreamReader, ByteStreamWriter};
use banger_proto::exit::ExitStatus;
use banger_proto::frame::{Frame, FrameError};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::input::{Chunk, ChunkSource};

/// How many bytes are asked of the socket at once.
const READ_SIZE: usize = 256 << 10;

/// Why a stream of frames came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("the stream ended")]
    Ended,
    #[error("could not read from the daemon")]
    Read(#[source] io::Error),
    #[error("the stream is malformed")]
    Frame(#[source] FrameError),
    #[error("the guest agent sent something out of order")]
    OutOfOrder,
}

/// Takes frames off the socket.
#[derive(Debug)]
pub(super) struct FrameReader {
    reader: ByteStreamReader,
    buffer: BytesMut,
}

impl FrameReader {
    pub(super) fn new(reader: ByteStreamReader) -> Self {
        Self {
            reader,
            buffer: BytesMut::with_capacity(READ_SIZE),
        }
    }

    /// The next frame. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Frame, WireError> {
        loop {
            if let Some(frame) = Frame::decode(&mut self.buffer).map_err(WireError::Frame)? {
                return Ok(frame);
            }
            if self.buffer.capacity() - self.buffer.len() < READ_SIZE / 2 {
                self.buffer.reserve(READ_SIZE);
            }
            let read = self.reader.read_buf(&mut self.buffer).await;
            if read.map_err(WireError::Read)? == 0 {
                return Err(WireError::Ended);
            }
        }
    }

    /// Passes output on until the command has ended. A pipe that takes no more holds the
    /// stream up, and thereby the command.
    pub(super) async fn pass_on(
        mut self,
        stdout: mpsc::Sender<Bytes>,
        stderr: mpsc::Sender<Bytes>,
        window: &Window,
    ) -> Result<ExitStatus, WireError> {
        loop {
            match self.next().await? {
                // The threads go on taking bytes when nobody reads them, so that this fails
                // only when the session is over.
                Frame::Stdout(bytes) => drop(stdout.send(bytes).await),
                Frame::Stderr(bytes) => drop(stderr.send(bytes).await),
                Frame::Taken(bytes) => window.taken(bytes),
                Frame::Exit(status) => return Ok(status),
                _ => return Err(WireError::OutOfOrder),
            }
        }
    }
}

/// How much input may be on its way, so that what follows it is heard: see
/// [`banger_proto::frame`]. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Window {
    room: Arc<Semaphore>,
    size: Arc<OnceLock<usize>>,
}

impl Window {
    /// Nothing may go out yet.
    pub(super) fn closed() -> Self {
        Self {
            room: Arc::new(Semaphore::new(0)),
            size: Arc::default(),
        }
    }

    /// So many bytes may be on their way; with 0 there is no limit.
    pub(super) fn open(&self, size: u32) {
        let size = match usize::try_from(size) {
            Ok(0) | Err(_) => Semaphore::MAX_PERMITS,
            Ok(size) => size,
        };
        if self.size.set(size).is_ok() {
            self.room.add_permits(size);
        }
    }

    /// So many bytes are on their way no more. An agent that tells of more than went out, or of
    /// anything where there is no limit, does not widen the window.
    fn taken(&self, bytes: u32) {
        let size = self.size.get().copied().unwrap_or_default();
        let on_their_way = size.saturating_sub(self.room.available_permits());
        self.room.add_permits(self.share(bytes).min(on_their_way));
    }

    /// Waits until so many bytes may go out, and counts them. Cancel-safe.
    async fn room_for(&self, bytes: usize) {
        if self.size.get().is_none() {
            // Until the window is open there is not one permit to be had, and its size is
            // unknown. This one is given back at once.
            drop(self.room.acquire().await);
        }
        let share = self.share(u32::try_from(bytes).expect("a chunk is far smaller"));
        let share = u32::try_from(share).expect("it is at most the chunk");
        let permits = self.room.acquire_many(share).await;
        permits.expect("the semaphore is never closed").forget();
    }

    /// What a piece takes of the room: one that is larger than the window goes out alone.
    fn share(&self, bytes: u32) -> usize {
        let size = self.size.get().copied().unwrap_or_default();
        usize::try_from(bytes).map_or(size, |bytes| bytes.min(size))
    }
}

/// Puts frames on the socket: those of this process first, then input of the command.
#[derive(Debug)]
pub(super) struct Outbox {
    frames: Option<mpsc::UnboundedSender<Frame>>,
    task: JoinHandle<()>,
}

impl Outbox {
    pub(super) fn new(writer: ByteStreamWriter, window: Window) -> (Self, ChunkSource) {
        let (frames, next_frame) = mpsc::unbounded_channel();
        let (source, chunks, spare) = ChunkSource::new();
        let task = tokio::spawn(async move {
            // A socket that takes no more is broken, which its reader will tell.
            let _ = write(writer, next_frame, chunks, spare, &window).await;
        });
        let frames = Some(frames);
        (Self { frames, task }, source)
    }

    pub(super) fn send(&self, frame: Frame) {
        if let Some(frames) = &self.frames {
            let _ = frames.send(frame);
        }
    }

    /// Gets out what was sent so far, and ends the stream.
    pub(super) async fn close(&mut self, limit: Duration) {
        self.frames = None;
        let _ = timeout(limit, &mut self.task).await;
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn write(
    mut writer: ByteStreamWriter,
    mut frames: mpsc::UnboundedReceiver<Frame>,
    mut chunks: mpsc::Receiver<Chunk>,
    spare: std::sync::mpsc::Sender<Chunk>,
    window: &Window,
) -> io::Result<()> {
    let mut input_is_open = true;
    // A chunk that has yet to be let out.
    let mut next: Option<Chunk> = None;
    loop {
        tokio::select! {
            biased;
            frame = frames.recv() => match frame {
                Some(frame) => writer.write_all(&frame.to_bytes()).await?,
                None => return writer.shutdown().await,
            },
            chunk = chunks.recv(), if input_is_open && next.is_none() => {
                input_is_open = chunk.is_some();
                next = chunk;
            }
            () = window.room_for(next.as_ref().map_or(0, Chunk::payload)), if next.is_some() => {
                let chunk = next.take().expect("there is one");
                writer.write_all(chunk.frame()).await?;
                // The reader of standard input is gone once that has ended.
                let _ = spare.send(chunk);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Waker};

    /// Whether a piece of input may go out at once.
    fn goes_out(window: &Window, bytes: usize) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        pin!(window.room_for(bytes)).poll(&mut context).is_ready()
    }

    #[test]
    fn no_more_goes_out_than_the_window_until_some_is_taken() {
        let window = Window::closed();
        window.open(10);
        assert!(goes_out(&window, 6));
        assert!(!goes_out(&window, 6));
        assert!(goes_out(&window, 4));
        window.taken(6);
        assert!(goes_out(&window, 6));
        assert!(!goes_out(&window, 1));
    }

    #[test]
    fn a_piece_that_is_larger_than_the_window_goes_out_alone() {
        let window = Window::closed();
        window.open(10);
        assert!(goes_out(&window, 25));
        assert!(!goes_out(&window, 1));
        window.taken(25);
        assert!(goes_out(&window, 10));
        assert!(!goes_out(&window, 1));
    }

    #[test]
    fn an_agent_that_tells_of_more_than_went_out_gets_no_more() {
        for size in [10, 0] {
            let window = Window::closed();
            window.taken(5);
            window.open(size);
            let whole = window.room.available_permits();
            window.taken(u32::MAX);
            assert!(goes_out(&window, 4));
            window.taken(u32::MAX);
            assert_eq!(window.room.available_permits(), whole);
        }
    }

    #[test]
    fn an_agent_that_knows_of_no_window_is_sent_everything() {
        let window = Window::closed();
        assert!(!goes_out(&window, 1));
        window.open(0);
        for _ in 0..1000 {
            assert!(goes_out(&window, 256 << 10));
        }
    }
}

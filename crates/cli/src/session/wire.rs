//! Frames from and to the socket.

use std::io;
use std::time::Duration;

use banger_client::{ByteStreamReader, ByteStreamWriter};
use banger_proto::exit::ExitStatus;
use banger_proto::frame::{Frame, FrameError};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
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
    ) -> Result<ExitStatus, WireError> {
        loop {
            match self.next().await? {
                // The threads go on taking bytes when nobody reads them, so that this fails
                // only when the session is over.
                Frame::Stdout(bytes) => drop(stdout.send(bytes).await),
                Frame::Stderr(bytes) => drop(stderr.send(bytes).await),
                Frame::Exit(status) => return Ok(status),
                _ => return Err(WireError::OutOfOrder),
            }
        }
    }
}

/// Puts frames on the socket: those of this process first, then input of the command.
#[derive(Debug)]
pub(super) struct Outbox {
    frames: Option<mpsc::UnboundedSender<Frame>>,
    task: JoinHandle<()>,
}

impl Outbox {
    pub(super) fn new(writer: ByteStreamWriter) -> (Self, ChunkSource) {
        let (frames, next_frame) = mpsc::unbounded_channel();
        let (source, chunks, spare) = ChunkSource::new();
        let task = tokio::spawn(async move {
            // A socket that takes no more is broken, which its reader will tell.
            let _ = write(writer, next_frame, chunks, spare).await;
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
) -> io::Result<()> {
    let mut input_is_open = true;
    loop {
        tokio::select! {
            biased;
            frame = frames.recv() => match frame {
                Some(frame) => writer.write_all(&frame.to_bytes()).await?,
                None => return writer.shutdown().await,
            },
            chunk = chunks.recv(), if input_is_open => match chunk {
                Some(chunk) => {
                    writer.write_all(chunk.frame()).await?;
                    // The reader of standard input is gone once that has ended.
                    let _ = spare.send(chunk);
                }
                None => input_is_open = false,
            },
        }
    }
}

//! Bytes on their way between the runtime and a thread that blocks.

use std::io::{self, Read, Write};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::Stream;
use tokio::sync::mpsc;

/// Size of the pieces.
const PIECE: usize = 128 << 10;
/// How many pieces may be on their way.
const WAITING: usize = 4;

/// A way from a writer to a reader, either of which may block.
pub(crate) fn pieces() -> (PiecesWriter, Pieces) {
    let (sender, receiver) = mpsc::channel(WAITING);
    let writer = PiecesWriter {
        sender,
        buffer: BytesMut::new(),
    };
    let pieces = Pieces {
        receiver,
        piece: Bytes::new(),
    };
    (writer, pieces)
}

/// Where bytes go in. What was not flushed when this is dropped is lost.
#[derive(Debug)]
pub(crate) struct PiecesWriter {
    sender: mpsc::Sender<io::Result<Bytes>>,
    buffer: BytesMut,
}

impl PiecesWriter {
    /// Sends a piece from the runtime; false if nobody reads any more.
    pub(crate) async fn send(&self, piece: io::Result<Bytes>) -> bool {
        self.sender.send(piece).await.is_ok()
    }

    /// Tells the reader that no more comes, and that what came is not all.
    pub(crate) fn fail(self, error: io::Error) {
        // Nobody may be there to hear it.
        let _ = self.sender.blocking_send(Err(error));
    }
}

impl Write for PiecesWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() + bytes.len() > PIECE {
            self.flush()?;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = self.buffer.split().freeze();
        self.sender
            .blocking_send(Ok(piece))
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Where bytes come out: for a thread as a reader, for the runtime as a stream.
#[derive(Debug)]
pub(crate) struct Pieces {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl Pieces {
    /// As the body of an upload.
    pub(crate) fn into_stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        futures_util::stream::unfold(self.receiver, async |mut receiver| {
            let piece = receiver.recv().await?;
            Some((piece, receiver))
        })
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let length = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

//! A connection that has become a stream of bytes: exec, ssh, leases.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// A stream of bytes both ways. Dropping it closes the connection.
#[derive(Debug)]
pub struct ByteStream {
    stream: UnixStream,
    early: Bytes,
}

impl ByteStream {
    /// `early` is what came together with the answer's head.
    pub(crate) fn new(stream: UnixStream, early: Bytes) -> Self {
        Self { stream, early }
    }

    /// The two directions. Shutting the writer down ends the input and leaves the output open;
    /// dropping the writer does the same.
    pub fn into_split(self) -> (ByteStreamReader, ByteStreamWriter) {
        let (half, writer) = self.stream.into_split();
        let early = self.early;
        (ByteStreamReader { half, early }, writer)
    }
}

/// The daemon's direction.
#[derive(Debug)]
pub struct ByteStreamReader {
    half: OwnedReadHalf,
    early: Bytes,
}

/// The client's direction.
pub type ByteStreamWriter = OwnedWriteHalf;

impl AsyncRead for ByteStreamReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.early.is_empty() {
            return Pin::new(&mut self.half).poll_read(context, buffer);
        }
        let length = self.early.len().min(buffer.remaining());
        buffer.put_slice(&self.early[..length]);
        self.early.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for ByteStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.early.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let length = self.early.len().min(buffer.remaining());
        buffer.put_slice(&self.early[..length]);
        self.early.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ByteStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn bytes_that_came_with_the_head_are_read_first() {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(b" world").await.unwrap();
        drop(far);
        let (mut reader, _writer) =
            ByteStream::new(near, Bytes::from_static(b"hello")).into_split();
        let mut text = String::new();
        reader.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello world");
    }
}

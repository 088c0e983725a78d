//! A byte stream with something in the guest: a request's body one way, its response's the
//! other.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use http::Response;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;

use super::RequestError;
use super::client::{Body, data};

/// Number of written pieces that wait for HTTP/2 to take them.
const PIECES: usize = 4;
/// Longest piece; a frame's length ([`banger_proto::hello::MAX_FRAME_SIZE`]).
const PIECE_LEN: usize = 64 * 1024;

/// What feeds a request's body. An error breaks the request off.
pub(super) type Pieces = mpsc::Sender<io::Result<Bytes>>;

/// A byte stream with something in the guest.
///
/// Shutting down the writing half ends the input there and leaves the reading half open. A
/// stream that is dropped is reset, so that what serves it in the guest is hung up.
pub struct GuestStream {
    write: PollSender<io::Result<Bytes>>,
    read: Read,
    /// What was received and not yet read.
    rest: Bytes,
}

enum Read {
    /// The response's head has not come.
    Pending(BoxFuture<'static, Result<Response<Incoming>, RequestError>>),
    /// The response's bytes come.
    Open(BoxStream<'static, io::Result<Bytes>>),
    /// There are no more.
    Ended,
}

impl GuestStream {
    /// The body of a request whose bytes will be written to the stream, and what writes them.
    pub(super) fn request_body() -> (Pieces, Body) {
        let (sender, mut pieces) = mpsc::channel(PIECES);
        let frames = stream::poll_fn(move |cx| {
            pieces
                .poll_recv(cx)
                .map(|piece: Option<io::Result<Bytes>>| piece.map(|piece| piece.map(Frame::data)))
        });
        (sender, StreamBody::new(frames).boxed_unsync())
    }

    pub(super) fn open(sender: Pieces, body: Incoming) -> Self {
        Self {
            write: PollSender::new(sender),
            read: Read::Open(data(body).boxed()),
            rest: Bytes::new(),
        }
    }

    /// A stream whose answer comes after the first bytes were written.
    pub(super) fn pending(
        sender: Pieces,
        response: impl Future<Output = Result<Response<Incoming>, RequestError>> + Send + 'static,
    ) -> Self {
        Self {
            write: PollSender::new(sender),
            read: Read::Pending(response.boxed()),
            rest: Bytes::new(),
        }
    }

    /// Both halves by themselves, for bytes that need not be copied on their way.
    pub fn into_split(self) -> (GuestReader, GuestWriter) {
        let Self {
            mut write,
            read,
            rest,
        } = self;
        let sender = write.get_ref().cloned();
        write.close();
        let reader = GuestReader(Self { write, read, rest });
        (reader, GuestWriter { sender })
    }

    /// The next bytes as they came, without a copy.
    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut self.rest))));
        }
        loop {
            match &mut self.read {
                Read::Pending(response) => match ready!(response.poll_unpin(cx)) {
                    Ok(response) => self.read = Read::Open(data(response.into_body()).boxed()),
                    Err(error) => {
                        self.read = Read::Ended;
                        return Poll::Ready(Some(Err(error.into())));
                    }
                },
                Read::Open(bytes) => {
                    let next = ready!(bytes.poll_next_unpin(cx));
                    if !matches!(next, Some(Ok(_))) {
                        self.read = Read::Ended;
                    }
                    return Poll::Ready(next);
                }
                Read::Ended => return Poll::Ready(None),
            }
        }
    }
}

impl fmt::Debug for GuestStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestStream").finish_non_exhaustive()
    }
}

impl Stream for GuestStream {
    type Item = io::Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        self.get_mut().poll_bytes(cx)
    }
}

impl AsyncRead for GuestStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        while stream.rest.is_empty() {
            match ready!(stream.poll_bytes(cx)) {
                Some(bytes) => stream.rest = bytes?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = stream.rest.len().min(buffer.remaining());
        buffer.put_slice(&stream.rest[..length]);
        stream.rest.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for GuestStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        let length = bytes.len().min(PIECE_LEN);
        ready!(stream.write.poll_reserve(cx)).map_err(broken)?;
        let piece = Bytes::copy_from_slice(&bytes[..length]);
        stream.write.send_item(Ok(piece)).map_err(broken)?;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // HTTP/2 takes the pieces on its own.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().write.close();
        Poll::Ready(Ok(()))
    }
}

/// What comes from the guest. Dropped before its end, the stream is reset.
#[derive(Debug)]
pub struct GuestReader(GuestStream);

impl Stream for GuestReader {
    type Item = io::Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        self.get_mut().0.poll_bytes(cx)
    }
}

/// What goes to the guest. Dropped, it has ended.
#[derive(Debug)]
pub struct GuestWriter {
    sender: Option<Pieces>,
}

impl GuestWriter {
    /// Hands bytes over; waits while the guest takes none.
    ///
    /// # Errors
    /// Nobody there takes them any more.
    pub async fn write(&self, bytes: Bytes) -> io::Result<()> {
        let sender = self.sender.as_ref().ok_or_else(|| broken(()))?;
        sender.send(Ok(bytes)).await.map_err(broken)
    }

    /// Ends it in a way that nobody takes for the end of what was to come.
    pub async fn break_off(self, why: io::Error) {
        if let Some(sender) = self.sender {
            // Where nobody takes anything any more it is broken off already.
            let _ = sender.send(Err(why)).await;
        }
    }
}

/// Nobody takes the request's bytes any more.
fn broken<E>(_: E) -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

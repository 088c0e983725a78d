//! What a response consists of.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use banger_proto::frame::Frame;
use bytes::Bytes;
use hyper::body::{Frame as BodyFrame, SizeHint};
use tokio::sync::mpsc;

use crate::exec::{Event, Stream};

/// Kind bytes of [`banger_proto::frame`] for output, which is framed in place.
const STDOUT: u8 = 17;
const STDERR: u8 = 18;

/// The body of a response.
#[derive(Debug)]
pub enum Body {
    /// All of it at once.
    Full(Option<Bytes>),
    /// Bytes as they come; an error resets the stream, so that no client takes it for whole.
    Bytes(mpsc::Receiver<io::Result<Bytes>>),
    /// A command's events as frames; dropping the body hangs the command up.
    Events(mpsc::Receiver<Event>),
}

impl Body {
    /// A body that is known in full.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self::Full(Some(bytes.into()).filter(|bytes| !bytes.is_empty()))
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<BodyFrame<Bytes>>>> {
        let next = match self.get_mut() {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(Ok)),
            Self::Bytes(receiver) => receiver.poll_recv(cx),
            Self::Events(receiver) => receiver.poll_recv(cx).map(|event| Some(Ok(frame(event?)))),
        };
        next.map(|bytes| bytes.map(|bytes| bytes.map(BodyFrame::data)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Full(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Bytes(_) | Self::Events(_) => SizeHint::default(),
        }
    }
}

fn frame(event: Event) -> Bytes {
    match event {
        Event::Started(pid) => Frame::Started(banger_proto::agent::ExecStarted { pid }).to_bytes(),
        Event::Wrote(Stream::Output, chunk) => chunk.into_frame(STDOUT),
        Event::Wrote(Stream::Error, chunk) => chunk.into_frame(STDERR),
        Event::Exited(status) => Frame::Exit(status).to_bytes(),
    }
}

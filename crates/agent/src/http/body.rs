//! What a response consists of.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use banger_proto::agent::ExecStarted;
use banger_proto::frame::{DataKind, Frame};
use bytes::Bytes;
use hyper::body::{Frame as BodyFrame, SizeHint};
use tokio::sync::mpsc;

use crate::exec::{Event, Stream};

/// The body of a response.
#[derive(Debug)]
pub enum Body {
    /// All of it at once.
    Full(Option<Bytes>),
    /// Bytes as they come; an error resets the stream, so that no client takes it for whole.
    Bytes(mpsc::Receiver<io::Result<Bytes>>),
    /// A command's events as frames; dropping the body hangs the command up.
    Events(Events),
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
            Self::Events(events) => events.poll_next(cx).map(|frame| frame.map(Ok)),
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

/// What comes out of a command, and how far its input has come: `started` first, `exit` last.
#[derive(Debug)]
pub struct Events {
    events: mpsc::Receiver<Event>,
    taken: mpsc::Receiver<u32>,
    input_window: u32,
    stage: Stage,
}

/// Which frames may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Before,
    Running,
    Ended,
}

impl Events {
    /// The client is told of `input_window`, and of what arrives in `taken`.
    pub(super) fn new(
        events: mpsc::Receiver<Event>,
        taken: mpsc::Receiver<u32>,
        input_window: u32,
    ) -> Self {
        Self {
            events,
            taken,
            input_window,
            stage: Stage::Before,
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.stage == Stage::Ended {
            return Poll::Ready(None);
        }
        // Input first: its client waits, and there is little of this.
        if self.stage == Stage::Running
            && let Poll::Ready(Some(bytes)) = self.taken.poll_recv(cx)
        {
            return Poll::Ready(Some(Frame::Taken(bytes).to_bytes()));
        }
        self.events
            .poll_recv(cx)
            .map(|event| Some(self.frame(event?)))
    }

    fn frame(&mut self, event: Event) -> Bytes {
        match event {
            Event::Started(pid) => {
                self.stage = Stage::Running;
                let input_window = self.input_window;
                Frame::Started(ExecStarted { pid, input_window }).to_bytes()
            }
            Event::Wrote(Stream::Output, chunk) => chunk.into_frame(DataKind::Stdout),
            Event::Wrote(Stream::Error, chunk) => chunk.into_frame(DataKind::Stderr),
            Event::Exited(status) => {
                self.stage = Stage::Ended;
                Frame::Exit(status).to_bytes()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_proto::exit::ExitStatus;
    use bytes::BytesMut;

    #[tokio::test]
    async fn started_comes_first_and_exit_last_whatever_input_does() {
        let (events, from_command) = mpsc::channel(8);
        let (taken, from_input) = mpsc::channel(8);
        let mut body = Events::new(from_command, from_input, 7);
        let mut frames = Vec::new();
        for step in [Event::Started(1), Event::Exited(ExitStatus::Code(0))] {
            taken.send(5).await.unwrap();
            events.send(step).await.unwrap();
        }
        while let Some(bytes) = std::future::poll_fn(|cx| body.poll_next(cx)).await {
            frames.push(
                Frame::decode(&mut BytesMut::from(&bytes[..]))
                    .unwrap()
                    .unwrap(),
            );
        }
        let started = ExecStarted {
            pid: 1,
            input_window: 7,
        };
        assert_eq!(
            frames,
            [
                Frame::Started(started),
                Frame::Taken(5),
                Frame::Taken(5),
                Frame::Exit(ExitStatus::Code(0)),
            ]
        );
    }
}

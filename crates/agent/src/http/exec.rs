//! `POST /v1/exec`: a command whose input and output are frames.

use std::sync::Arc;

use banger_proto::agent::ExecRequest;
use banger_proto::frame::{Frame, FrameError};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Request, Response};
use tokio::sync::mpsc;
use tracing::{Instrument, debug, info};

use super::{Answer, Body, Failure};
use crate::agent::Agent;
use crate::exec::{self, Command, Control};

/// Starts the command of the first frame. The answer begins with `started` or is `refused`.
pub(super) async fn exec(agent: &Arc<Agent>, request: Request<Incoming>) -> Answer {
    let mut frames = Frames::new(request.into_body());
    let request = first(&mut frames).await?;
    let Command {
        input,
        control,
        events,
    } = match exec::start(agent, &agent.settings().configure, &request) {
        Ok(command) => command,
        Err(refusal) => {
            info!(command = ?request.command.first(), %refusal, "command refused");
            let frame = Frame::Refused(refusal.to_protocol());
            return Ok(Response::new(Body::full(frame.to_bytes())));
        }
    };
    let input = request.stdin.then_some(input);
    tokio::spawn(take_input(frames, input, control).in_current_span());
    Ok(Response::new(Body::Events(events)))
}

async fn first(frames: &mut Frames) -> Result<Box<ExecRequest>, Failure> {
    match frames.next().await {
        Ok(Some(Frame::Start(request))) => Ok(request),
        Ok(Some(_)) => Err(Failure::bad_request("the first frame must be `start`")),
        Ok(None) => Err(Failure::bad_request(
            "the request ended before its first frame",
        )),
        Err(error) => Err(Failure::bad_request(error.to_string())),
    }
}

/// Carries out the client's frames until its last. The end of the request is the end of the
/// command's input; a client that is gone is noticed by the response's side.
async fn take_input(mut frames: Frames, mut input: Option<mpsc::Sender<Bytes>>, control: Control) {
    loop {
        match frames.next().await {
            Ok(Some(Frame::Stdin(bytes))) if bytes.is_empty() => input = None,
            Ok(Some(Frame::Stdin(bytes))) => {
                if let Some(sender) = &input
                    && sender.send(bytes).await.is_err()
                {
                    input = None;
                }
            }
            Ok(Some(Frame::Resize { columns, rows })) => control.resize(columns, rows),
            Ok(Some(Frame::Signal(signal))) => control.signal(signal),
            Ok(Some(_)) => debug!("a frame that is not the client's was left out"),
            Ok(None) => return,
            Err(error) => return debug!(%error, "the client's frames ended"),
        }
    }
}

/// Frames out of a request body.
struct Frames {
    body: Incoming,
    buffer: BytesMut,
}

/// Why there are no more frames.
#[derive(Debug, thiserror::Error)]
enum FramesError {
    #[error("could not read the request: {0}")]
    Body(hyper::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl Frames {
    fn new(body: Incoming) -> Self {
        Self {
            body,
            buffer: BytesMut::new(),
        }
    }

    /// The next frame; `None` at the end of the request.
    async fn next(&mut self) -> Result<Option<Frame>, FramesError> {
        loop {
            if let Some(frame) = Frame::decode(&mut self.buffer)? {
                return Ok(Some(frame));
            }
            let Some(piece) = self.body.frame().await else {
                return Ok(None);
            };
            if let Ok(data) = piece.map_err(FramesError::Body)?.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}

//! `POST /v1/exec`: a command whose input and output are frames.

use std::sync::Arc;

use banger_proto::agent::ExecRequest;
use banger_proto::frame::{Frame, FrameError};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Request, Response};
use tokio::sync::{Semaphore, mpsc};
use tracing::{Instrument, debug, info};

use super::body::Events;
use super::{Answer, Body, Failure};
use crate::agent::Agent;
use crate::exec::{self, Command, Control};

/// How much input may wait for a command that does not read it.
const INPUT_WINDOW: usize = 512 * 1024;
/// How many frames of input are handed over at once to who keeps them.
const PIECES: usize = 8;
/// How many acknowledgements wait for a client that reads no output.
const TAKEN_QUEUE: usize = 4;

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
    let (taken, from_input) = mpsc::channel(TAKEN_QUEUE);
    let acknowledge = request.stdin && request.acknowledge_input;
    let input = request
        .stdin
        .then(|| Input::new(input, acknowledge.then_some(taken)));
    let window = if acknowledge { INPUT_WINDOW } else { 0 };
    let window = u32::try_from(window).expect("the window is far smaller");
    tokio::spawn(take_frames(frames, input, control).in_current_span());
    let events = Events::new(events, from_input, window);
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
async fn take_frames(mut frames: Frames, mut input: Option<Input>, control: Control) {
    loop {
        match frames.next().await {
            Ok(Some(Frame::Stdin(bytes))) if bytes.is_empty() => input = None,
            Ok(Some(Frame::Stdin(bytes))) => {
                if let Some(input) = &input {
                    input.push(bytes).await;
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

/// A command's input, as much of it as may wait. Dropped, it ends behind what waits.
struct Input {
    waiting: mpsc::Sender<Bytes>,
    /// Bounds what waits. It holds the window, so that it stops nobody who heeds that.
    room: Arc<Semaphore>,
}

impl Input {
    /// What the command has taken is told to `taken`.
    fn new(command: mpsc::Sender<Bytes>, taken: Option<mpsc::Sender<u32>>) -> Self {
        let (waiting, pieces) = mpsc::channel(PIECES);
        let room = Arc::new(Semaphore::new(INPUT_WINDOW));
        tokio::spawn(keep(pieces, room.clone(), command, taken));
        Self { waiting, room }
    }

    /// Takes a piece at once from a client that heeds the window; any other one waits here.
    async fn push(&self, bytes: Bytes) {
        let share = u32::try_from(share(bytes.len())).expect("it is at most the room");
        let permits = self.room.acquire_many(share).await;
        permits.expect("the semaphore is never closed").forget();
        // The other end goes on until this one is dropped.
        let _ = self.waiting.send(bytes).await;
    }
}

/// How much of the room a piece of input takes: one that is larger waits alone.
fn share(length: usize) -> usize {
    length.min(INPUT_WINDOW)
}

/// Keeps input until the command takes it, and tells what it took. Never waits for one of them
/// alone, so that there is always a way in. What waits is one piece however many it came in:
/// its bytes are all that it costs.
async fn keep(
    mut pieces: mpsc::Receiver<Bytes>,
    room: Arc<Semaphore>,
    command: mpsc::Sender<Bytes>,
    taken: Option<mpsc::Sender<u32>>,
) {
    let mut waiting = BytesMut::new();
    // How much of the room that takes.
    let mut shares = 0;
    // How many bytes were taken and not yet told.
    let mut untold = 0;
    let mut ended = false;
    while !(ended && waiting.is_empty()) {
        tokio::select! {
            piece = pieces.recv(), if !ended => match piece {
                Some(bytes) => {
                    shares += share(bytes.len());
                    waiting.extend_from_slice(&bytes);
                }
                None => ended = true,
            },
            place = command.reserve(), if !waiting.is_empty() => {
                let bytes = waiting.split().freeze();
                untold += bytes.len();
                room.add_permits(std::mem::take(&mut shares));
                // A command that has closed its input takes everything, to nowhere.
                if let Ok(place) = place {
                    place.send(bytes);
                }
            }
            () = tell(taken.as_ref(), untold), if untold > 0 => untold = 0,
        }
    }
    // It must not wait for its end until the client has heard.
    drop(command);
    if untold > 0 {
        tell(taken.as_ref(), untold).await;
    }
}

/// Tells the client, if it wants to know, that the command has taken so many bytes.
/// Cancel-safe.
async fn tell(taken: Option<&mpsc::Sender<u32>>, bytes: usize) {
    let Some(taken) = taken else {
        return;
    };
    // Without a reader the command is being hung up.
    if let Ok(place) = taken.reserve().await {
        place.send(u32::try_from(bytes).unwrap_or(u32::MAX));
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

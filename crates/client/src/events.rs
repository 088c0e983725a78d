//! What a daemon tells while it goes on: of one operation, and of everything.

use std::collections::VecDeque;

use banger_proto::api::{Event, Operation, OperationEvent};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

use crate::error::ClientError;
use crate::sse::SseParser;

/// The events of an operation, from its beginning to [`OperationEvent::Done`].
#[derive(Debug)]
pub struct Events(Objects);

impl Events {
    pub(crate) fn new(request: String, body: Incoming) -> Self {
        Self(Objects::new(request, body))
    }

    /// The next event. Do not ask again after [`OperationEvent::Done`]. Cancel-safe.
    ///
    /// # Errors
    /// The daemon went away before the operation's end, or sent something else.
    pub async fn next(&mut self) -> Result<OperationEvent, ClientError> {
        match self.0.next().await? {
            Some(event) => Ok(event),
            None => Err(ClientError::Ended {
                request: self.0.request.clone(),
            }),
        }
    }

    /// Skips to the end and gives the operation as it ended, well or not.
    ///
    /// # Errors
    /// As [`Events::next`].
    pub async fn end(&mut self) -> Result<Operation, ClientError> {
        loop {
            if let OperationEvent::Done(operation) = self.next().await? {
                return Ok(*operation);
            }
        }
    }
}

/// The events of a daemon. Whoever comes back gives the id of the last event that it has seen.
#[derive(Debug)]
pub struct DaemonEvents(Objects);

impl DaemonEvents {
    pub(crate) fn new(request: String, body: Incoming) -> Self {
        Self(Objects::new(request, body))
    }

    /// The next event; `None` when there are no more, which followed events have only when the
    /// daemon ends. Cancel-safe.
    ///
    /// # Errors
    /// The connection broke, as it does when the daemon is killed, or carries something else.
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        self.0.next().await
    }
}

/// A stream of server-sent events whose data is JSON.
#[derive(Debug)]
struct Objects {
    request: String,
    body: Incoming,
    parser: SseParser,
    ready: VecDeque<Vec<u8>>,
}

impl Objects {
    fn new(request: String, body: Incoming) -> Self {
        Self {
            request,
            body,
            parser: SseParser::new(),
            ready: VecDeque::new(),
        }
    }

    async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            if let Some(data) = self.ready.pop_front() {
                let object = serde_json::from_slice(&data);
                return object.map(Some).map_err(|source| ClientError::Shape {
                    request: self.request.clone(),
                    source,
                });
            }
            let bytes = match self.body.frame().await {
                None => return Ok(None),
                Some(Err(source)) => {
                    return Err(ClientError::Transport {
                        request: self.request.clone(),
                        source,
                    });
                }
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            };
            let events = self.parser.push(&bytes);
            self.ready
                .extend(events.map_err(|source| ClientError::Stream {
                    request: self.request.clone(),
                    source,
                })?);
        }
    }
}

//! What an operation tells while it goes on.

use std::collections::VecDeque;

use banger_proto::api::{Operation, OperationEvent};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::error::ClientError;
use crate::sse::SseParser;

/// The events of an operation, from its beginning to [`OperationEvent::Done`].
#[derive(Debug)]
pub struct Events {
    request: String,
    body: Incoming,
    parser: SseParser,
    ready: VecDeque<Vec<u8>>,
}

impl Events {
    pub(crate) fn new(request: String, body: Incoming) -> Self {
        Self {
            request,
            body,
            parser: SseParser::new(),
            ready: VecDeque::new(),
        }
    }

    /// The next event. Do not ask again after [`OperationEvent::Done`]. Cancel-safe.
    ///
    /// # Errors
    /// The daemon went away before the operation's end, or sent something else.
    pub async fn next(&mut self) -> Result<OperationEvent, ClientError> {
        loop {
            if let Some(data) = self.ready.pop_front() {
                return serde_json::from_slice(&data).map_err(|source| ClientError::Shape {
                    request: self.request.clone(),
                    source,
                });
            }
            self.read_more().await?;
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

    async fn read_more(&mut self) -> Result<(), ClientError> {
        let request = || self.request.clone();
        let frame = match self.body.frame().await {
            None => return Err(ClientError::Ended { request: request() }),
            Some(Err(source)) => {
                return Err(ClientError::Transport {
                    request: request(),
                    source,
                });
            }
            Some(Ok(frame)) => frame,
        };
        let Some(bytes) = frame.data_ref() else {
            return Ok(());
        };
        let events = self
            .parser
            .push(bytes)
            .map_err(|source| ClientError::Stream {
                request: request(),
                source,
            })?;
        self.ready.extend(events);
        Ok(())
    }
}

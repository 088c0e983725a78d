//! A VM's log, as it comes.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::error::ClientError;

/// A VM's log, piece by piece.
#[derive(Debug)]
pub struct LogStream {
    request: String,
    body: Incoming,
}

impl LogStream {
    pub(crate) fn new(request: String, body: Incoming) -> Self {
        Self { request, body }
    }

    /// The next piece; `None` at the log's end, which a followed log has when its VM is gone.
    /// Cancel-safe.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|source| ClientError::Transport {
                request: self.request.clone(),
                source,
            })?;
            if let Ok(bytes) = frame.into_data() {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }
}

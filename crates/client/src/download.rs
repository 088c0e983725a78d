//! The body of an answer, as it comes: a log, or a tree of files.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::error::ClientError;

/// A body of unknown length, piece by piece.
#[derive(Debug)]
pub struct Download {
    request: String,
    body: Incoming,
}

impl Download {
    pub(crate) fn new(request: String, body: Incoming) -> Self {
        Self { request, body }
    }

    /// The next piece; `None` at the end, which a followed log has when its VM is gone.
    /// Cancel-safe.
    ///
    /// # Errors
    /// The connection broke, so that what came is not all.
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

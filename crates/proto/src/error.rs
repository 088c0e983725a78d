//! The one shape of an error at the API's edge: kind, message, causes, hint.

use std::error::Error as StdError;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::RequestId;

/// What kind of failure it is; programs decide by this, not by the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request makes no sense, whatever the state. HTTP 400.
    Invalid,
    /// The caller may not do that. HTTP 403.
    Forbidden,
    /// No such object. HTTP 404.
    NotFound,
    /// The object exists already, or its state does not allow it. HTTP 409.
    Conflict,
    /// The host lacks something that the user can provide. HTTP 424.
    Precondition,
    /// It was called off. HTTP 499.
    Cancelled,
    /// Something else failed. HTTP 500.
    Failed,
    /// The guest or another server gave no answer, or a wrong one. HTTP 502.
    Unavailable,
    /// It took longer than its limit. HTTP 504.
    Timeout,
}

impl ErrorKind {
    /// The HTTP status of an answer with this error.
    pub fn http_status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Precondition => 424,
            Self::Cancelled => 499,
            Self::Failed => 500,
            Self::Unavailable => 502,
            Self::Timeout => 504,
        }
    }
}

/// The error body of the API, and what the CLI prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// What kind of failure it is.
    pub kind: ErrorKind,
    /// What was asked and did not happen.
    pub message: String,
    /// Why, from the nearest cause to the deepest; each said once.
    #[serde(default)]
    pub causes: Vec<String>,
    /// What the user can do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The request's id in the logs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
}

impl ApiError {
    /// An error without causes.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            causes: Vec::new(),
            hint: None,
            request_id: None,
        }
    }

    /// Adds what the user can do.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds `error` and everything below it as causes.
    #[must_use]
    pub fn caused_by(mut self, error: &(dyn StdError + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            let text = error.to_string();
            if self.causes.last() != Some(&text) {
                self.causes.push(text);
            }
            next = error.source();
        }
        self
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for cause in &self.causes {
            write!(f, ": {cause}")?;
        }
        Ok(())
    }
}

impl StdError for ApiError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_said_once_from_near_to_deep() {
        #[derive(Debug, thiserror::Error)]
        #[error("could not open the tap device")]
        struct Tap(#[source] std::io::Error);
        let error = ApiError::new(ErrorKind::Failed, "could not start VM `a`")
            .caused_by(&Tap(std::io::Error::other("no")));
        assert_eq!(
            error.to_string(),
            "could not start VM `a`: could not open the tap device: no"
        );
    }
}

//! Why a guest is not reached, or does not do what it is asked.

use std::error::Error;
use std::io;

use banger_engine::Exit;
use banger_proto::error::ErrorKind;

/// Why there is no link to a guest.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// There is no byte stream to the guest.
    #[error("could not open the link to the guest")]
    Open(#[source] io::Error),
    /// The byte stream broke off.
    #[error("the link to the guest broke before the agent answered")]
    Broken(#[source] io::Error),
    /// The machine is gone.
    #[error("the machine ended before its agent answered: {}", exit.cause)]
    Ended {
        /// How it ended.
        exit: Box<Exit>,
        /// The last lines of the guest's console.
        console: Vec<String>,
    },
    /// The machine runs, but nothing in it answers.
    #[error("the agent gave no answer within {seconds} s")]
    Silent {
        /// The limit.
        seconds: u64,
        /// The last lines of the guest's console.
        console: Vec<String>,
    },
    /// The agent does not speak HTTP/2.
    #[error("could not begin HTTP/2 with the agent")]
    Protocol(#[source] hyper::Error),
}

impl ConnectError {
    /// The last lines of the guest's console, where they may tell more.
    pub fn console(&self) -> &[String] {
        match self {
            Self::Ended { console, .. } | Self::Silent { console, .. } => console,
            Self::Open(_) | Self::Broken(_) | Self::Protocol(_) => &[],
        }
    }
}

/// Why a request to a guest failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The link is broken, or broke while the answer was awaited.
    #[error("the link to the guest broke")]
    Broken(#[source] hyper::Error),
    /// The agent says no.
    #[error("the agent refused: {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The agent's words.
        message: String,
    },
    /// The agent's answer is not of the protocol.
    #[error("the agent gave a malformed answer")]
    Malformed(#[source] Box<dyn Error + Send + Sync>),
    /// The agent takes too long.
    #[error("the agent gave no answer within {seconds} s")]
    Timeout {
        /// The limit.
        seconds: u64,
    },
}

impl RequestError {
    /// What kind of failure it is, for the API.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Broken(_) | Self::Malformed(_) => ErrorKind::Unavailable,
            Self::Timeout { .. } => ErrorKind::Timeout,
            Self::Refused { status, .. } => match status {
                400 => ErrorKind::Invalid,
                403 => ErrorKind::Forbidden,
                404 => ErrorKind::NotFound,
                409 => ErrorKind::Conflict,
                507 => ErrorKind::Precondition,
                _ => ErrorKind::Failed,
            },
        }
    }
}

impl From<RequestError> for io::Error {
    fn from(error: RequestError) -> Self {
        let kind = match &error {
            RequestError::Broken(_) => io::ErrorKind::ConnectionReset,
            RequestError::Refused { .. } => io::ErrorKind::ConnectionRefused,
            RequestError::Malformed(_) => io::ErrorKind::InvalidData,
            RequestError::Timeout { .. } => io::ErrorKind::TimedOut,
        };
        Self::new(kind, error)
    }
}

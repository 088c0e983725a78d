//! How a command ends that did not do what it was asked.

use std::error::Error as StdError;
use std::io;

use banger_client::ClientError;
use banger_client::launch::LaunchError;
use banger_proto::error::{ApiError, ErrorKind};

/// The exit status of a command that did what it was asked, or why it did not.
pub(crate) type Outcome = Result<u8, Failure>;

/// The exit status of a program that SIGPIPE ended: 128 + 13.
pub(crate) const BROKEN_PIPE: u8 = 141;

/// Why a command did not do what it was asked, and the exit status for it.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What to print; `None` if everything has been said, or nobody is there to read it.
    pub(crate) error: Option<Box<ApiError>>,
    /// The exit status; `None` for the command's usual one.
    pub(crate) status: Option<u8>,
}

impl Failure {
    /// Says nothing (more) and exits with `status`.
    pub(crate) fn silent(status: u8) -> Self {
        Self {
            error: None,
            status: Some(status),
        }
    }

    /// Prints `error` and exits with `status`.
    pub(crate) fn with_status(error: ApiError, status: u8) -> Self {
        Self {
            error: Some(Box::new(error)),
            status: Some(status),
        }
    }

    /// What the system refused to do.
    pub(crate) fn system(message: impl Into<String>, cause: &(dyn StdError + 'static)) -> Self {
        ApiError::new(ErrorKind::Failed, message)
            .caused_by(cause)
            .into()
    }

    /// Standard output took no more: quiet if its reader has gone.
    pub(crate) fn output(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::silent(BROKEN_PIPE),
            _ => Self::system("could not write to standard output", error),
        }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self {
            error: Some(Box::new(error)),
            status: None,
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        ApiError::from(error).into()
    }
}

impl From<LaunchError> for Failure {
    fn from(error: LaunchError) -> Self {
        ApiError::from(error).into()
    }
}

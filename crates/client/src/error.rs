//! Why a request to the daemon has no answer.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use banger_proto::error::{ApiError, ErrorKind};

/// Why a request to the daemon has no answer, or not the wanted one.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the socket, or it is not ours to open.
    #[error("could not connect to the daemon at `{}`", .socket.display())]
    Connect {
        /// The socket's path.
        socket: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The socket is served by somebody else.
    #[error("the socket `{}` is served by user {uid}, not by you", .socket.display())]
    Stranger {
        /// The socket's path.
        socket: PathBuf,
        /// Whose process listens there.
        uid: u32,
    },
    /// The daemon answered with an error.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The daemon speaks another version of the API.
    #[error("bangerd {daemon} speaks version {api} of the API, and this client version {ours}")]
    OtherApi {
        /// The daemon's version.
        daemon: String,
        /// The version of its API.
        api: u32,
        /// The version of the API that this client speaks.
        ours: u32,
    },
    /// The connection broke, or what came over it was no HTTP.
    #[error("the connection to the daemon broke in `{request}`")]
    Transport {
        /// Method and path.
        request: String,
        /// What hyper said.
        #[source]
        source: hyper::Error,
    },
    /// No answer within the limit.
    #[error("the daemon gave no answer to `{request}` within {} s", .limit.as_secs_f32())]
    Timeout {
        /// Method and path, or what was waited for.
        request: String,
        /// How long it had.
        limit: Duration,
    },
    /// The answer has a body of the wrong shape.
    #[error("the daemon's answer to `{request}` has an unexpected shape")]
    Shape {
        /// Method and path.
        request: String,
        /// What the JSON reader said.
        #[source]
        source: serde_json::Error,
    },
    /// The answer is not what the request is for, such as 200 to an upgrade.
    #[error("the daemon answered `{request}` with HTTP {status}")]
    Status {
        /// Method and path.
        request: String,
        /// The HTTP status.
        status: u16,
    },
    /// A stream ended before its last message: the daemon stopped or died.
    #[error("the daemon closed the stream of `{request}` before its end")]
    Ended {
        /// Method and path.
        request: String,
    },
    /// A stream carries something that is not its format.
    #[error("the daemon's stream of `{request}` is malformed")]
    Stream {
        /// Method and path.
        request: String,
        /// What is wrong with it.
        #[source]
        source: crate::sse::SseError,
    },
}

impl ClientError {
    /// Whether nobody listens on the socket, so that a daemon may be started.
    pub fn nobody_listens(&self) -> bool {
        match self {
            Self::Connect { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ),
            _ => false,
        }
    }

    /// Whether the daemon ended while it was asked, as it does when it is stopped or killed.
    pub fn daemon_went_away(&self) -> bool {
        match self {
            Self::Transport { source, .. } => {
                let reset = std::error::Error::source(source)
                    .and_then(|source| source.downcast_ref::<io::Error>())
                    .is_some_and(|error| {
                        matches!(
                            error.kind(),
                            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
                        )
                    });
                reset || source.is_incomplete_message() || source.is_canceled()
            }
            _ => false,
        }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Api(error) => error.kind,
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                ErrorKind::Forbidden
            }
            Self::Stranger { .. } => ErrorKind::Forbidden,
            Self::OtherApi { .. } => ErrorKind::Precondition,
            Self::Timeout { .. } => ErrorKind::Timeout,
            Self::Connect { .. }
            | Self::Transport { .. }
            | Self::Shape { .. }
            | Self::Status { .. }
            | Self::Ended { .. }
            | Self::Stream { .. } => ErrorKind::Unavailable,
        }
    }

    fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Api(_) => None,
            Self::Stranger { .. } => {
                Some("set XDG_RUNTIME_DIR or BANGER_HOME to a directory of your own")
            }
            Self::OtherApi { .. } | Self::Shape { .. } | Self::Status { .. } => {
                Some("run `banger daemon restart`, so that both are of the same version")
            }
            Self::Connect { .. } if self.nobody_listens() => Some("run `banger daemon start`"),
            Self::Connect { .. } => None,
            Self::Timeout { .. }
            | Self::Transport { .. }
            | Self::Ended { .. }
            | Self::Stream { .. } => Some("run `banger daemon status` and `banger daemon logs`"),
        }
    }
}

impl From<ClientError> for ApiError {
    fn from(error: ClientError) -> Self {
        let error = match error {
            ClientError::Api(error) => return error,
            error => error,
        };
        let mut api = Self::new(error.kind(), error.to_string());
        if let Some(source) = std::error::Error::source(&error) {
            api = api.caused_by(source);
        }
        match error.hint() {
            Some(hint) => api.with_hint(hint),
            None => api,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_error_passes_unchanged() {
        let error = ApiError::new(ErrorKind::NotFound, "no VM `a`").with_hint("look again");
        assert_eq!(ApiError::from(ClientError::Api(error.clone())), error);
    }

    #[test]
    fn a_missing_socket_says_why_and_what_to_do() {
        let error = ClientError::Connect {
            socket: "/run/x.sock".into(),
            source: io::Error::from_raw_os_error(2),
        };
        assert!(error.nobody_listens());
        let api = ApiError::from(error);
        assert_eq!(
            api.message,
            "could not connect to the daemon at `/run/x.sock`"
        );
        assert_eq!(api.causes, ["No such file or directory (os error 2)"]);
        assert_eq!(api.hint.as_deref(), Some("run `banger daemon start`"));
    }
}

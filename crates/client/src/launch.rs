//! Starts the daemon where none runs.
//!
//! ```text
//! connect ──answers──────────────────────────────────────▶ Client
//!  ▲  │ nobody listens
//!  │  ▼
//!  │ bangerd, detached ──{"ready":true}──▶ connect ──────▶ Client
//!  │  │        └─────────{"error": ...}──────────────────▶ that error
//!  └──┘ {"error": already running}: another one is on its way, in or out
//! ```
//!
//! `bangerd` writes one JSON line to its standard output when it serves the socket or has
//! failed to. What detached means is said at [`banger_process::detach`].

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use banger_proto::error::{ApiError, ErrorKind};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout_at};

use crate::client::Client;
use crate::error::ClientError;

/// How long a daemon may take until it serves its socket: it first adopts the VMs that run.
pub const READY_LIMIT: Duration = Duration::from_secs(30);
/// How long a daemon may take to end once it takes connections and does not answer them.
const ENDING_LIMIT: Duration = Duration::from_secs(2);
/// How long another daemon may take to serve its socket before we see whether it still runs,
/// by starting one again.
const ANOTHER_LIMIT: Duration = Duration::from_secs(3);
/// Longest first line of the daemon.
const LINE_MAX: u64 = 64 << 10;

/// Why there is no daemon.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The program could not be started.
    #[error("could not start the daemon `{}`", .program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It started, and said why it cannot go on.
    #[error(transparent)]
    Refused(ApiError),
    /// It ended, or said something else, before it served its socket.
    #[error("the daemon `{}` ended without a word", .program.display())]
    Mute {
        /// The program.
        program: PathBuf,
    },
    /// It did not serve its socket in time.
    #[error("the daemon `{}` did not get ready within {} s", .program.display(), .limit.as_secs())]
    Timeout {
        /// The program.
        program: PathBuf,
        /// How long it had.
        limit: Duration,
    },
    /// A daemon runs and does not answer as it should.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl From<LaunchError> for ApiError {
    fn from(error: LaunchError) -> Self {
        let (kind, hint) = match error {
            LaunchError::Refused(error) => return error,
            LaunchError::Client(error) => return error.into(),
            LaunchError::Spawn { .. } => (
                ErrorKind::Precondition,
                "install `bangerd` beside `banger`, or name it in BANGER_DAEMON_BIN",
            ),
            LaunchError::Mute { .. } => (ErrorKind::Failed, "run `banger daemon logs`"),
            LaunchError::Timeout { .. } => (ErrorKind::Timeout, "run `banger daemon logs`"),
        };
        let mut api = Self::new(kind, error.to_string());
        if let Some(source) = std::error::Error::source(&error) {
            api = api.caused_by(source);
        }
        api.with_hint(hint)
    }
}

/// Connects to the daemon on `socket`, and starts `program` first if nobody listens there.
/// A `program` without a slash is looked for in `PATH`.
///
/// # Errors
/// No daemon serves the socket within [`READY_LIMIT`], with the daemon's own reason where it
/// gave one.
pub async fn connect_or_start(socket: &Path, program: &Path) -> Result<Client, LaunchError> {
    match connect(socket).await {
        Err(error) if error.nobody_listens() => {}
        result => return Ok(result?),
    }
    let deadline = Instant::now() + READY_LIMIT;
    loop {
        let started = timeout_at(deadline, start(program)).await;
        match started.unwrap_or_else(|_| Err(timed_out(program)))? {
            Started::Ready => return Ok(connect(socket).await?),
            Started::AnotherOne => {}
        }
        match connect_soon(socket).await {
            Err(error) if error.nobody_listens() && Instant::now() < deadline => {}
            Err(error) if error.nobody_listens() => return Err(timed_out(program)),
            result => return Ok(result?),
        }
    }
}

fn timed_out(program: &Path) -> LaunchError {
    LaunchError::Timeout {
        program: program.to_owned(),
        limit: READY_LIMIT,
    }
}

/// Connects to the daemon on `socket` if there is one, of whatever API; see
/// [`Client::connect_to_any`].
///
/// # Errors
/// There is one and it does not answer as it should.
pub async fn connect_if_running(socket: &Path) -> Result<Option<Client>, ClientError> {
    let connect = || Client::connect_to_any(socket);
    match retry(connect, ENDING_LIMIT, ClientError::daemon_went_away).await {
        Err(error) if error.nobody_listens() => Ok(None),
        result => result.map(Some),
    }
}

/// Which daemon serves, or will serve, the socket.
#[derive(Debug, PartialEq, Eq)]
enum Started {
    /// The one that was started, and it does.
    Ready,
    /// One that another client started at the same time and that maybe serves it soon, or one
    /// that is just ending.
    AnotherOne,
}

/// The daemon's first line; it may have further fields.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct FirstLine {
    ready: bool,
    error: Option<ApiError>,
}

async fn start(program: &Path) -> Result<Started, LaunchError> {
    let mut command = banger_process::command(program);
    banger_process::detach(&mut command)
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = Command::from(command)
        .spawn()
        .map_err(|source| LaunchError::Spawn {
            program: program.to_owned(),
            source,
        })?;
    let stdout = child.stdout.take().expect("standard output is piped");
    let mut line = Vec::new();
    // A failed read is as good as no line.
    let _ = BufReader::new(stdout)
        .take(LINE_MAX)
        .read_until(b'\n', &mut line)
        .await;
    let line: FirstLine = serde_json::from_slice(&line).unwrap_or_default();
    match line.error {
        Some(error) if is_already_running(&error) => Ok(Started::AnotherOne),
        Some(error) => Err(LaunchError::Refused(error)),
        None if line.ready => Ok(Started::Ready),
        None => Err(LaunchError::Mute {
            program: program.to_owned(),
        }),
    }
}

fn is_already_running(error: &ApiError) -> bool {
    error.kind == ErrorKind::Conflict && error.to_string().contains("already running")
}

/// Connects. A daemon that is ending may still accept and then say nothing: then there is
/// none, which the next attempt finds.
async fn connect(socket: &Path) -> Result<Client, ClientError> {
    let connect = || Client::connect(socket);
    retry(connect, ENDING_LIMIT, ClientError::daemon_went_away).await
}

/// Waits a little for a daemon that somebody else started. There is no event to await: the
/// socket's file appears before it is listened on, and a stale one may be there all along.
async fn connect_soon(socket: &Path) -> Result<Client, ClientError> {
    let not_yet = |error: &ClientError| error.nobody_listens() || error.daemon_went_away();
    retry(|| Client::connect(socket), ANOTHER_LIMIT, not_yet).await
}

async fn retry(
    connect: impl AsyncFn() -> Result<Client, ClientError>,
    limit: Duration,
    is_worth_it: impl Fn(&ClientError) -> bool,
) -> Result<Client, ClientError> {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(5);
    loop {
        match connect().await {
            Err(error) if is_worth_it(&error) && Instant::now() < deadline => {
                sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(200));
            }
            result => return result,
        }
    }
}

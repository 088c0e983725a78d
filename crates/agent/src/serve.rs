//! The agent as an ordinary process on a Unix socket, as the engine without a VM runs it.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::process::umask;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::agent::{Agent, Place};
use crate::link::{self, Current, End, Wire};
use crate::report::BootReport;

/// How long commands have to end after a hang-up before they are killed.
const COMMANDS_GRACE: Duration = Duration::from_secs(2);

/// Why the agent could not serve a socket.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another agent listens there.
    #[error("`{0}` is in use by another agent")]
    InUse(PathBuf),
    /// The socket cannot be made.
    #[error("could not listen on `{path}`")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Signals or the socket cannot be watched.
    #[error("could not wait for events")]
    Events(#[source] io::Error),
}

/// Serves until `SIGTERM`, `SIGINT` or a shutdown request, then ends all commands and
/// removes the socket.
///
/// # Errors
/// The socket cannot be served.
pub async fn serve_unix(path: &Path) -> Result<(), ServeError> {
    // Who finds the socket may send these at once.
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Events)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Events)?;
    let listener = bind(path)?;
    let socket = Socket(path);
    let agent = Arc::new(Agent::new(
        Place::Process,
        BootReport {
            init: "banger".to_owned(),
            ..BootReport::default()
        },
    ));
    let accept = accept(&listener, &agent);
    info!(path = %path.display(), "listening");
    let result = tokio::select! {
        error = accept => Err(ServeError::Events(error)),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        () = agent.stopped() => Ok(()),
    };
    drop(socket);
    agent.end_commands(COMMANDS_GRACE).await;
    info!("stopped");
    result
}

/// Removes its file at the end.
struct Socket<'a>(&'a Path);

impl Drop for Socket<'_> {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(self.0) {
            warn!(%error, "could not remove the socket");
        }
    }
}

/// The socket is private from its birth; one that nobody listens on any more is replaced.
fn bind(path: &Path) -> Result<tokio::net::UnixListener, ServeError> {
    let listen = |source| ServeError::Listen {
        path: path.to_owned(),
        source,
    };
    let before = umask(Mode::from_raw_mode(0o177));
    let mut listener = UnixListener::bind(path);
    if let Err(error) = &listener
        && error.kind() == io::ErrorKind::AddrInUse
    {
        match std::os::unix::net::UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                listener = fs::remove_file(path).and_then(|()| UnixListener::bind(path));
            }
            _ => return Err(ServeError::InUse(path.to_owned())),
        }
    }
    umask(before);
    let listener = listener.map_err(listen)?;
    listener.set_nonblocking(true).map_err(listen)?;
    tokio::net::UnixListener::from_std(listener).map_err(listen)
}

async fn accept(listener: &tokio::net::UnixListener, agent: &Arc<Agent>) -> io::Error {
    let current = Arc::new(Current::default());
    loop {
        let wire = match listener.accept().await {
            Ok((stream, _)) => stream
                .into_std()
                .and_then(|stream| Wire::new(OwnedFd::from(stream), End::Final)),
            Err(error) => return error,
        };
        match wire {
            Ok(wire) => {
                tokio::spawn(link::serve(wire, agent.clone(), Some(current.clone())));
            }
            Err(error) => warn!(%error, "could not take a connection"),
        }
    }
}

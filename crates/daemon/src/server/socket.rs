//! The lock that makes a daemon the only one of its directories, and its socket.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use banger_config::Paths;
use rustix::fs::FlockOperation;
use tokio::net::UnixListener;

use crate::files::{self, FileError};

/// How long the fork of a daemon that was killed may take to become another program.
const FORK_LIMIT: Duration = Duration::from_secs(1);

/// Why there is no socket to serve.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another daemon holds the lock.
    #[error("a daemon is already running for `{}`", .state.display())]
    AlreadyRunning {
        /// The state directory that it owns.
        state: PathBuf,
    },
    /// A file or directory cannot be made.
    #[error(transparent)]
    File(#[from] FileError),
    /// The socket cannot be made.
    #[error("could not listen on `{}`", .path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Held while the daemon runs. The kernel lets go of it when the daemon dies.
#[derive(Debug)]
pub struct Lock {
    _runtime: File,
    _state: File,
}

/// Becomes the only daemon of these directories. Both the runtime directory, which holds the
/// socket, and the state directory are locked: two environments may share only one of them.
///
/// # Errors
/// Another daemon runs, or the locks cannot be made.
pub fn claim(paths: &Paths) -> Result<Lock, SocketError> {
    files::make_private_directory(&paths.runtime)?;
    files::make_private_directory(&paths.state)?;
    let held = |path: &Path| match lock(path)? {
        Some(file) => Ok(file),
        None => Err(SocketError::AlreadyRunning {
            state: paths.state.clone(),
        }),
    };
    Ok(Lock {
        _runtime: held(&paths.lock())?,
        _state: held(&paths.state.join("bangerd.lock"))?,
    })
}

/// `None` if a daemon holds it.
///
/// One that was killed while it started a process is survived by its fork, which holds the lock
/// until it becomes the other program. It is waited for: from then on that process has its mark,
/// and is found. It has the daemon's socket as well, so that a connection tells nothing of who
/// holds the lock.
fn lock(path: &Path) -> Result<Option<File>, FileError> {
    let file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(FileError::new("open", path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => wait_for(file).map_err(FileError::new("lock", path)),
        Err(error) => Err(FileError::new("lock", path)(error.into())),
    }
}

/// `None` if it is held for longer than a fork takes.
fn wait_for(file: File) -> io::Result<Option<File>> {
    let (tell, locked) = mpsc::channel();
    // It outlives a wait that was given up, as long as the process does: that one ends then.
    thread::Builder::new()
        .name("lock".to_owned())
        .spawn(move || {
            let result = rustix::fs::flock(&file, FlockOperation::LockExclusive);
            let _ = tell.send(result.map(|()| file));
        })?;
    match locked.recv_timeout(FORK_LIMIT) {
        Ok(result) => Ok(Some(result?)),
        Err(_) => Ok(None),
    }
}

/// Listens on `path`, in place of a socket that a dead daemon left there. The caller holds
/// the lock, so nobody serves that one any more.
///
/// # Errors
/// The socket cannot be made.
pub fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    let failed = |source| SocketError::Bind {
        path: path.to_owned(),
        source,
    };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    // Its directory is private already; the mode is for those who look at the socket alone.
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// Takes the socket away at the daemon's end.
pub fn remove(path: &Path) {
    if let Err(error) = files::remove_file(path) {
        tracing::warn!(%error, "could not remove the socket");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(home: &Path) -> Paths {
        Paths {
            config: home.join("config"),
            state: home.join("state"),
            cache: home.join("cache"),
            runtime: home.join("run"),
        }
    }

    #[test]
    fn there_is_one_daemon_for_a_state_directory() {
        let home = tempfile::tempdir().unwrap();
        let paths = paths(home.path());
        let lock = claim(&paths).unwrap();
        let elsewhere = Paths {
            runtime: home.path().join("other"),
            ..paths.clone()
        };
        for paths in [&paths, &elsewhere] {
            let error = claim(paths).unwrap_err();
            assert!(
                matches!(error, SocketError::AlreadyRunning { .. }),
                "{error}"
            );
            assert!(error.to_string().contains("already running"));
        }
        drop(lock);
        claim(&paths).unwrap();
    }

    #[test]
    fn the_fork_of_a_killed_daemon_is_waited_for() {
        let home = tempfile::tempdir().unwrap();
        let paths = paths(home.path());
        let lock = claim(&paths).unwrap();
        // The fork has the socket, too.
        let _socket = std::os::unix::net::UnixListener::bind(paths.socket()).unwrap();
        let (begun, beginning) = mpsc::channel();
        let next = thread::spawn({
            let paths = paths.clone();
            move || {
                begun.send(()).unwrap();
                claim(&paths).map(drop)
            }
        });
        beginning.recv().unwrap();
        drop(lock);
        next.join().unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_by_a_private_one() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("bangerd.sock");
        drop(bind(&path).unwrap());
        assert!(path.exists());
        let _listener = bind(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        tokio::net::UnixStream::connect(&path).await.unwrap();
    }
}

//! Sockets between the daemon and a machine: private from birth, and found by their path.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::Mode;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixStream;

use crate::AgentStream;

/// Longest path of a socket: `sockaddr_un` has 108 bytes, one of them for the end (unix(7)).
const PATH_MAX: usize = 107;
/// How long somebody may take to let in those who wait to be connected already.
const ROOM_LIMIT: Duration = Duration::from_secs(5);

/// A listening socket at `path` that only this user may connect to.
///
/// # Errors
/// The path is too long or taken, or its directory is not to be written.
pub(crate) fn listen(path: &Path) -> io::Result<OwnedFd> {
    let length = path.as_os_str().as_bytes().len();
    if length > PATH_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("the path has {length} bytes, and a socket's may have {PATH_MAX} at most"),
        ));
    }
    let socket = stream_socket()?;
    // Linux gives the file the mode of the socket, less the umask, when it is bound; so
    // there is no moment at which others may connect.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, 16)?;
    Ok(socket)
}

fn stream_socket() -> rustix::io::Result<OwnedFd> {
    rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
}

/// Connects to a socket. Engines let few wait for them, QEMU one, and may be busy: where there is
/// no room, this waits for it too.
///
/// # Errors
/// Nobody listens there, or there is no room for 5 s.
pub(crate) async fn connect(path: &Path) -> io::Result<UnixStream> {
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        connected => return connected,
    }
    let path = path.to_owned();
    let connected = tokio::task::spawn_blocking(move || connect_in_turn(&path));
    let stream = connected.await.map_err(io::Error::other)??;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// The kernel tells nobody of room but those who wait for it, for as long as they send at most
/// (socket(7), SO_SNDTIMEO).
fn connect_in_turn(path: &Path) -> io::Result<std::os::unix::net::UnixStream> {
    let socket = stream_socket()?;
    set_socket_timeout(&socket, Timeout::Send, Some(ROOM_LIMIT))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?).map_err(|error| match error {
        rustix::io::Errno::AGAIN => io::Error::new(
            io::ErrorKind::TimedOut,
            "it has not answered those who came before",
        ),
        error => error.into(),
    })?;
    set_socket_timeout(&socket, Timeout::Send, None)?;
    Ok(socket.into())
}

/// A socket that one process listens on, by its path. Whoever may write to the socket's directory,
/// such as that process after its guest has taken it over, could put another's socket or a link
/// to it there, and this process may have rights that they lack.
#[derive(Clone, Debug)]
pub(crate) struct SocketOf {
    path: PathBuf,
    pid: u32,
}

impl SocketOf {
    /// The socket at `path` of the process `pid`.
    pub(crate) fn new(path: PathBuf, pid: u32) -> Self {
        Self { path, pid }
    }

    /// Connects to it. Whoever else listens there is told nothing.
    ///
    /// # Errors
    /// Nobody listens, or somebody else.
    pub(crate) async fn connect(&self) -> io::Result<UnixStream> {
        let stream = connect(&self.path).await?;
        // Of whoever began to listen: unix(7), SO_PEERCRED.
        let listener = stream.peer_cred()?.pid();
        match listener.and_then(|pid| u32::try_from(pid).ok()) {
            Some(pid) if pid == self.pid => Ok(stream),
            other => Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!(
                    "`{}` is a socket of process {}, not of the engine's {}",
                    self.path.display(),
                    other.unwrap_or_default(),
                    self.pid
                ),
            )),
        }
    }
}

/// Removes a socket; succeeds when there is none.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl AgentStream for UnixStream {
    fn all_taken(&self) -> io::Result<bool> {
        let mut queued: libc::c_int = 0;
        // SAFETY: SIOCOUTQ, which is TIOCOUTQ (unix(7)), writes one int through the pointer.
        let result = unsafe {
            libc::ioctl(
                std::os::fd::AsRawFd::as_raw_fd(self),
                libc::TIOCOUTQ,
                &raw mut queued,
            )
        };
        match result {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(queued == 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn whoever_comes_when_there_is_no_room_waits_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = std::os::unix::net::UnixListener::from(listen(&path).unwrap());
        // As QEMU does.
        rustix::net::listen(&listener, 1).unwrap();
        let mut waiting = Vec::new();
        let full = loop {
            match UnixStream::connect(&path).await {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        let late = tokio::spawn(async move { connect(&path).await });
        tokio::task::yield_now().await;
        let mut let_in = Vec::new();
        for _ in 0..=waiting.len() {
            listener.set_nonblocking(false).unwrap();
            let listener = listener.try_clone().unwrap();
            let accepted = tokio::task::spawn_blocking(move || listener.accept());
            let_in.push(accepted.await.unwrap().unwrap());
        }
        late.await.unwrap().unwrap();
    }
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_socket_is_private_from_birth_and_knows_what_was_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = std::os::unix::net::UnixListener::from(listen(&path).unwrap());
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let mut near = UnixStream::connect(&path).await.unwrap();
        assert!(near.all_taken().unwrap());
        near.write_all(b"hello").await.unwrap();
        assert!(!near.all_taken().unwrap());
        let (far, _) = listener.accept().unwrap();
        far.set_nonblocking(true).unwrap();
        let mut far = UnixStream::from_std(far).unwrap();
        far.read_exact(&mut [0; 5]).await.unwrap();
        assert!(near.all_taken().unwrap());

        remove(&path).unwrap();
        remove(&path).unwrap();
    }

    #[tokio::test]
    async fn whoever_else_listens_is_told_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let own = SocketOf::new(path.clone(), std::process::id());
        own.connect().await.unwrap();
        listener.accept().await.unwrap();
        // A link to another's socket.
        let planted = directory.path().join("planted");
        std::os::unix::fs::symlink(&path, &planted).unwrap();
        let engine = SocketOf::new(planted, std::process::id() + 1);
        let refused = engine.connect().await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        let (mut told, _) = listener.accept().await.unwrap();
        assert_eq!(told.read(&mut [0]).await.unwrap(), 0);
    }

    #[test]
    fn a_path_that_no_socket_can_have_says_so() {
        let error = listen(Path::new(&format!("/tmp/{}", "x".repeat(120)))).unwrap_err();
        insta::assert_snapshot!(error, @"the path has 125 bytes, and a socket's may have 107 at most");
    }
}

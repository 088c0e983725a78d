//! Sockets between the daemon and a machine: private from birth, and found by their path.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::Uid;
use tokio::net::UnixStream;

use crate::AgentStream;

/// Longest path of a socket: `sockaddr_un` has 108 bytes, one of them for the end (unix(7)).
const PATH_MAX: usize = 107;

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
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // Linux gives the file the mode of the socket, less the umask, when it is bound; so
    // there is no moment at which others may connect.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, 16)?;
    Ok(socket)
}

/// Gives a socket to a user, who then may connect to it. A link in its place is not followed.
///
/// # Errors
/// Only root gives something away.
pub(crate) fn give(path: &Path, to: Uid) -> io::Result<()> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    Ok(rustix::fs::chownat(CWD, path, Some(to), None, flags)?)
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

    #[test]
    fn a_path_that_no_socket_can_have_says_so() {
        let error = listen(Path::new(&format!("/tmp/{}", "x".repeat(120)))).unwrap_err();
        insta::assert_snapshot!(error, @"the path has 125 bytes, and a socket's may have 107 at most");
    }
}

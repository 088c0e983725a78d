//! The byte stream to the guest agent over Firecracker's vsock.
//!
//! ```text
//! host -> guest  connect to `link`, say CONNECT <port>, hear OK <port>      (docs/vsock.md)
//! guest -> host  the guest connects to port P of the host: Firecracker connects to `link_P`
//! ```
//!
//! A port on which nobody listens hangs up. So that nobody has to try again and again, the
//! agent knocks once it listens: it connects to the host and says nothing. Whoever finds no
//! agent waits for the knock.

use std::io;
use std::path::Path;
use std::time::Duration;

use banger_proto::agent::VSOCK_PORT;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, watch};
use tokio::task::AbortHandle;

use super::directory::{self, Owner};
use crate::socket::{self, SocketOf};

/// Longest line that Firecracker answers with.
const ANSWER_MAX: usize = 32;

/// How long the kernel of a guest that runs may take to say whether its agent listens. It does so
/// by itself, whatever runs in the guest.
const LIFE_LIMIT: Duration = Duration::from_millis(500);

/// How long nobody opens the door after it could not be opened, as for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Where the agent knocks.
#[derive(Debug)]
pub(super) struct Door {
    /// Changes with a knock. Whoever waits holds it alone.
    knocked: Mutex<watch::Receiver<()>>,
    doorman: AbortHandle,
}

impl Door {
    /// Listens at `path`, in place of whoever did so before.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub(super) fn open(path: &Path, owner: &Owner) -> io::Result<Self> {
        socket::remove(path)?;
        let listener = socket::listen(path)?;
        directory::share(path, owner)?;
        let listener = std::os::unix::net::UnixListener::from(listener);
        listener.set_nonblocking(true)?;
        let (tell, knocked) = watch::channel(());
        let doorman = answer_knocks(UnixListener::from_std(listener)?, tell);
        Ok(Self {
            knocked: Mutex::new(knocked),
            doorman: tokio::spawn(doorman).abort_handle(),
        })
    }

    /// Returns a stream to the agent, once there is an agent. Cancel-safe: a knock that was
    /// taken in vain is followed by another look.
    ///
    /// # Errors
    /// Firecracker is gone.
    pub(super) async fn reach_agent(&self, link: &SocketOf) -> io::Result<UnixStream> {
        let mut knocked = self.knocked.lock().await;
        loop {
            if let Some(stream) = dial(link).await? {
                return Ok(stream);
            }
            knocked.changed().await.map_err(io::Error::other)?;
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.doorman.abort();
    }
}

/// Opens to everybody at once, whether anybody waits or not: anybody in the guest may knock, and
/// Firecracker's thread stands still, its guest with it, while more knock than can queue.
async fn answer_knocks(listener: UnixListener, tell: watch::Sender<()>) {
    loop {
        match listener.accept().await {
            Ok(_) => {
                tell.send_replace(());
            }
            Err(error) => {
                tracing::debug!(%error, "could not hear the agent's knock");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Whether the guest has stopped for good or is held: one that runs answers.
pub(super) async fn is_silent(link: &SocketOf) -> bool {
    let mut stream = match link.connect().await {
        Ok(stream) => stream,
        Err(_) => return true,
    };
    let asked = async {
        let request = format!("CONNECT {VSOCK_PORT}\n");
        stream.write_all(request.as_bytes()).await?;
        // The agent's answer, or the end of the stream: Firecracker gives up later than this.
        stream.read(&mut [0]).await
    };
    tokio::time::timeout(LIFE_LIMIT, asked).await.is_err()
}

/// Connects to the agent's port. `None`: nobody listens there.
async fn dial(link: &SocketOf) -> io::Result<Option<UnixStream>> {
    let mut stream = link.connect().await?;
    let request = format!("CONNECT {VSOCK_PORT}\n");
    match stream.write_all(request.as_bytes()).await {
        Ok(()) => {}
        Err(error) if is_hang_up(&error) => return Ok(None),
        Err(error) => return Err(error),
    }
    // Byte by byte: what follows the line is the agent's.
    let mut line = Vec::new();
    while line.len() < ANSWER_MAX {
        match stream.read_u8().await {
            Ok(b'\n') if line.starts_with(b"OK ") => return Ok(Some(stream)),
            Ok(byte) => line.push(byte),
            Err(error) if is_hang_up(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        "Firecracker's vsock gave a malformed answer",
    ))
}

fn is_hang_up(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    const LIMIT: Duration = Duration::from_secs(20);

    /// A socket of this process, which plays Firecracker.
    fn own(path: PathBuf) -> SocketOf {
        SocketOf::new(path, std::process::id())
    }

    #[tokio::test]
    async fn a_guest_that_says_nothing_at_all_is_told_from_one_without_an_agent() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        let vsock = UnixListener::bind(&link).unwrap();
        let link = own(link);
        let hangs_up = async { drop(answer(&vsock, None).await) };
        let without_agent = async { tokio::join!(is_silent(&link), hangs_up).0 };
        assert!(!without_agent.await);
        let with_agent = async { tokio::join!(is_silent(&link), answer(&vsock, Some("OK 1\n"))) };
        assert!(!with_agent.await.0);
        assert!(is_silent(&link).await, "nobody answers");
    }

    /// Answers one request for a connection as Firecracker does.
    async fn answer(vsock: &UnixListener, answer: Option<&str>) -> UnixStream {
        let (mut stream, _) = vsock.accept().await.unwrap();
        let mut request = [0; 13];
        stream.read_exact(&mut request).await.unwrap();
        assert_eq!(&request, b"CONNECT 1024\n");
        if let Some(answer) = answer {
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        stream
    }

    #[tokio::test]
    async fn an_agent_that_is_not_up_is_waited_for_until_it_knocks() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let vsock = UnixListener::bind(at("link")).unwrap();
        let door = Door::open(&at("link_1024"), &Owner::This).unwrap();
        let guest = async {
            drop(answer(&vsock, None).await);
            drop(UnixStream::connect(at("link_1024")).await.unwrap());
            answer(&vsock, Some("OK 1073741824\nhello")).await
        };
        let link = own(at("link"));
        let both = async { tokio::join!(door.reach_agent(&link), guest) };
        let (stream, _guest) = tokio::time::timeout(LIMIT, both).await.unwrap();
        let mut bytes = [0; 5];
        stream.unwrap().read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"hello");
    }

    #[tokio::test]
    async fn a_knock_that_came_early_is_not_lost() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let vsock = UnixListener::bind(at("link")).unwrap();
        let door = Door::open(&at("link_1024"), &Owner::This).unwrap();
        drop(UnixStream::connect(at("link_1024")).await.unwrap());
        let guest = async {
            drop(answer(&vsock, None).await);
            answer(&vsock, Some("OK 1\n")).await
        };
        let link = own(at("link"));
        let both = async { tokio::join!(door.reach_agent(&link), guest) };
        tokio::time::timeout(LIMIT, both).await.unwrap().0.unwrap();
    }

    #[tokio::test]
    async fn however_many_knock_and_nobody_waits_none_is_kept_at_the_door() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("link_1024");
        let _door = Door::open(&path, &Owner::This).unwrap();
        let knocks = async {
            for _ in 0..100 {
                let mut knock = UnixStream::connect(&path).await.unwrap();
                // It was let in and hung up on.
                assert_eq!(knock.read(&mut [0]).await.unwrap(), 0);
            }
        };
        tokio::time::timeout(LIMIT, knocks).await.unwrap();
    }

    #[tokio::test]
    async fn without_firecracker_there_is_nothing_to_wait_for() {
        let directory = tempfile::tempdir().unwrap();
        let door = Door::open(&directory.path().join("link_1024"), &Owner::This).unwrap();
        assert!(
            door.reach_agent(&own(directory.path().join("link")))
                .await
                .is_err()
        );
        // The next daemon opens the door anew.
        Door::open(&directory.path().join("link_1024"), &Owner::This).unwrap();
    }
}

//! Sockets that carry whole messages and descriptors (`SOCK_SEQPACKET`, unix(7)).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sys::socket::sockopt::PeerCredentials;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::protocol::MESSAGE_MAX;

/// Longest path of a unix socket: 108 bytes with the zero at the end (unix(7)).
pub(crate) const SOCKET_PATH_MAX: usize = 107;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: AsyncFd<OwnedFd>,
}

/// A message, and the descriptor that came with it.
pub(crate) type Message = (Vec<u8>, Option<OwnedFd>);

impl Channel {
    /// Connects to the socket at `path`.
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        let socket = socket()?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Self::new(socket)
    }

    fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            socket: register(socket)?,
        })
    }

    /// The user at the other end, as this process' user namespace numbers users.
    pub(crate) fn peer_uid(&self) -> io::Result<u32> {
        // Not by rustix, to which the process id 0, of a process outside of this PID
        // namespace, is an error.
        let peer = nix::sys::socket::getsockopt(self.socket.get_ref(), PeerCredentials)?;
        Ok(peer.uid())
    }

    /// Sends one message, and a copy of `descriptor`. Cancel-safe: sent whole or not at all.
    pub(crate) async fn send(
        &self,
        message: &[u8],
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let send = |socket: &OwnedFd| send(socket, message, descriptor);
        self.socket.async_io(Interest::WRITABLE, send).await
    }

    /// Receives one message; `None` when the other end is gone. Cancel-safe.
    pub(crate) async fn receive(&self) -> io::Result<Option<Message>> {
        self.socket.async_io(Interest::READABLE, receive).await
    }
}

/// A socket that accepts connections. The path stays when it is dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: AsyncFd<OwnedFd>,
}

impl Listener {
    /// Listens at `path`, which must not exist. Mind the umask: it decides who may connect.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        let socket = socket()?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(Self {
            socket: register(socket)?,
        })
    }

    /// Accepts a connection. Cancel-safe.
    pub(crate) async fn accept(&self) -> io::Result<Channel> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accept = |socket: &OwnedFd| Ok(rustix::net::accept_with(socket, flags)?);
        Channel::new(self.socket.async_io(Interest::READABLE, accept).await?)
    }
}

/// Lets the runtime say when a descriptor is ready.
pub(crate) fn register(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned, so that it stays open and the same until the
    // `AsyncFd` is dropped, and nothing takes it out of one before.
    Ok(unsafe { AsyncFd::register(descriptor) }?)
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let kind = SocketType::SEQPACKET;
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        kind,
        flags,
        None,
    )?)
}

fn send(socket: &OwnedFd, message: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if let Some(descriptor) = &descriptor {
        let pushed = control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(
            descriptor,
        )));
        assert!(pushed, "the buffer has room for one descriptor");
    }
    let data = [IoSlice::new(message)];
    rustix::net::sendmsg(socket.as_fd(), &data, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(socket: &OwnedFd) -> io::Result<Option<Message>> {
    let mut message = vec![0; MESSAGE_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut data = [IoSliceMut::new(&mut message)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket.as_fd(), &mut data, &mut control, flags)?;
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    if received.flags.contains(ReturnFlags::TRUNC) {
        let text = format!("a message of more than {MESSAGE_MAX} bytes came");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    message.truncate(received.bytes);
    Ok(Some((message, descriptor)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Seek, Write};

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    }

    #[test]
    fn messages_stay_apart_and_carry_descriptors() {
        runtime().block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("socket");
            let listener = Listener::bind(&path).unwrap();
            let client = Channel::connect(&path).unwrap();
            let server = listener.accept().await.unwrap();
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(b"through").unwrap();

            server.send(b"one", None).await.unwrap();
            server.send(b"two", Some(file.as_fd())).await.unwrap();
            drop(server);

            let (message, descriptor) = client.receive().await.unwrap().unwrap();
            assert_eq!(
                (message.as_slice(), descriptor.is_none()),
                (&b"one"[..], true)
            );
            let (message, descriptor) = client.receive().await.unwrap().unwrap();
            assert_eq!(message, b"two");
            let mut received = File::from(descriptor.unwrap());
            received.rewind().unwrap();
            let mut text = String::new();
            received.read_to_string(&mut text).unwrap();
            assert_eq!(text, "through");
            assert!(client.receive().await.unwrap().is_none());
        });
    }

    #[test]
    fn a_message_that_is_too_long_is_an_error() {
        runtime().block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("socket");
            let listener = Listener::bind(&path).unwrap();
            let client = Channel::connect(&path).unwrap();
            let server = listener.accept().await.unwrap();
            client
                .send(&vec![b' '; MESSAGE_MAX + 1], None)
                .await
                .unwrap();
            let error = server.receive().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        });
    }

    #[test]
    fn without_a_listener_there_is_no_connection() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        runtime().block_on(async {
            assert_eq!(
                Channel::connect(&path).unwrap_err().kind(),
                io::ErrorKind::NotFound
            );
            drop(Listener::bind(&path).unwrap());
            let error = Channel::connect(&path).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        });
    }
}

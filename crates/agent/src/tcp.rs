//! Connections to ports in the guest: for `/v1/tcp` and for SSH's forwarding. Those for `/v1/udp` are
//! in [`crate::udp`].

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// How long the other end may take to accept.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Pieces that wait for a slow reader on each side.
pub(crate) const QUEUE: usize = 4;
const PIECE: usize = 64 * 1024;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not `host:port`.
    #[error("`{0}` is not an address with a port")]
    Address(String),
    /// The host is neither an address nor in the guest's `/etc/hosts`.
    #[error("`{0}` is not an address and not in /etc/hosts")]
    UnknownHost(String),
    /// Nobody accepted.
    #[error("could not connect to {address}: {source}")]
    Connect {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// A connection whose bytes go through two queues.
#[derive(Debug)]
pub struct Connection {
    /// Bytes to the other end; dropping the sender ends that direction.
    pub input: mpsc::Sender<Bytes>,
    /// Bytes from the other end; dropping the receiver closes the connection.
    pub output: mpsc::Receiver<io::Result<Bytes>>,
    /// Breaks the connection off, so that nobody takes what was sent for all of it.
    pub abort: oneshot::Sender<()>,
}

/// Connects to `host:port`.
///
/// # Errors
/// The address makes no sense or nobody accepts.
pub async fn connect(address: &str) -> Result<Connection, ConnectError> {
    let mut failure = None;
    for address in addresses(address)? {
        match timeout(CONNECT_LIMIT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(carry(stream)),
            Ok(Err(source)) => failure = Some(ConnectError::Connect { address, source }),
            Err(_) => {
                let source = io::ErrorKind::TimedOut.into();
                failure = Some(ConnectError::Connect { address, source });
            }
        }
    }
    Err(failure.unwrap_or_else(|| ConnectError::UnknownHost(address.to_owned())))
}

/// What `host:port` may stand for, in the order in which it is to be tried.
pub(crate) fn addresses(address: &str) -> Result<Vec<SocketAddr>, ConnectError> {
    let invalid = || ConnectError::Address(address.to_owned());
    let (host, port) = address.rsplit_once(':').ok_or_else(invalid)?;
    let port: u16 = port.parse().map_err(|_| invalid())?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let found = resolve(host);
    match found.is_empty() {
        true => Err(ConnectError::UnknownHost(host.to_owned())),
        false => Ok(found
            .into_iter()
            .map(|ip| SocketAddr::new(ip, port))
            .collect()),
    }
}

/// A static binary has no resolver of the C library; what is in the guest is named by
/// address or in its `/etc/hosts`.
fn resolve(host: &str) -> Vec<IpAddr> {
    if let Ok(ip) = host.parse() {
        return vec![ip];
    }
    let mut found = Vec::new();
    if host.eq_ignore_ascii_case("localhost") {
        found.extend([
            IpAddr::from([127, 0, 0, 1]),
            IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
        ]);
    }
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    for line in hosts.lines() {
        let mut words = line
            .split('#')
            .next()
            .unwrap_or_default()
            .split_ascii_whitespace();
        if let Some(Ok(ip)) = words.next().map(str::parse)
            && words.any(|name| name.eq_ignore_ascii_case(host))
            && !found.contains(&ip)
        {
            found.push(ip);
        }
    }
    found
}

/// A connection's bytes through two queues.
pub(crate) fn carry(stream: TcpStream) -> Connection {
    // Small messages of interactive protocols must not wait; refused only on dead sockets.
    let _ = stream.set_nodelay(true);
    let (read, mut write) = stream.into_split();
    let (input, to_peer) = mpsc::channel(QUEUE);
    let (from_peer, output) = mpsc::channel(QUEUE);
    let (abort, aborted) = oneshot::channel();
    tokio::spawn(async move {
        tokio::select! {
            biased;
            Ok(()) = aborted => {}
            () = send(&mut write, to_peer) => return,
        }
        // Refused only on a socket that is dead already.
        let _ = write.as_ref().set_zero_linger();
        write.forget();
    });
    tokio::spawn(receive(read, from_peer));
    Connection {
        input,
        output,
        abort,
    }
}

/// Writes what comes in the queue, and ends that direction at the queue's end.
pub(crate) async fn send(stream: &mut (impl AsyncWrite + Unpin), mut queue: mpsc::Receiver<Bytes>) {
    while let Some(bytes) = queue.recv().await {
        if stream.write_all(&bytes).await.is_err() {
            return;
        }
    }
    // The peer may be gone already.
    let _ = stream.shutdown().await;
}

/// Queues what is read, until there is no more or nobody takes it.
pub(crate) async fn receive(
    mut stream: impl AsyncRead + Unpin,
    queue: mpsc::Sender<io::Result<Bytes>>,
) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(PIECE);
        let read = tokio::select! {
            read = stream.read_buf(&mut buffer) => read,
            () = queue.closed() => return,
        };
        let piece = match read {
            Ok(0) => return,
            Ok(_) => Ok(buffer.split().freeze()),
            Err(error) => Err(error),
        };
        let failed = piece.is_err();
        if queue.send(piece).await.is_err() || failed {
            return;
        }
    }
}

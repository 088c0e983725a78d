//! What a client has the guest listen on: ports (`-R`, RFC 4254, section 7) and a socket for its
//! own authentication agent (`-A`, OpenSSH's `PROTOCOL.agent`); and sockets of the guest that it
//! reaches by their paths (`-L`). All of it ends with the client's connection.

use std::collections::HashMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_proto::id::RequestId;
use bytes::Bytes;
use russh::server::{Handle, Msg};
use rustix::process::geteuid;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;
use tracing::debug;

use super::channel::{Channel, Output, carry};
use crate::exec::User;
use crate::tcp::{self, QUEUE};

/// Ports that one client may have the guest listen on.
const PORTS_MAX: usize = 64;
/// Connections to all that one client has the guest listen on; more wait.
const CONNECTIONS_MAX: usize = 256;
/// Ports below this one are root's (`IPPORT_RESERVED` of the C library).
const RESERVED: u32 = 1024;
/// Directories in which the agent's socket may be, in order.
const SOCKET_PLACES: [&str; 2] = ["/tmp", "/run"];

/// What one client has the guest listen on.
pub(super) struct Forwards {
    ports: HashMap<(String, u32), Vec<Listening>>,
    agent: Option<AgentSocket>,
    places: Arc<Semaphore>,
}

/// A task that takes connections until this is dropped.
struct Listening(AbortHandle);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Default for Forwards {
    fn default() -> Self {
        Self {
            ports: HashMap::new(),
            agent: None,
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        }
    }
}

impl Forwards {
    /// Listens for the client on a port, or any if it is 0; returns which it is.
    pub(super) async fn listen(
        &mut self,
        address: &str,
        port: u32,
        user: Option<&str>,
        handle: &Handle,
    ) -> io::Result<u32> {
        let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text);
        if self.ports.len() >= PORTS_MAX {
            return Err(invalid("it listens on too many ports already"));
        }
        let is_root = user.is_none_or(|user| User::find(user).is_ok_and(|user| user.uid == 0));
        if (1..RESERVED).contains(&port) && geteuid().is_root() && !is_root {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut wanted = u16::try_from(port).map_err(|_| invalid("there is no such port"))?;
        let mut listening = Vec::new();
        for ip in addresses(address).ok_or_else(|| invalid("it is no address"))? {
            let listener = match TcpListener::bind(SocketAddr::new(ip, wanted)).await {
                Ok(listener) => listener,
                // A guest without IPv6, or whose `::` stands for IPv4's addresses too.
                Err(error) if !listening.is_empty() => {
                    debug!(%error, %ip, "not listening");
                    continue;
                }
                Err(error) => return Err(error),
            };
            wanted = listener.local_addr()?.port();
            let said = (address.to_owned(), u32::from(wanted));
            let task = tokio::spawn(take_tcp(
                listener,
                said,
                handle.clone(),
                self.places.clone(),
            ));
            listening.push(Listening(task.abort_handle()));
        }
        let key = (address.to_owned(), u32::from(wanted));
        self.ports.insert(key, listening);
        Ok(wanted.into())
    }

    /// Listens for the client no longer; says whether it did.
    pub(super) fn cancel(&mut self, address: &str, port: u32) -> bool {
        self.ports.remove(&(address.to_owned(), port)).is_some()
    }

    /// The socket that leads to the client's authentication agent.
    pub(super) fn agent(&mut self, user: Option<&str>, handle: &Handle) -> io::Result<&Path> {
        let agent = match self.agent.take() {
            Some(agent) => agent,
            None => AgentSocket::open(user, handle.clone(), self.places.clone())?,
        };
        Ok(&self.agent.insert(agent).path)
    }
}

/// What an address stands for, as the client may write it (RFC 4254, section 7.1).
fn addresses(address: &str) -> Option<Vec<IpAddr>> {
    Some(match address {
        "" => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
        "localhost" => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        address => vec![address.parse().ok()?],
    })
}

async fn take_tcp(
    listener: TcpListener,
    (address, port): (String, u32),
    handle: Handle,
    places: Arc<Semaphore>,
) {
    while let Ok((stream, peer)) = listener.accept().await {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        let (handle, address) = (handle.clone(), address.clone());
        tokio::spawn(async move {
            let ip = peer.ip().to_string();
            let opened = handle
                .channel_open_forwarded_tcpip(address, port, ip, peer.port().into())
                .await;
            match opened {
                Ok(channel) => join_tcp(channel, stream, handle).await,
                Err(error) => debug!(%error, "the client takes no forwarded connection"),
            }
            drop(place);
        });
    }
}

async fn join_tcp(channel: russh::Channel<Msg>, stream: TcpStream, handle: Handle) {
    let connection = tcp::carry(stream);
    let channel = Channel::new(channel, handle);
    carry(channel, Some(connection.input), connection.output, data).await;
}

/// Joins a channel with a Unix socket.
pub(super) async fn join_unix(channel: Channel, stream: UnixStream) {
    let (read, mut write) = stream.into_split();
    let (input, to_peer) = mpsc::channel(QUEUE);
    let (from_peer, output) = mpsc::channel(QUEUE);
    tokio::spawn(async move { tcp::send(&mut write, to_peer).await });
    tokio::spawn(tcp::receive(read, from_peer));
    carry(channel, Some(input), output, data).await;
}

/// What was read, for the client; an error ends it.
pub(super) fn data(piece: io::Result<Bytes>) -> Option<Output> {
    piece.ok().map(Output::Data)
}

/// A socket that leads to a client's authentication agent. It is its user's alone.
struct AgentSocket {
    directory: PathBuf,
    path: PathBuf,
    _listening: Listening,
}

impl AgentSocket {
    fn open(user: Option<&str>, handle: Handle, places: Arc<Semaphore>) -> io::Result<Self> {
        let directory = make_directory()?;
        let path = directory.join("agent");
        let opened = (|| {
            let listener = UnixListener::bind(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            if let Some(user) = user {
                let user = User::find(user).map_err(io::Error::other)?;
                chown(&path, Some(user.uid), Some(user.gid))?;
                chown(&directory, Some(user.uid), Some(user.gid))?;
            }
            Ok(listener)
        })();
        let listener = opened.inspect_err(|_: &io::Error| remove(&directory))?;
        let task = tokio::spawn(take_agent(listener, handle, places));
        Ok(Self {
            directory,
            path,
            _listening: Listening(task.abort_handle()),
        })
    }
}

impl Drop for AgentSocket {
    fn drop(&mut self) {
        remove(&self.directory);
    }
}

/// A directory of its own, which nobody else can go into.
fn make_directory() -> io::Result<PathBuf> {
    let name = format!("ssh-{}", RequestId::new().short());
    let mut failure = io::Error::from(io::ErrorKind::NotFound);
    for place in SOCKET_PLACES {
        let directory = Path::new(place).join(&name);
        match DirBuilder::new().mode(0o700).create(&directory) {
            Ok(()) => return Ok(directory),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn remove(directory: &Path) {
    if let Err(error) = fs::remove_dir_all(directory) {
        debug!(%error, "a socket stays");
    }
}

async fn take_agent(listener: UnixListener, handle: Handle, places: Arc<Semaphore>) {
    while let Ok((stream, _)) = listener.accept().await {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        let handle = handle.clone();
        tokio::spawn(async move {
            match handle.channel_open_agent().await {
                Ok(channel) => join_unix(Channel::new(channel, handle), stream).await,
                Err(error) => debug!(%error, "the client gives no access to its agent"),
            }
            drop(place);
        });
    }
}

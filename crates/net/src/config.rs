//! What the network needs to know, and what makes no network.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use banger_proto::id::InstanceId;

/// Everything the network needs to know of its surroundings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Tells this state directory from others.
    pub instance: InstanceId,
    /// The bridge's address, which is the guests' gateway, and the length of the prefix
    /// that all of them share.
    pub bridge: (Ipv4Addr, u8),
    /// Private directory for the holder's socket and lock.
    pub runtime_dir: PathBuf,
    /// Directory for `net.log`.
    pub log_dir: PathBuf,
    /// Program and first arguments that lead to [`crate::holder::run`], such as
    /// `bangerd net-holder`.
    pub holder: Vec<OsString>,
}

/// Name of the holder's socket in the runtime directory.
pub(crate) const SOCKET: &str = "net.sock";
/// Name of the file in the runtime directory that the holder keeps locked.
pub(crate) const LOCK: &str = "net.lock";

impl NetworkConfig {
    /// Where the holder listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.runtime_dir.join(SOCKET)
    }

    /// What the holder keeps locked.
    pub(crate) fn lock(&self) -> PathBuf {
        self.runtime_dir.join(LOCK)
    }
}

/// Why no network can be made of a [`NetworkConfig`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConfig {
    /// Not a host's address in a network of a usable size.
    #[error(
        "`{0}/{1}` is not a bridge address: \
         it is a host's address within a prefix of 8 to 30 bits, such as 172.16.0.1/24"
    )]
    Bridge(Ipv4Addr, u8),
    /// No program.
    #[error("no program is given for the network's holder")]
    Holder,
    /// Longer than the 107 bytes that a unix socket's path may have (unix(7)).
    #[error("the path of the network's socket is longer than 107 bytes: {}", .0.display())]
    SocketPath(PathBuf),
}

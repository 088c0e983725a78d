//! Ports of the host: how one is opened, and why one cannot be.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};

use banger_proto::error::ErrorKind;
use banger_proto::port::Place;
use banger_sockets::Socket;

/// From which port on anybody may open one (ip_sysctl.rst).
const UNPRIVILEGED: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// Why a port of the host cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody has it.
    #[error("{place} is in use by {by}")]
    InUse {
        /// The port.
        place: Place,
        /// Whoever has it, in words.
        by: String,
    },
    /// It is for root alone.
    #[error("only root may open {place} here")]
    Privileged {
        /// The port.
        place: Place,
    },
    /// The address is none of the host's.
    #[error("{} is not an address of this host", .place.address)]
    NotHere {
        /// The port.
        place: Place,
    },
    /// Something else.
    #[error("could not open {place}")]
    Other {
        /// The port.
        place: Place,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl BindError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::InUse { .. } => ErrorKind::Conflict,
            Self::Privileged { .. } => ErrorKind::Precondition,
            Self::NotHere { .. } => ErrorKind::Invalid,
            Self::Other { .. } => ErrorKind::Failed,
        }
    }

    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::InUse { .. } => Some("choose another port of the host".to_owned()),
            Self::Privileged { place } => Some(format!(
                "choose a port from {} on, or, as root: sysctl -w \
                 net.ipv4.ip_unprivileged_port_start={}",
                first_unprivileged(),
                place.port
            )),
            Self::NotHere { .. } => Some("`ip address` lists the host's addresses".to_owned()),
            Self::Other { .. } => None,
        }
    }

    /// All of it in one line.
    pub fn in_words(&self) -> String {
        match self {
            Self::Other { source, .. } => format!("{self}: {source}"),
            _ => self.to_string(),
        }
    }
}

/// A socket that listens.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl BindError {
    /// What the system said of a port. `by` is who has it, in words, if that is this daemon.
    pub(super) fn new(place: Place, source: io::Error, by: Option<String>) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::InUse {
                place,
                by: by
                    .or_else(|| owner(place))
                    .unwrap_or_else(|| "another program".to_owned()),
            },
            io::ErrorKind::PermissionDenied => Self::Privileged { place },
            io::ErrorKind::AddrNotAvailable => Self::NotHere { place },
            _ => Self::Other { place, source },
        }
    }
}

fn first_unprivileged() -> u16 {
    let text = fs::read_to_string(UNPRIVILEGED).unwrap_or_default();
    text.trim().parse().unwrap_or(1024)
}

/// The program that has a port of the host or one that keeps it from being opened; `None` if
/// that is none of this user's.
fn owner(place: Place) -> Option<String> {
    let mut sockets = banger_sockets::all();
    sockets.retain(|socket| is_in_the_way(socket, place));
    let owners = banger_sockets::owners(banger_sockets::processes(), &sockets);
    let process = sockets
        .iter()
        .find_map(|socket| owners.get(&socket.inode))?;
    Some(format!("`{}` (process {})", process.name, process.pid))
}

fn is_in_the_way(socket: &Socket, place: Place) -> bool {
    let meet = socket.address == place.address
        || socket.address.is_unspecified()
        || place.address.is_unspecified();
    meet && (socket.port, socket.protocol) == (place.port, place.protocol)
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_proto::port::Protocol;

    #[test]
    fn who_has_a_port_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let refused = |address: [u8; 4], by| {
            let place = Place {
                address: address.into(),
                port,
                protocol: Protocol::Tcp,
            };
            let bound = listen(SocketAddr::new(place.address, port));
            bound.err().map(|error| BindError::new(place, error, by))
        };
        let own = refused([127, 0, 0, 1], None).unwrap().to_string();
        let process = format!("(process {})", std::process::id());
        assert!(own.ends_with(&process), "{own}");
        let by_vm = refused([0, 0, 0, 0], Some("VM `a`".to_owned())).unwrap();
        assert_eq!(
            by_vm.to_string(),
            format!("0.0.0.0:{port} is in use by VM `a`")
        );
        assert_eq!(by_vm.kind(), ErrorKind::Conflict);
        assert!(refused([127, 0, 0, 2], None).is_none());
    }

    #[test]
    fn what_is_wrong_is_told_with_what_to_do() {
        let place = Place {
            address: [192, 0, 2, 1].into(),
            port: 80,
            protocol: Protocol::Udp,
        };
        let not_here = std::net::UdpSocket::bind(("192.0.2.1", 80)).unwrap_err();
        let errors = [
            BindError::new(place, not_here, None),
            BindError::Privileged { place },
            BindError::Other {
                place,
                source: io::Error::other("no"),
            },
        ];
        let lines: Vec<String> = errors
            .iter()
            .map(|error| {
                let hint = error.hint().unwrap_or_else(|| "-".to_owned());
                format!("{} [{hint}]", error.in_words())
            })
            .collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
        192.0.2.1 is not an address of this host [`ip address` lists the host's addresses]
        only root may open 192.0.2.1:80/udp here [choose a port from 1024 on, or, as root: sysctl -w net.ipv4.ip_unprivileged_port_start=80]
        could not open 192.0.2.1:80/udp: no [-]
        ");
    }
}

//! Ports: of which protocol they are, and where on the host a VM's are published.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A protocol that has ports.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The word in JSON, in tables and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A port of a guest that has a fixed place on the host, as `--publish` names it:
/// `[ADDR:]HOST:GUEST[/udp]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Publish {
    /// The host's address; 127.0.0.1 if none is named.
    #[serde(default = "loopback")]
    pub address: IpAddr,
    /// The port on the host.
    pub host_port: u16,
    /// The port in the guest.
    pub guest_port: u16,
    /// Of which protocol both are.
    #[serde(default)]
    pub protocol: Protocol,
}

fn loopback() -> IpAddr {
    Ipv4Addr::LOCALHOST.into()
}

impl Publish {
    /// Whether both want the same port of the host. An unspecified address (`0.0.0.0`, `::`)
    /// stands for all of them.
    pub fn collides_with(&self, other: &Self) -> bool {
        let one_host = self.address == other.address
            || covers(self.address, other.address)
            || covers(other.address, self.address);
        self.protocol == other.protocol && self.host_port == other.host_port && one_host
    }

    /// The place on the host, such as `127.0.0.1:8080/udp`.
    pub fn place(&self) -> Place {
        Place {
            address: self.address,
            port: self.host_port,
            protocol: self.protocol,
        }
    }
}

/// Whether `wide` is an address that takes `narrow` in. Linux gives `::` IPv4's addresses too.
fn covers(wide: IpAddr, narrow: IpAddr) -> bool {
    wide.is_unspecified() && (wide.is_ipv6() || narrow.is_ipv4())
}

/// A port of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// Of which protocol it is.
    pub protocol: Protocol,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let socket = std::net::SocketAddr::new(self.address, self.port);
        match self.protocol {
            Protocol::Tcp => write!(f, "{socket}"),
            Protocol::Udp => write!(f, "{socket}/udp"),
        }
    }
}

/// Why a text is no [`Publish`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` publishes nothing: write [ADDR:]HOST:GUEST[/udp], such as 8080:80")]
pub struct InvalidPublish(pub String);

impl FromStr for Publish {
    type Err = InvalidPublish;

    fn from_str(text: &str) -> Result<Self, InvalidPublish> {
        parse(text).ok_or_else(|| InvalidPublish(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Publish> {
    let (ports, protocol) = match text.split_once('/') {
        None => (text, Protocol::Tcp),
        Some((ports, "tcp")) => (ports, Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some(_) => return None,
    };
    let (rest, guest_port) = ports.rsplit_once(':')?;
    let (address, host_port) = match rest.rsplit_once(':') {
        None => (loopback(), rest),
        Some((address, host_port)) => (parse_address(address)?, host_port),
    };
    Some(Publish {
        address,
        host_port: parse_port(host_port)?,
        guest_port: parse_port(guest_port)?,
        protocol,
    })
}

/// IPv6 stands in brackets, as in a URL.
fn parse_address(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[') {
        Some(rest) => Some(IpAddr::V6(rest.strip_suffix(']')?.parse().ok()?)),
        None => Some(IpAddr::V4(text.parse().ok()?)),
    }
}

/// A port other than 0, in decimal digits alone.
fn parse_port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let socket = std::net::SocketAddr::new(self.address, self.host_port);
        write!(f, "{socket}:{}", self.guest_port)?;
        match self.protocol {
            Protocol::Tcp => Ok(()),
            Protocol::Udp => f.write_str("/udp"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(text: &str) -> Publish {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_published_is_written_as_it_is_read() {
        for (text, written) in [
            ("8080:80", "127.0.0.1:8080:80"),
            ("8080:80/tcp", "127.0.0.1:8080:80"),
            ("53:5353/udp", "127.0.0.1:53:5353/udp"),
            ("0.0.0.0:1:65535", "0.0.0.0:1:65535"),
            ("[::1]:8080:80/udp", "[::1]:8080:80/udp"),
        ] {
            let published = publish(text);
            assert_eq!(published.to_string(), written);
            assert_eq!(publish(written), published);
            let json = serde_json::to_string(&published).unwrap();
            assert_eq!(
                serde_json::from_str::<Publish>(&json).unwrap(),
                published,
                "{json}"
            );
        }
    }

    #[test]
    fn what_publishes_nothing_is_refused() {
        for text in [
            "",
            "80",
            ":",
            "80:",
            ":80",
            "0:80",
            "80:0",
            "65536:80",
            "+1:80",
            "80:80:80",
            "a:1:1",
            "::1:80:80",
            "[::1:80:80",
            "[1.2.3.4]:80:80",
            "80:80/sctp",
            "80:80/",
            "80:80/udp/udp",
            "80:80/tcp/tcp",
            "80 :80",
            "1.2.3:80:80",
        ] {
            let refused = text.parse::<Publish>().unwrap_err();
            assert_eq!(refused, InvalidPublish(text.to_owned()));
        }
    }

    #[test]
    fn an_unspecified_address_collides_with_every_other() {
        let collide = |one: &str, other: &str| {
            let (one, other) = (publish(one), publish(other));
            let collide = one.collides_with(&other);
            assert_eq!(other.collides_with(&one), collide);
            collide
        };
        assert!(collide("80:1", "80:2"));
        assert!(collide("0.0.0.0:80:1", "80:2"));
        assert!(collide("[::]:80:1", "80:2"));
        assert!(collide("[::]:80:1", "[::1]:80:2"));
        assert!(!collide("0.0.0.0:80:1", "[::1]:80:2"));
        assert!(!collide("80:1", "[::1]:80:2"));
        assert!(!collide("80:1", "127.0.0.2:80:2"));
        assert!(!collide("80:1", "80:1/udp"));
        assert!(!collide("80:1", "81:1"));
    }
}

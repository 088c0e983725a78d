//! The guests' resolver: the gateway's port 53, forwarded to the host's own resolvers.
//!
//! Its sockets towards the guests are made in the namespace, and those towards the resolvers
//! on the host's side, by the thread that stays there. So a resolver on the host's loopback
//! serves, as systemd-resolved does, and nothing else of the loopback comes into reach. What
//! `/etc/resolv.conf` says is read for each question: hosts change networks.
//!
//! Questions and answers are carried unread, but for the id that pairs them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

/// The port of DNS (RFC 1035, section 4.2).
const PORT: u16 = 53;
/// Questions that may wait for their answers, of all guests together; more are dropped.
const WAITING_MAX: usize = 256;
/// How long one resolver may take before the next is asked. Clients ask again after 5 s
/// (resolv.conf(5)).
const PATIENCE: Duration = Duration::from_secs(4);
/// How long a TCP connection may last.
const CONNECTION_MAX: Duration = Duration::from_secs(60);
/// Between attempts to accept, so that a lack of descriptors does not become a busy loop.
const BREATH: Duration = Duration::from_millis(100);
/// Length of a message's header (RFC 1035, section 4.1.1).
const HEADER: usize = 12;

/// The sockets towards the guests.
#[derive(Debug)]
pub(super) struct Sockets {
    udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
}

impl Sockets {
    /// Binds the gateway's port in the network namespace of the calling thread.
    pub(super) fn bind(gateway: Ipv4Addr) -> io::Result<Self> {
        let udp = std::net::UdpSocket::bind((gateway, PORT))?;
        let tcp = std::net::TcpListener::bind((gateway, PORT))?;
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        Ok(Self { udp, tcp })
    }
}

/// Serves the guests, with sockets towards the resolvers in the namespace of the calling
/// thread. It ends with the runtime only, or when a socket is not to be had.
pub(super) async fn serve(sockets: Sockets) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(WAITING_MAX));
    let udp = UdpSocket::from_std(sockets.udp)?;
    let tcp = TcpListener::from_std(sockets.tcp)?;
    tokio::try_join!(serve_udp(udp, &places), serve_tcp(tcp, &places))?;
    Ok(())
}

async fn serve_udp(socket: UdpSocket, places: &Arc<Semaphore>) -> io::Result<()> {
    let socket = Arc::new(socket);
    let mut datagram = vec![0; usize::from(u16::MAX)];
    loop {
        // An error is that of an earlier answer, which did not arrive.
        let Ok((length, guest)) = socket.recv_from(&mut datagram).await else {
            continue;
        };
        if let (HEADER.., Ok(place)) = (length, places.clone().try_acquire_owned()) {
            let question = datagram[..length].to_vec();
            tokio::spawn(answer(socket.clone(), question, guest, place));
        }
    }
}

async fn answer(
    socket: Arc<UdpSocket>,
    question: Vec<u8>,
    guest: SocketAddr,
    _place: OwnedSemaphorePermit,
) {
    for resolver in resolvers() {
        if let Ok(Ok(answer)) = timeout(PATIENCE, ask(resolver, &question)).await {
            // A guest that has gone does without.
            let _ = socket.send_to(&answer, guest).await;
            return;
        }
    }
    let _ = socket.send_to(&failure(question), guest).await;
}

async fn ask(resolver: IpAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = match resolver {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    // A port of its own for each question, so that nobody answers who was not asked.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect((resolver, PORT)).await?;
    socket.send(question).await?;
    let mut answer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut answer).await?;
        if length >= HEADER && answer[..2] == question[..2] {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

/// The answer to a question that no resolver answered: a response, its code "server
/// failure" (RFC 1035, section 4.1.1).
fn failure(mut question: Vec<u8>) -> Vec<u8> {
    question[2] |= 0x80;
    question[3] = question[3] & 0xf0 | 2;
    question
}

async fn serve_tcp(listener: TcpListener, places: &Arc<Semaphore>) -> io::Result<()> {
    loop {
        let Ok((guest, _)) = listener.accept().await else {
            // The guest has gone already, or descriptors are scarce and others will close.
            sleep(BREATH).await;
            continue;
        };
        if let Ok(place) = places.clone().try_acquire_owned() {
            tokio::spawn(async move {
                let _ = timeout(CONNECTION_MAX, carry(guest)).await;
                drop(place);
            });
        }
    }
}

/// Carries a connection to the first resolver that takes one.
async fn carry(mut guest: TcpStream) -> io::Result<()> {
    for resolver in resolvers() {
        let connected = timeout(PATIENCE, TcpStream::connect((resolver, PORT))).await;
        if let Ok(Ok(mut resolver)) = connected {
            tokio::io::copy_bidirectional(&mut guest, &mut resolver).await?;
            return Ok(());
        }
    }
    Ok(())
}

fn resolvers() -> Vec<IpAddr> {
    parse(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
}

/// The resolvers that a resolv.conf(5) names; the host itself if it names none.
fn parse(text: &str) -> Vec<IpAddr> {
    let resolver = |line: &str| {
        let mut words = line.split_whitespace();
        let keyword = words.next()?;
        // An address of an interface's own, `fe80::1%eth0`, is not understood.
        (keyword == "nameserver").then(|| words.next()?.parse().ok())?
    };
    let resolvers: Vec<IpAddr> = text.lines().filter_map(resolver).take(3).collect();
    match resolvers.is_empty() {
        true => vec![Ipv4Addr::LOCALHOST.into()],
        false => resolvers,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_three_nameservers_are_asked() {
        let text = "\
# nameserver 1.1.1.1
search example.org
nameserver 192.0.2.1
  nameserver\tfd00::1 # with a comment
nameserver nonsense
nameserver 192.0.2.3
nameserver 192.0.2.4
";
        let expected = ["192.0.2.1", "fd00::1", "192.0.2.3"];
        assert_eq!(
            parse(text),
            expected.map(|address| address.parse::<IpAddr>().unwrap())
        );
    }

    #[test]
    fn without_nameservers_the_host_is_asked() {
        assert_eq!(
            parse("options ndots:1\n"),
            [IpAddr::from(Ipv4Addr::LOCALHOST)]
        );
    }

    #[test]
    fn a_failure_is_a_response_to_the_question() {
        let question = b"\x12\x34\x01\x10\0\x01\0\0\0\0\0\0".to_vec();
        assert_eq!(failure(question), b"\x12\x34\x81\x12\0\x01\0\0\0\0\0\0");
    }
}

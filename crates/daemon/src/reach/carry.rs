//! One connection: a socket of the host's and a stream to the guest, joined.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::BytesMut;
use futures_util::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::guest::{GuestReader, GuestStream, GuestWriter};

/// Bytes that are read at once.
const CHUNK: usize = 64 * 1024;

/// Where in the guest a port is reached that listens at these addresses. What the guest reaches
/// as its own host comes first.
pub(super) fn target(port: u16, addresses: impl Iterator<Item = IpAddr>) -> String {
    let own = |address: &IpAddr| {
        let localhost = [
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
        ];
        address.is_unspecified() || localhost.contains(address)
    };
    let mut others = Vec::new();
    for address in addresses {
        if own(&address) {
            others.clear();
            break;
        }
        others.push(address);
    }
    match others.into_iter().min() {
        Some(address) => SocketAddr::new(address, port).to_string(),
        // The agent tries 127.0.0.1, and then ::1.
        None => format!("localhost:{port}"),
    }
}

/// Copies both ways until both have ended; each direction ends by itself. A side that breaks
/// off breaks the other off.
pub(super) async fn join(client: TcpStream, guest: GuestStream) {
    // Small messages of interactive protocols must not wait; refused only on dead sockets.
    let _ = client.set_nodelay(true);
    let (from_guest, to_guest) = guest.into_split();
    let (from_client, to_client) = client.into_split();
    let joined = tokio::try_join!(
        copy_up(from_client, to_guest),
        copy_down(from_guest, to_client),
    );
    if let Err(error) = joined {
        tracing::debug!(%error, "a forwarded connection broke off");
    }
}

/// Ends a connection in a way that nobody takes for the end of what was to come.
pub(super) fn break_off(client: &TcpStream) {
    // Refused only on a socket that is dead already.
    let _ = client.set_zero_linger();
}

async fn copy_up(mut client: OwnedReadHalf, guest: GuestWriter) -> io::Result<()> {
    let mut chunk = BytesMut::new();
    loop {
        chunk.reserve(CHUNK);
        match client.read_buf(&mut chunk).await {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) => {
                guest.break_off(io::ErrorKind::ConnectionReset.into()).await;
                return Err(error);
            }
        }
        if guest.write(chunk.split().freeze()).await.is_err() {
            // It takes no more, and may still have something to say.
            return Ok(());
        }
    }
}

async fn copy_down(mut guest: GuestReader, mut client: OwnedWriteHalf) -> io::Result<()> {
    while let Some(piece) = guest.next().await {
        match piece {
            Ok(bytes) => client.write_all(&bytes).await?,
            Err(error) => {
                break_off(client.as_ref());
                client.forget();
                return Err(error);
            }
        }
    }
    client.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_reached_where_it_listens() {
        let reached = |addresses: &[&str]| {
            let addresses = addresses.iter().map(|address| address.parse().unwrap());
            target(80, addresses)
        };
        assert_eq!(reached(&["0.0.0.0"]), "localhost:80");
        assert_eq!(reached(&["172.16.0.2", "::1"]), "localhost:80");
        assert_eq!(reached(&["172.16.0.2", "127.0.0.53"]), "127.0.0.53:80");
        assert_eq!(reached(&["fd00::1"]), "[fd00::1]:80");
        assert_eq!(reached(&[]), "localhost:80");
    }
}

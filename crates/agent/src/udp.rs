//! Datagrams to a port in the guest and back, for `/v1/udp`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use banger_proto::datagram;
use bytes::{Bytes, BytesMut};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};

use crate::tcp::{ConnectError, Connection, addresses};

/// Datagrams that wait on each side; more are dropped by the kernel.
const QUEUE: usize = 16;

/// A socket for `host:port` whose datagrams go through two queues, framed as
/// [`banger_proto::datagram`] says. Dropping either end of it ends both.
///
/// # Errors
/// The address makes no sense, or nothing can be sent there.
pub async fn connect(address: &str) -> Result<Connection, ConnectError> {
    let address = addresses(address)?[0];
    let any: IpAddr = match address.ip() {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let connected = async {
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(address).await?;
        Ok(socket)
    };
    let socket = connected
        .await
        .map_err(|source| ConnectError::Connect { address, source })?;
    let (input, to_peer) = mpsc::channel(QUEUE);
    let (from_peer, output) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        tokio::select! {
            () = send(&socket, to_peer) => {}
            () = receive(&socket, &from_peer) => {}
            () = from_peer.closed() => {}
        }
    });
    // What is lost of datagrams nobody takes for an end.
    let (abort, _) = oneshot::channel();
    Ok(Connection {
        input,
        output,
        abort,
    })
}

async fn send(socket: &UdpSocket, mut pieces: mpsc::Receiver<Bytes>) {
    let mut come = BytesMut::new();
    while let Some(piece) = pieces.recv().await {
        come.extend_from_slice(&piece);
        while let Some(datagram) = datagram::decode(&mut come) {
            // Lost on the way, as datagrams may be: nobody may listen there yet.
            let _ = socket.send(&datagram).await;
        }
    }
}

async fn receive(socket: &UdpSocket, datagrams: &mpsc::Sender<io::Result<Bytes>>) {
    let mut buffer = vec![0; datagram::DATAGRAM_MAX];
    loop {
        match socket.recv(&mut buffer).await {
            Ok(length) => {
                let datagram = datagram::encode(&buffer[..length]);
                if datagrams.send(Ok(datagram)).await.is_err() {
                    return;
                }
            }
            // Nobody listened when something was sent.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(_) => return,
        }
    }
}

//! Claims about the guest's listening sockets, and datagrams to its ports.

use banger_proto::agent::Listener;
use banger_proto::datagram;
use banger_proto::port::Protocol;
use bytes::BytesMut;
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::Incoming;
use tokio::net::{TcpListener, UdpSocket};

use crate::client::{Client, LIMIT, command, full};
use crate::process::TestAgent;

/// Listens at a port of TCP and one of UDP, says which, and ends with its input.
const LISTENING: &str = "
import socket, sys
tcp = socket.create_server(('127.0.0.1', 0))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(('127.0.0.1', 0))
print(tcp.getsockname()[1], udp.getsockname()[1], 'ports', flush=True)
sys.stdin.read()
";

/// What a watch of the ports tells.
struct Watch {
    body: Incoming,
    buffer: BytesMut,
}

impl Watch {
    async fn open(client: &mut Client) -> Self {
        let response = client.send("GET", "/v1/ports/watch", full("")).await;
        assert_eq!(response.status(), StatusCode::OK);
        Self {
            body: response.into_body(),
            buffer: BytesMut::new(),
        }
    }

    async fn next(&mut self) -> Vec<Listener> {
        let line = async {
            loop {
                if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                    return self.buffer.split_to(end + 1);
                }
                let frame = self.body.frame().await.unwrap().unwrap();
                self.buffer.extend_from_slice(&frame.into_data().unwrap());
            }
        };
        let line = tokio::time::timeout(LIMIT, line).await;
        serde_json::from_slice(&line.expect("no change in time")).unwrap()
    }
}

#[tokio::test]
async fn listeners_are_told_of_when_they_come_and_go() {
    let agent = TestAgent::start().await;
    let mut client = agent.connect().await;
    // A socket of somebody else's on the machine is none of the agent's.
    let stranger = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut watch = Watch::open(&mut client).await;
    assert_eq!(watch.next().await, []);

    let mut exec = client.exec(command(&["python3", "-c", LISTENING])).await;
    let said = exec.until("ports").await;
    let mut ports = said
        .split_whitespace()
        .map(|word| word.parse().unwrap_or(0));
    let (tcp, udp): (u16, u16) = (ports.next().unwrap(), ports.next().unwrap());
    let listener = |protocol, port| Listener {
        port,
        protocol,
        address: [127, 0, 0, 1].into(),
        process: None,
    };
    assert_eq!(watch.next().await, [listener(Protocol::Tcp, tcp)]);

    let (status, body) = client.call("GET", "/v1/ports", "").await;
    assert_eq!(status, StatusCode::OK);
    let listed: Vec<Listener> = serde_json::from_slice(&body).unwrap();
    for wanted in [listener(Protocol::Tcp, tcp), listener(Protocol::Udp, udp)] {
        let found = listed
            .iter()
            .find(|found| found.port == wanted.port)
            .unwrap();
        let process = found.process.as_ref().unwrap();
        assert!(process.name.starts_with("python3"), "{process:?}");
        assert!(process.command.starts_with("python3 -c"), "{process:?}");
        assert_eq!(
            (found.protocol, found.address),
            (wanted.protocol, wanted.address)
        );
    }
    let strangers = stranger.local_addr().unwrap().port();
    assert!(listed.iter().all(|found| found.port != strangers));

    exec.input = None;
    assert_eq!(watch.next().await, []);
}

#[tokio::test]
async fn datagrams_go_to_a_port_and_back() {
    let agent = TestAgent::start().await;
    let mut client = agent.connect().await;
    let echo = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = echo.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        let mut buffer = [0; 2048];
        loop {
            let (length, from) = echo.recv_from(&mut buffer).await.unwrap();
            buffer[..length].reverse();
            echo.send_to(&buffer[..length], from).await.unwrap();
        }
    });
    let (input, response) = client
        .stream(&format!("/v1/udp?addr=127.0.0.1:{port}"))
        .await;
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.into_body();
    for datagram in ["ab", "", "abc"] {
        input
            .send(datagram::encode(datagram.as_bytes()))
            .await
            .unwrap();
        let mut come = BytesMut::new();
        let back = loop {
            let frame = tokio::time::timeout(LIMIT, body.frame()).await.unwrap();
            come.extend_from_slice(&frame.unwrap().unwrap().into_data().unwrap());
            if let Some(back) = datagram::decode(&mut come) {
                break back;
            }
        };
        let reversed: Vec<u8> = datagram.bytes().rev().collect();
        assert_eq!(back, reversed);
    }
    // The end of the request is the end of the exchange.
    drop(input);
    let rest = tokio::time::timeout(LIMIT, body.collect()).await.unwrap();
    assert_eq!(rest.unwrap().to_bytes(), "");
    server.abort();
}

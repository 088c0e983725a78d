//! Ports of guests: forwarded while they listen, found again by the next daemon, gone with the
//! VM.

#![expect(clippy::unwrap_used, reason = "these are tests")]

mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use banger_client::ByteStream;
use banger_proto::agent::ExecRequest;
use banger_proto::api::Port;
use banger_proto::frame::Frame;
use banger_proto::port::Protocol;
use bytes::BytesMut;
use support::{Daemon, Home, soon, succeeded};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Listens at a port of 127.0.0.1 (any, or the one that is named), and sends back, at its end,
/// what each connection has said. It ends with its input, or not at all if it shall stay.
const ECHO: &str = "
import signal, socket, sys, threading
def serve(server):
    while True:
        client, _ = server.accept()
        threading.Thread(target=answer, args=(client,), daemon=True).start()
def answer(client):
    said = b''
    while piece := client.recv(65536):
        said += piece
    client.sendall(b'said ' + said)
    client.close()
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
print(server.getsockname()[1], 'listens', flush=True)
if 'stay' in sys.argv:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    serve(server)
threading.Thread(target=serve, args=(server,), daemon=True).start()
sys.stdin.read()
";

/// A guest's program that listens for as long as this is there.
struct Server {
    _stream: ByteStream,
    port: u16,
}

async fn listen(daemon: &Daemon, vm: &str, address: &str, port: u16) -> Server {
    let words = ["python3", "-c", ECHO, address, &port.to_string()].map(str::to_owned);
    serve(daemon, vm, words.to_vec()).await
}

/// Starts a program that says which port it listens on.
async fn serve(daemon: &Daemon, vm: &str, command: Vec<String>) -> Server {
    let mut stream = daemon.client.exec(vm).await.unwrap();
    let request = ExecRequest {
        command,
        stdin: true,
        ..ExecRequest::default()
    };
    let start = Frame::Start(Box::new(request)).to_bytes();
    stream.write_all(&start).await.unwrap();
    let (mut come, mut said) = (BytesMut::new(), String::new());
    while !said.contains("listens") {
        assert_ne!(soon(stream.read_buf(&mut come)).await.unwrap(), 0, "{said}");
        while let Some(frame) = Frame::decode(&mut come).unwrap() {
            match frame {
                Frame::Stdout(bytes) => said += &String::from_utf8_lossy(&bytes),
                Frame::Stderr(bytes) => panic!("{}", String::from_utf8_lossy(&bytes)),
                _ => {}
            }
        }
    }
    Server {
        _stream: stream,
        port: said.split_whitespace().next().unwrap().parse().unwrap(),
    }
}

async fn loopback(daemon: &Daemon, vm: &str) -> Ipv4Addr {
    daemon.client.vm(vm).await.unwrap().loopback.unwrap()
}

/// Waits until a port of a VM is forwarded.
async fn endpoint(daemon: &Daemon, vm: &str, port: u16) -> SocketAddr {
    let found = async {
        loop {
            if let Some(endpoint) = look(daemon, vm, port).await.and_then(|port| port.endpoint) {
                return endpoint;
            }
        }
    };
    soon(found).await
}

async fn look(daemon: &Daemon, vm: &str, port: u16) -> Option<Port> {
    let ports = daemon.client.vm_ports(vm, false).await.unwrap();
    let mut ports = ports.into_iter();
    ports.find(|found| found.port == port && found.protocol == Protocol::Tcp)
}

/// Says something and hears the answer to its end.
async fn converse(address: SocketAddr, words: &[u8]) -> Vec<u8> {
    let conversation = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(words).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        answer
    };
    soon(conversation).await
}

/// Waits until nobody listens there any more.
async fn closes(address: SocketAddr) {
    let closed = async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon(closed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_is_forwarded_while_it_listens() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    let server = listen(&daemon, "a", "127.0.0.1", 0).await;
    let address = endpoint(&daemon, "a", server.port).await;
    let loopback = loopback(&daemon, "a").await;
    assert_eq!(address, SocketAddr::new(loopback.into(), server.port));
    assert_eq!(loopback.octets()[..2], [127, 77]);
    assert_eq!(converse(address, b"hello").await, b"said hello");
    let much = vec![b'x'; 3_000_000];
    assert_eq!(converse(address, &much).await.len(), much.len() + 5);

    let shown = look(&daemon, "a", server.port).await.unwrap();
    assert_eq!(shown.addresses, [Ipv4Addr::LOCALHOST]);
    assert!(shown.process.unwrap().command.starts_with("python3 -c"));
    drop(server);
    closes(address).await;
    assert_eq!(look(&daemon, "a", address.port()).await, None);
    succeeded(&daemon.delete_vm("a").await);
    home.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_come_back_with_the_daemon_and_go_with_the_vm() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    // It outlives the daemon, and with that its command's stream.
    let words = ["python3", "-c", ECHO, "127.0.0.1", "0", "stay"].map(str::to_owned);
    let server = serve(&daemon, "a", words.to_vec()).await;
    let address = endpoint(&daemon, "a", server.port).await;
    daemon.kill().await;
    closes(address).await;

    let daemon = home.start().await;
    let back = async {
        while TcpStream::connect(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon(back).await;
    assert_eq!(converse(address, b"again").await, b"said again");
    succeeded(&daemon.stop_vm("a").await);
    closes(address).await;
    succeeded(&daemon.delete_vm("a").await);
    home.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_another_program_has_is_forwarded_from_another_one() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    let loopback = loopback(&daemon, "a").await;
    // It and the one 10000 above are none that the system gives to whoever wants any.
    let any = TcpListener::bind((loopback, 0)).await.unwrap();
    let port = any.local_addr().unwrap().port() % 10_000 + 12_000;
    let taken = TcpListener::bind((loopback, port)).await.unwrap();
    let server = listen(&daemon, "a", "127.0.0.1", port).await;
    let address = endpoint(&daemon, "a", server.port).await;
    assert_eq!(address.port(), port + 10_000);
    assert_eq!(converse(address, b"x").await, b"said x");
    let note = look(&daemon, "a", port).await.unwrap().note.unwrap();
    let own = format!("(process {})", std::process::id());
    assert!(
        note.contains("is in use by `") && note.ends_with(&own),
        "{note}"
    );
    drop(taken);
    succeeded(&daemon.delete_vm("a").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_the_guest_breaks_off_is_no_end() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    let script = "
import socket, struct, sys
server = socket.create_server(('127.0.0.1', 0))
print(server.getsockname()[1], 'listens', flush=True)
client, _ = server.accept()
client.sendall(b'half')
client.recv(1)
client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
client.close()
sys.stdin.read()
";
    let words = ["python3", "-c", script].map(str::to_owned);
    let server = serve(&daemon, "a", words.to_vec()).await;
    let address = endpoint(&daemon, "a", server.port).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut half = [0; 4];
    soon(stream.read_exact(&mut half)).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    let end = soon(stream.read(&mut half)).await;
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    succeeded(&daemon.delete_vm("a").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn web_servers_have_urls_and_others_have_none() {
    let home = Home::new();
    let daemon = home.start().await;
    daemon.run("a").await;
    let web = "
import http.server, sys, threading
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), http.server.SimpleHTTPRequestHandler)
print(server.server_port, 'listens', flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
";
    let words = ["python3", "-c", web].map(str::to_owned);
    let web = serve(&daemon, "a", words.to_vec()).await;
    let echo = listen(&daemon, "a", "127.0.0.1", 0).await;
    let address = endpoint(&daemon, "a", web.port).await;
    endpoint(&daemon, "a", echo.port).await;
    let ports = daemon.client.vm_ports("a", true).await.unwrap();
    let url = |port| {
        ports
            .iter()
            .find(|found| found.port == port)
            .unwrap()
            .url
            .clone()
    };
    assert_eq!(url(web.port), Some(format!("http://{address}/")));
    assert_eq!(url(echo.port), None);
    succeeded(&daemon.delete_vm("a").await);
}

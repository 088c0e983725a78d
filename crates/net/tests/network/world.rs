//! What is outside: a router that the host is connected to, and a server behind it that
//! echoes TCP and UDP and answers DNS.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::process::Child;
use std::thread;

use crate::stage;

/// The router next to the host.
pub const GATEWAY: &str = "192.0.2.1";
/// The server.
pub const SERVER: &str = "198.51.100.1";
/// What every name resolves to.
pub const ANSWER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 77);
/// The port of the echo services (RFC 862).
pub const ECHO: u16 = 7;

/// The world's process.
pub fn serve() -> Result<(), String> {
    println!("apart");
    // The stage plugs the cable in.
    let mut line = String::new();
    std::io::stdin()
        .read_line(&mut line)
        .map_err(|error| error.to_string())?;
    stage::run("ip link set lo up")?;
    stage::run(&format!("ip addr add {SERVER}/32 dev lo"))?;
    stage::run(&format!("ip addr add {GATEWAY}/24 dev world0"))?;
    stage::run(&format!("ip link set world0 mtu {} up", stage::MTU))?;
    let everywhere = Ipv4Addr::UNSPECIFIED;
    let echo = TcpListener::bind((everywhere, ECHO)).map_err(|error| error.to_string())?;
    let dns = TcpListener::bind((everywhere, 53)).map_err(|error| error.to_string())?;
    // What comes back must come from where it was sent to.
    let udp_echo = UdpSocket::bind((SERVER, ECHO)).map_err(|error| error.to_string())?;
    let udp_dns = UdpSocket::bind((SERVER, 53)).map_err(|error| error.to_string())?;
    thread::spawn(move || serve_tcp(&echo, echo_stream));
    thread::spawn(move || serve_tcp(&dns, answer_stream));
    thread::spawn(move || serve_udp(&udp_echo, |datagram| Some(datagram.to_vec())));
    println!("serving");
    serve_udp(&udp_dns, answer);
    Ok(())
}

pub fn wait_until_it_is_apart(world: &mut Child) -> Result<(), String> {
    expect_line(world, "apart")
}

pub fn wait_until_it_serves(world: &mut Child) -> Result<(), String> {
    let mut input = world.stdin.take().ok_or("the world hears nothing")?;
    writeln!(input, "the cable is in").map_err(|error| error.to_string())?;
    expect_line(world, "serving")
}

/// Reads byte by byte, so as not to take what the next call waits for.
fn expect_line(world: &mut Child, expected: &str) -> Result<(), String> {
    let output = world.stdout.as_mut().ok_or("the world says nothing")?;
    let mut line = String::new();
    let mut output = BufReader::with_capacity(1, output);
    output
        .read_line(&mut line)
        .map_err(|error| error.to_string())?;
    match line.trim() == expected {
        true => Ok(()),
        false => Err(format!("the world says {line:?} and not {expected:?}")),
    }
}

pub fn serve_tcp(listener: &TcpListener, serve: fn(TcpStream) -> std::io::Result<()>) {
    for stream in listener.incoming().flatten() {
        thread::spawn(move || serve(stream));
    }
}

pub fn serve_udp(socket: &UdpSocket, reply: fn(&[u8]) -> Option<Vec<u8>>) {
    let mut datagram = vec![0; 65536];
    while let Ok((length, from)) = socket.recv_from(&mut datagram) {
        if let Some(reply) = reply(&datagram[..length]) {
            let _ = socket.send_to(&reply, from);
        }
    }
}

fn echo_stream(mut stream: TcpStream) -> std::io::Result<()> {
    let mut input = stream.try_clone()?;
    std::io::copy(&mut input, &mut stream)?;
    stream.shutdown(Shutdown::Write)
}

/// DNS over TCP puts the length in front (RFC 1035, section 4.2.2).
fn answer_stream(mut stream: TcpStream) -> std::io::Result<()> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut query)?;
    let Some(answer) = answer(&query) else {
        return Ok(());
    };
    let length = u16::try_from(answer.len()).expect("answers are short");
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(&answer)
}

/// Answers a query for an address (RFC 1035, section 4.1).
pub fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let mut answer = query.get(..12)?.to_vec();
    answer[2..8].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1]);
    answer.extend(query.get(12..)?);
    // A pointer to the question's name, A, IN, 60 s, four bytes.
    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    answer.extend(ANSWER.octets());
    Some(answer)
}

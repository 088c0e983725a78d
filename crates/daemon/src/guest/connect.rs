//! How a link begins: the byte stream, the hello, HTTP/2.

use std::io;
use std::time::Duration;

use banger_engine::{AgentStream, Machine, tail};
use banger_proto::hello::{
    HELLO_LEN, Kind, MAX_FRAME_SIZE, Message, Nonce, PROTOCOL_VERSION, RESYNC_LEN, Scanner, nonce,
};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::time::timeout;

use super::{ConnectError, Guest};

/// How long an answer to the first hello may take before the hello is repeated; each wait is
/// twice the one before.
const FIRST_REPEAT: Duration = Duration::from_secs(1);
/// How long a machine whose link has closed may take to end.
const END_LIMIT: Duration = Duration::from_secs(2);
/// What one stream may receive before its reader has taken it.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// What all streams together may receive before their readers have taken it: as much as
/// HTTP/2 allows, because a few readers that stand still would else hold up all others.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Number of the console's lines that an error keeps: room for a panic with its traces, of which
/// whoever shows it takes the telling ones.
const CONSOLE_LINES: usize = 100;

/// Waits for the agent of a machine, which may be starting, and begins a link with it.
///
/// Ends early when the machine does. Cancel-safe: a link that is called off can be begun anew.
///
/// # Errors
/// The machine ended, or its agent does not answer within `limit`.
pub async fn connect(machine: &dyn Machine, limit: Duration) -> Result<Guest, ConnectError> {
    let linked = tokio::select! {
        biased;
        linked = timeout(limit, link(machine)) => linked,
        exit = machine.exited() => return Err(ended(machine, exit)),
    };
    match linked {
        Ok(Err(error @ (ConnectError::Broken(_) | ConnectError::Open(_)))) => {
            // Mostly because the machine ends, which is the better thing to say.
            match timeout(END_LIMIT, machine.exited()).await {
                Ok(exit) => Err(ended(machine, exit)),
                Err(_) => Err(error),
            }
        }
        Ok(linked) => linked,
        Err(_) => Err(ConnectError::Silent {
            seconds: limit.as_secs(),
            console: console(machine),
        }),
    }
}

fn ended(machine: &dyn Machine, exit: banger_engine::Exit) -> ConnectError {
    ConnectError::Ended {
        exit: Box::new(exit),
        console: console(machine),
    }
}

fn console(machine: &dyn Machine) -> Vec<String> {
    tail(&machine.place().console_log(), CONSOLE_LINES)
}

async fn link(machine: &dyn Machine) -> Result<Guest, ConnectError> {
    let stream = machine.connect().await.map_err(ConnectError::Open)?;
    // What is buffered behind the acknowledgement belongs to HTTP/2, so that the buffer stays.
    let mut stream = BufReader::with_capacity(HELLO_LEN, stream);
    let version = handshake(&mut stream).await.map_err(ConnectError::Broken)?;
    let (requests, connection) = http2::Builder::new(TokioExecutor::new())
        .max_frame_size(MAX_FRAME_SIZE)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(ConnectError::Protocol)?;
    Ok(Guest::start(requests, connection, version))
}

/// Says hello until the agent acknowledges; returns the protocol version that both speak.
async fn handshake(stream: &mut BufReader<Box<dyn AgentStream>>) -> io::Result<u32> {
    let nonce = nonce();
    let hello = hello(nonce);
    let mut scanner = Scanner::default();
    let mut wait = FIRST_REPEAT;
    loop {
        stream.write_all(&hello).await?;
        stream.flush().await?;
        loop {
            match timeout(wait, acknowledgement(stream, &mut scanner, nonce)).await {
                Ok(version) => return version,
                // A guest that is not up has not taken the hello: it will find it.
                Err(_) if !stream.get_ref().all_taken()? => {}
                Err(_) => break,
            }
        }
        wait *= 2;
    }
}

fn hello(nonce: Nonce) -> Vec<u8> {
    let mut hello = vec![0; RESYNC_LEN];
    let message = Message {
        kind: Kind::Hello,
        nonce,
        version: PROTOCOL_VERSION,
    };
    hello.extend_from_slice(&message.encode());
    hello
}

/// Reads up to the acknowledgement of `nonce` and not a byte further. Cancel-safe: how far
/// it has come is in `scanner`.
async fn acknowledgement(
    stream: &mut BufReader<Box<dyn AgentStream>>,
    scanner: &mut Scanner,
    nonce: Nonce,
) -> io::Result<u32> {
    loop {
        let bytes = stream.fill_buf().await?;
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (length, mut found) = (bytes.len(), None);
        for (index, byte) in bytes.iter().enumerate() {
            let message = scanner.push(*byte);
            if let Some(message) = message.filter(|m| m.kind == Kind::Ack && m.nonce == nonce) {
                found = Some((index + 1, message.version.min(PROTOCOL_VERSION)));
                break;
            }
        }
        match found {
            Some((taken, version)) => {
                stream.consume(taken);
                return Ok(version);
            }
            None => stream.consume(length),
        }
    }
}

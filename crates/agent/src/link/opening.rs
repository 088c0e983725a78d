//! How a connection begins: see [`banger_proto::hello`].
//!
//! ```text
//! scanning --hello--> acknowledged --HTTP/2 preface--> open
//!                      │      ^
//!                      └hello─┘  a new nonce is acknowledged, a repeated one is not:
//!                                the daemon takes one answer and then speaks HTTP/2
//! ```

use std::io;
use std::time::Duration;

use banger_proto::hello::{Kind, Message, Nonce, PROTOCOL_VERSION, RESYNC_LEN, Scanner};
use bytes::Bytes;
use tokio::time::timeout;

use super::wire::{End, Wire};

/// What a client with prior knowledge sends first: RFC 9113, section 3.4.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a host may take to read the end of an earlier conversation.
const BREAK_OFF_LIMIT: Duration = Duration::from_secs(2);

/// Waits for a daemon, answers its hello, and leaves the wire at the HTTP/2 preface.
///
/// Returns the protocol version that both speak, or `None` when the wire has ended.
///
/// # Errors
/// The descriptor failed.
pub async fn open(wire: &Wire) -> io::Result<Option<u32>> {
    let mut opening = Opening::default();
    let tail = wire.take_tail();
    let mut chunk = vec![0; 4096];
    let mut bytes = Bytes::from(tail);
    loop {
        for (index, byte) in bytes.iter().enumerate() {
            match opening.push(*byte) {
                Step::Continue => {}
                Step::Acknowledge(nonce) => {
                    let acknowledgement = Message {
                        kind: Kind::Ack,
                        nonce,
                        version: PROTOCOL_VERSION,
                    };
                    wire.write_all(&acknowledgement.encode()).await?;
                }
                Step::Open(version) => {
                    let mut rest = PREFACE.to_vec();
                    rest.extend_from_slice(&bytes[index + 1..]);
                    wire.unread(rest.into());
                    return Ok(Some(version));
                }
            }
        }
        let count = wire.read(&mut chunk).await?;
        if count == 0 {
            match wire.end() {
                End::Final => return Ok(None),
                End::UntilReconnect => {
                    // Whoever connects next has another nonce.
                    opening = Opening::default();
                    wire.changed().await?;
                }
            }
        }
        bytes = Bytes::copy_from_slice(&chunk[..count]);
    }
}

/// Ends a conversation that an earlier agent has left: the host cannot see that its port was
/// closed. The same zeros as before a hello are a connection error to an HTTP/2 client.
///
/// # Errors
/// The descriptor failed.
pub async fn break_off(wire: &Wire) -> io::Result<()> {
    // While no host is connected, nobody takes them, and nobody needs them.
    match timeout(BREAK_OFF_LIMIT, wire.write_all(&[0; RESYNC_LEN])).await {
        Ok(result) => result,
        Err(_) => Ok(()),
    }
}

#[derive(Default)]
struct Opening {
    scanner: Scanner,
    acknowledged: Option<(Nonce, u32)>,
    /// The latest bytes, as long as the preface.
    window: [u8; PREFACE.len()],
}

enum Step {
    Continue,
    Acknowledge(Nonce),
    Open(u32),
}

impl Opening {
    fn push(&mut self, byte: u8) -> Step {
        if let Some(message) = self.scanner.push(byte)
            && message.kind == Kind::Hello
        {
            let known = self.acknowledged.map(|(nonce, _)| nonce);
            self.acknowledged = Some((message.nonce, message.version.min(PROTOCOL_VERSION)));
            return if known == Some(message.nonce) {
                Step::Continue
            } else {
                Step::Acknowledge(message.nonce)
            };
        }
        let Some((_, version)) = self.acknowledged else {
            return Step::Continue;
        };
        self.window.copy_within(1.., 0);
        self.window[PREFACE.len() - 1] = byte;
        if self.window == *PREFACE {
            return Step::Open(version);
        }
        Step::Continue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(nonce: u8) -> Vec<u8> {
        let message = Message {
            kind: Kind::Hello,
            nonce: [nonce; 16],
            version: 7,
        };
        let mut bytes = vec![0; 100];
        bytes.extend(message.encode());
        bytes
    }

    fn run(stream: &[u8]) -> (Vec<u8>, Option<(u32, usize)>) {
        let mut opening = Opening::default();
        let mut acknowledged = Vec::new();
        for (index, byte) in stream.iter().enumerate() {
            match opening.push(*byte) {
                Step::Continue => {}
                Step::Acknowledge(nonce) => acknowledged.push(nonce[0]),
                Step::Open(version) => return (acknowledged, Some((version, index + 1))),
            }
        }
        (acknowledged, None)
    }

    #[test]
    fn a_repeated_hello_is_acknowledged_once() {
        let stream = [hello(1), hello(1), PREFACE.to_vec()].concat();
        assert_eq!(run(&stream), (vec![1], Some((1, stream.len()))));
    }

    #[test]
    fn a_second_daemon_is_acknowledged_too() {
        let stream = [hello(1), b"PRI * H".to_vec(), hello(2), PREFACE.to_vec()].concat();
        assert_eq!(run(&stream), (vec![1, 2], Some((1, stream.len()))));
    }

    #[test]
    fn a_preface_without_a_hello_opens_nothing() {
        assert_eq!(run(PREFACE), (vec![], None));
    }
}

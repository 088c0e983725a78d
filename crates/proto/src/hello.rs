//! How the two ends of an agent link find each other, and find each other again.
//!
//! The link is one byte stream (a virtio-serial port, a vsock connection, a socket). The
//! daemon may die and a new one connect while old bytes are still in flight, so the stream
//! begins anew with a handshake that both ends can find in the middle of rubbish:
//!
//! ```text
//! daemon -> agent   RESYNC_LEN zero bytes, MAGIC_HELLO, nonce, version
//! agent  -> daemon  MAGIC_ACK, the same nonce, version
//! ```
//!
//! The zeros end whatever HTTP/2 frame the previous connection left unfinished (none is
//! longer than [`MAX_FRAME_SIZE`]), and the next nine zeros are a `DATA` frame on stream 0,
//! which RFC 9113, section 6.1 makes a connection error: an agent that has not noticed the
//! daemon's death notices now. The daemon repeats its hello while no answer with its own
//! nonce comes. After the handshake the stream carries HTTP/2 with prior knowledge, the
//! agent being the server.

/// Largest HTTP/2 frame that either end sends on an agent link.
pub const MAX_FRAME_SIZE: u32 = 64 * 1024;
/// Number of zero bytes in front of a hello: the longest frame, its header, and a zero header.
pub const RESYNC_LEN: usize = MAX_FRAME_SIZE as usize + 9 + 9;
/// Number of bytes of a hello or an acknowledgement.
pub const HELLO_LEN: usize = 16 + 16 + 4;
/// The version of the agent protocol that this build speaks.
pub const PROTOCOL_VERSION: u32 = 1;

const MAGIC_HELLO: [u8; 16] = *b"\xffbanger\x01hello\r\n\n";
const MAGIC_ACK: [u8; 16] = *b"\xffbanger\x01ackno\r\n\n";

/// Tells one connection from another.
pub type Nonce = [u8; 16];

/// Which of the two handshake messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The daemon's.
    Hello,
    /// The agent's answer.
    Ack,
}

/// One handshake message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Whose message it is.
    pub kind: Kind,
    /// The daemon's choice, repeated by the agent.
    pub nonce: Nonce,
    /// The highest protocol version that the sender speaks. Both use the lower of the two.
    pub version: u32,
}

/// Makes a nonce for a new connection.
pub fn nonce() -> Nonce {
    let mut nonce = [0u8; 16];
    getrandom::fill(&mut nonce).expect("the kernel's random source does not fail after boot");
    nonce
}

impl Message {
    /// The message's bytes, without the zeros that go in front of a hello.
    pub fn encode(&self) -> [u8; HELLO_LEN] {
        let mut bytes = [0u8; HELLO_LEN];
        bytes[..16].copy_from_slice(match self.kind {
            Kind::Hello => &MAGIC_HELLO,
            Kind::Ack => &MAGIC_ACK,
        });
        bytes[16..32].copy_from_slice(&self.nonce);
        bytes[32..].copy_from_slice(&self.version.to_be_bytes());
        bytes
    }
}

/// Finds handshake messages in a stream that may begin with rubbish.
///
/// Feed it bytes one at a time: it never takes one that belongs to what follows a message.
#[derive(Debug)]
pub struct Scanner {
    window: [u8; HELLO_LEN],
}

impl Default for Scanner {
    fn default() -> Self {
        Self {
            window: [0; HELLO_LEN],
        }
    }
}

impl Scanner {
    /// Takes the next byte; returns the message that it completes.
    pub fn push(&mut self, byte: u8) -> Option<Message> {
        self.window.copy_within(1.., 0);
        self.window[HELLO_LEN - 1] = byte;
        let kind = match self.window[..16].try_into().expect("16 bytes") {
            MAGIC_HELLO => Kind::Hello,
            MAGIC_ACK => Kind::Ack,
            _ => return None,
        };
        Some(Message {
            kind,
            nonce: self.window[16..32].try_into().expect("16 bytes"),
            version: u32::from_be_bytes(self.window[32..].try_into().expect("4 bytes")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_message_is_found_behind_any_rubbish(
            rubbish in proptest::collection::vec(any::<u8>(), 0..300),
            nonce in any::<[u8; 16]>(),
            version in any::<u32>(),
            hello in any::<bool>(),
        ) {
            let kind = if hello { Kind::Hello } else { Kind::Ack };
            let message = Message { kind, nonce, version };
            let mut stream = rubbish;
            stream.extend(message.encode());
            let (last, rest) = stream.split_last().unwrap();
            let mut scanner = Scanner::default();
            for byte in rest {
                prop_assert_eq!(scanner.push(*byte), None);
            }
            prop_assert_eq!(scanner.push(*last), Some(message));
        }
    }
}

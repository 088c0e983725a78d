//! Frames of an exec stream: what goes both ways between the CLI and a guest command.
//!
//! The CLI and the agent speak these frames with each other; the daemon passes the bytes on
//! without looking. A frame is one kind byte, the payload's length as a big-endian `u32`,
//! and the payload:
//!
//! | kind | from   | name      | payload                                             |
//! |------|--------|-----------|-----------------------------------------------------|
//! | 0    | client | start     | JSON of [`crate::agent::ExecRequest`], first frame  |
//! | 1    | client | stdin     | bytes; an empty payload is the end of input         |
//! | 2    | client | resize    | columns, rows: big-endian `u16` each                |
//! | 3    | client | signal    | signal number: big-endian `u32`                     |
//! | 16   | agent  | started   | JSON of [`crate::agent::ExecStarted`]               |
//! | 17   | agent  | stdout    | bytes                                               |
//! | 18   | agent  | stderr    | bytes                                               |
//! | 19   | agent  | exit      | JSON of [`crate::exit::ExitStatus`], last frame     |
//! | 20   | agent  | refused   | JSON of [`crate::agent::ExecRefused`], last frame   |
//! | 21   | agent  | taken     | number of bytes of stdin: big-endian `u32`          |
//!
//! **Input that the command does not read** must not keep the frames behind it from being
//! heard: a signal is worth most for just such a command. A client that sets
//! [`crate::agent::ExecRequest::acknowledge_input`] is told with `started` how much input may be on
//! its way ([`crate::agent::ExecStarted::input_window`]), sends no more than that, and may go on
//! when `taken` tells what the command, or what stands in for it when it reads no more, has taken
//! off. The agent has room for the whole window, so that it always reads on. Without the
//! acknowledgement, or with an agent of an older version, whose window is 0, input is held up by
//! the stream itself, and so is what follows it.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::agent::{ExecRefused, ExecRequest, ExecStarted};
use crate::exit::ExitStatus;

/// Longest payload of a frame. Readers refuse longer ones.
pub const MAX_PAYLOAD: usize = 1024 * 1024;
/// Length of the kind byte and the payload's length.
pub const HEADER_LEN: usize = 5;

/// One frame of an exec stream.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// What to run; the client's first frame.
    Start(Box<ExecRequest>),
    /// Bytes for the command's input; empty at its end.
    Stdin(Bytes),
    /// The client's terminal has changed its size.
    Resize {
        /// Width in characters.
        columns: u16,
        /// Height in characters.
        rows: u16,
    },
    /// A signal for the command's process group.
    Signal(i32),
    /// The command runs.
    Started(ExecStarted),
    /// Bytes of the command's output (of everything, on a PTY).
    Stdout(Bytes),
    /// Bytes of the command's error output.
    Stderr(Bytes),
    /// The command ended; the agent's last frame.
    Exit(ExitStatus),
    /// The command could not be started; the agent's last frame.
    Refused(ExecRefused),
    /// So many bytes of input wait no more.
    Taken(u32),
}

/// A kind of frame whose payload is plain bytes, for writers that put the header and the
/// payload on the wire themselves and thereby copy nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataKind {
    /// As [`Frame::Stdin`].
    Stdin,
    /// As [`Frame::Stdout`].
    Stdout,
    /// As [`Frame::Stderr`].
    Stderr,
}

impl DataKind {
    /// What stands before a payload of `length` bytes, which is at most [`MAX_PAYLOAD`].
    pub fn header(self, length: usize) -> [u8; HEADER_LEN] {
        debug_assert!(length <= MAX_PAYLOAD);
        let length = u32::try_from(length).expect("payloads are at most MAX_PAYLOAD");
        let [a, b, c, d] = length.to_be_bytes();
        let kind = match self {
            Self::Stdin => 1,
            Self::Stdout => 17,
            Self::Stderr => 18,
        };
        [kind, a, b, c, d]
    }
}

/// Why bytes are not frames.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// No frame has this kind.
    #[error("unknown frame kind {0}")]
    UnknownKind(u8),
    /// The length is beyond [`MAX_PAYLOAD`].
    #[error("a frame of {0} bytes is over the limit of {MAX_PAYLOAD}")]
    TooLong(usize),
    /// The payload does not fit the kind.
    #[error("frame kind {0} has a malformed payload")]
    Malformed(u8),
    /// The payload is no JSON of the expected type.
    #[error("frame kind {kind} has a malformed payload")]
    Json {
        /// The frame's kind byte.
        kind: u8,
        /// What the JSON reader said.
        #[source]
        source: serde_json::Error,
    },
}

impl Frame {
    /// Appends the frame's bytes. Stdin, stdout and stderr payloads must not be longer than
    /// [`MAX_PAYLOAD`]: the caller reads no more at once.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Start(request) => put_json(out, 0, request),
            Self::Stdin(bytes) => put(out, 1, bytes),
            Self::Resize { columns, rows } => {
                let mut payload = [0u8; 4];
                payload[..2].copy_from_slice(&columns.to_be_bytes());
                payload[2..].copy_from_slice(&rows.to_be_bytes());
                put(out, 2, &payload);
            }
            Self::Signal(signal) => put(out, 3, &signal.to_be_bytes()),
            Self::Started(started) => put_json(out, 16, started),
            Self::Stdout(bytes) => put(out, 17, bytes),
            Self::Stderr(bytes) => put(out, 18, bytes),
            Self::Exit(status) => put_json(out, 19, status),
            Self::Refused(refused) => put_json(out, 20, refused),
            Self::Taken(bytes) => put(out, 21, &bytes.to_be_bytes()),
        }
    }

    /// The frame's bytes.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::new();
        self.encode(&mut out);
        out.freeze()
    }

    /// Takes one whole frame from the front of `buffer`; `None` until there is one.
    ///
    /// # Errors
    /// The bytes cannot be the beginning of a frame. The stream is then of no more use.
    pub fn decode(buffer: &mut BytesMut) -> Result<Option<Self>, FrameError> {
        if buffer.len() < HEADER_LEN {
            return Ok(None);
        }
        let kind = buffer[0];
        if !matches!(kind, 0..=3 | 16..=21) {
            return Err(FrameError::UnknownKind(kind));
        }
        let length = u32::from_be_bytes(buffer[1..HEADER_LEN].try_into().expect("4 bytes"));
        let length = usize::try_from(length).expect("a u32 fits");
        if length > MAX_PAYLOAD {
            return Err(FrameError::TooLong(length));
        }
        if buffer.len() < HEADER_LEN + length {
            buffer.reserve(HEADER_LEN + length - buffer.len());
            return Ok(None);
        }
        buffer.advance(HEADER_LEN);
        let payload = buffer.split_to(length).freeze();
        Self::from_payload(kind, payload).map(Some)
    }

    fn from_payload(kind: u8, payload: Bytes) -> Result<Self, FrameError> {
        fn json<T: serde::de::DeserializeOwned>(kind: u8, bytes: &[u8]) -> Result<T, FrameError> {
            serde_json::from_slice(bytes).map_err(|source| FrameError::Json { kind, source })
        }
        let four = || <[u8; 4]>::try_from(&payload[..]).map_err(|_| FrameError::Malformed(kind));
        Ok(match kind {
            0 => Self::Start(json(kind, &payload)?),
            1 => Self::Stdin(payload),
            2 => {
                let [c0, c1, r0, r1] = four()?;
                Self::Resize {
                    columns: u16::from_be_bytes([c0, c1]),
                    rows: u16::from_be_bytes([r0, r1]),
                }
            }
            3 => Self::Signal(i32::from_be_bytes(four()?)),
            16 => Self::Started(json(kind, &payload)?),
            17 => Self::Stdout(payload),
            18 => Self::Stderr(payload),
            19 => Self::Exit(json(kind, &payload)?),
            20 => Self::Refused(json(kind, &payload)?),
            21 => Self::Taken(u32::from_be_bytes(four()?)),
            _ => return Err(FrameError::UnknownKind(kind)),
        })
    }
}

fn put(out: &mut BytesMut, kind: u8, payload: &[u8]) {
    debug_assert!(payload.len() <= MAX_PAYLOAD);
    let length = u32::try_from(payload.len()).expect("payloads are at most MAX_PAYLOAD");
    out.reserve(HEADER_LEN + payload.len());
    out.put_u8(kind);
    out.put_u32(length);
    out.put_slice(payload);
}

fn put_json<T: serde::Serialize>(out: &mut BytesMut, kind: u8, value: &T) {
    let payload = serde_json::to_vec(value).expect("protocol types have only string keys");
    put(out, kind, &payload);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames() -> impl Strategy<Value = Frame> {
        let bytes = proptest::collection::vec(any::<u8>(), 0..2000).prop_map(Bytes::from);
        prop_oneof![
            bytes.clone().prop_map(Frame::Stdin),
            bytes.clone().prop_map(Frame::Stdout),
            bytes.prop_map(Frame::Stderr),
            (any::<u16>(), any::<u16>())
                .prop_map(|(columns, rows)| Frame::Resize { columns, rows }),
            any::<i32>().prop_map(Frame::Signal),
            any::<u32>().prop_map(Frame::Taken),
            any::<u8>().prop_map(|code| Frame::Exit(ExitStatus::Code(code))),
            "[a-z /-]{0,20}".prop_map(|arg| Frame::Start(Box::new(ExecRequest {
                command: vec![arg],
                ..ExecRequest::default()
            }))),
        ]
    }

    proptest! {
        #[test]
        fn frames_survive_any_split(
            frames in proptest::collection::vec(frames(), 0..8),
            step in 1usize..700,
        ) {
            let mut stream = BytesMut::new();
            frames.iter().for_each(|frame| frame.encode(&mut stream));
            let mut buffer = BytesMut::new();
            let mut read = Vec::new();
            for chunk in stream.chunks(step) {
                buffer.extend_from_slice(chunk);
                while let Some(frame) = Frame::decode(&mut buffer).unwrap() {
                    read.push(frame);
                }
            }
            prop_assert_eq!(read, frames);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn a_header_and_its_payload_are_the_frame(
            payload in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let bytes = Bytes::from(payload);
            for (kind, frame) in [
                (DataKind::Stdin, Frame::Stdin(bytes.clone())),
                (DataKind::Stdout, Frame::Stdout(bytes.clone())),
                (DataKind::Stderr, Frame::Stderr(bytes.clone())),
            ] {
                let written = [&kind.header(bytes.len())[..], &bytes[..]].concat();
                prop_assert_eq!(&frame.to_bytes()[..], &written[..]);
            }
        }

        #[test]
        fn rubbish_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = Frame::decode(&mut buffer) {}
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_it_is_allocated() {
        let mut buffer = BytesMut::from(&[1u8, 0xff, 0xff, 0xff, 0xff][..]);
        assert!(matches!(
            Frame::decode(&mut buffer),
            Err(FrameError::TooLong(_))
        ));
    }
}

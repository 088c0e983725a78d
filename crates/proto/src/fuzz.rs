//! What strangers' bytes must never do, whatever they are: bodies of the fuzz targets in `fuzz/`,
//! which the test below feeds with less.
//!
//! Each takes bytes and returns, or panics where something is wrong.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use bytes::BytesMut;
use serde::{Serialize, de::DeserializeOwned};

use crate::api;
use crate::error::ApiError;
use crate::frame::Frame;
use crate::hello::Scanner;
use crate::id::{ImageId, VmId};
use crate::name::{ArtifactName, VmName};
use crate::reference::{Digest, ImageReference};
use crate::size::ByteSize;

/// Any bytes as a stream of frames, however it comes in pieces: a frame that is read is written
/// the same way again.
pub fn frames(bytes: &[u8]) {
    let whole = decoded(bytes, bytes.len().max(1));
    assert_eq!(decoded(bytes, 3), whole, "pieces make a difference");
    for frame in whole {
        let mut again = BytesMut::from(&frame.to_bytes()[..]);
        let read = Frame::decode(&mut again);
        assert_eq!(read.expect("it was written by us"), Some(frame));
        assert!(again.is_empty());
    }
}

fn decoded(bytes: &[u8], piece: usize) -> Vec<Frame> {
    let (mut buffer, mut frames) = (BytesMut::new(), Vec::new());
    for piece in bytes.chunks(piece) {
        buffer.extend_from_slice(piece);
        loop {
            match Frame::decode(&mut buffer) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return frames,
            }
        }
    }
    frames
}

/// Any bytes as the beginning of a link: a handshake that is found is one.
pub fn handshake(bytes: &[u8]) {
    let mut scanner = Scanner::default();
    let mut rest = bytes;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if let Some(message) = scanner.push(*byte) {
            let read = &bytes[..bytes.len() - rest.len()];
            assert!(read.ends_with(&message.encode()), "{message:?}");
        }
    }
}

/// Any bytes as what a client asks for: what is understood is written and understood again.
pub fn requests(bytes: &[u8]) {
    json::<api::CreateVm>(bytes);
    json::<api::SetVm>(bytes);
    json::<api::KillVm>(bytes);
    json::<api::PullImage>(bytes);
    json::<api::RegisterImage>(bytes);
    json::<api::RenameImage>(bytes);
    json::<api::Vm>(bytes);
    json::<api::Image>(bytes);
    json::<api::Event>(bytes);
    json::<api::Operation>(bytes);
    json::<crate::agent::ExecRequest>(bytes);
    json::<crate::agent::Configure>(bytes);
    json::<ApiError>(bytes);
}

fn json<T: DeserializeOwned + Serialize>(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(bytes) else {
        return;
    };
    let written = serde_json::to_value(&value).expect("its keys are strings");
    let again: T = serde_json::from_value(written.clone()).expect("it was written by us");
    let again = serde_json::to_value(&again).expect("its keys are strings");
    assert_eq!(again, written);
}

/// Any bytes as the words that people write: names, references, sizes, ids. What is understood
/// shows itself in a way that is understood the same.
pub fn words(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    shown::<VmName>(text);
    shown::<ArtifactName>(text);
    shown::<VmId>(text);
    shown::<ImageId>(text);
    shown::<Digest>(text);
    shown::<ByteSize>(text);
    shown::<ImageReference>(text);
    if let Ok(reference) = text.parse::<ImageReference>() {
        // It must be a name as they are here.
        let _ = reference.suggested_name();
        let _ = (reference.is_on_loopback(), reference.target());
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(Digest::of(digest.bytes()), digest);
    }
}

fn shown<T: FromStr + Display + PartialEq + Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        let again = value.to_string().parse::<T>();
        assert_eq!(again.ok(), Some(value), "{text:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn whatever_comes_is_understood_or_refused(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            text in "[a-zA-Z0-9:/@._ -]{0,80}",
        ) {
            frames(&bytes);
            handshake(&bytes);
            requests(&bytes);
            words(&bytes);
            words(text.as_bytes());
        }
    }
}

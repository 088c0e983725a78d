//! Datagrams on a byte stream: two bytes of length, the higher first, then so many bytes.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Longest datagram, which is more than UDP can carry.
pub const DATAGRAM_MAX: usize = u16::MAX as usize;

/// The datagram as it goes on a stream. What is longer than [`DATAGRAM_MAX`] is cut off.
pub fn encode(datagram: &[u8]) -> Bytes {
    let datagram = &datagram[..datagram.len().min(DATAGRAM_MAX)];
    let mut bytes = BytesMut::with_capacity(2 + datagram.len());
    let length = u16::try_from(datagram.len()).expect("it was cut off");
    bytes.put_u16(length);
    bytes.put_slice(datagram);
    bytes.freeze()
}

/// Takes the next whole datagram off what has come; `None` if there is none yet.
pub fn decode(bytes: &mut BytesMut) -> Option<Bytes> {
    let length = usize::from(u16::from_be_bytes([*bytes.first()?, *bytes.get(1)?]));
    if bytes.len() < 2 + length {
        return None;
    }
    bytes.advance(2);
    Some(bytes.split_to(length).freeze())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn datagrams_stay_apart_wherever_the_stream_is_cut(
            datagrams in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..8),
            cut in 1_usize..50,
        ) {
            let stream: Vec<u8> = datagrams.iter().flat_map(|datagram| encode(datagram)).collect();
            let (mut come, mut found) = (BytesMut::new(), Vec::new());
            for piece in stream.chunks(cut) {
                come.extend_from_slice(piece);
                while let Some(datagram) = decode(&mut come) {
                    found.push(datagram.to_vec());
                }
            }
            prop_assert_eq!(found, datagrams);
            prop_assert!(come.is_empty());
        }
    }

    #[test]
    fn what_no_datagram_can_be_is_cut_off() {
        assert_eq!(encode(&vec![0; 70_000]).len(), 2 + DATAGRAM_MAX);
    }
}

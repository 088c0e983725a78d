//! Copies a stream into a file and leaves holes where it has zeros, in no more room than there
//! is.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use crate::disk::Room;

/// What is written or left out in one piece.
const BLOCK: usize = 64 << 10;

/// Copies all of `from` into the empty file `to`; returns its length.
///
/// # Errors
/// Reading or writing fails, or the file system would be full.
pub(crate) fn copy(from: &mut impl Read, to: &mut File) -> io::Result<u64> {
    let mut buffer = vec![0; BLOCK];
    let mut length = 0;
    let mut room = Room::default();
    loop {
        let count = fill(from, &mut buffer)?;
        let block = &buffer[..count];
        if block.iter().any(|byte| *byte != 0) {
            room.before(to, count as u64).map_err(io::Error::other)?;
            to.write_all_at(block, length)?;
        }
        length += count as u64;
        if count < BLOCK {
            to.set_len(length)?;
            return Ok(length);
        }
    }
}

/// Reads until the buffer is full or the stream ends.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut count = 0;
    while count < buffer.len() {
        match from.read(&mut buffer[count..]) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn zeros_take_no_room() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = tempfile::tempfile_in(directory.path()).unwrap();
        let mut stream = io::repeat(0).take(64 << 20).chain(&b"end"[..]);
        let length = copy(&mut stream, &mut file).unwrap();
        assert_eq!(length, (64 << 20) + 3);
        assert!(file.metadata().unwrap().blocks() * 512 <= 2 * BLOCK as u64);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn every_stream_arrives_as_it_was(runs in proptest::collection::vec((0..200_000usize, any::<bool>()), 0..6)) {
            let content: Vec<u8> = runs
                .iter()
                .flat_map(|(length, zero)| std::iter::repeat_n(u8::from(!zero), *length))
                .collect();
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("file");
            let mut file = File::create_new(&path).unwrap();
            let length = copy(&mut &content[..], &mut file).unwrap();
            prop_assert_eq!(length, content.len() as u64);
            prop_assert_eq!(std::fs::read(&path).unwrap(), content);
        }
    }
}

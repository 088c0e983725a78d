//! Files with holes, without the holes: GNU tar's form 1.0 ("Storing Sparse Files" in its manual).
//!
//! ```text
//! PAX records: GNU.sparse.major=1, minor=0, realsize=N
//! content:     number of pieces, then offset and length of each, one decimal number a line,
//!              zeros up to the next 512 bytes; then the pieces themselves
//! ```

use std::collections::VecDeque;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// The unit of archives, in bytes.
const BLOCK: usize = 512;
/// What holes must save before they are worth a map, in bytes.
const WORTH: u64 = 64 * 1024;
/// Most pieces that a reader of banger's takes.
const PIECES_MAX: usize = 1 << 16;

/// Data between holes: offset and length.
pub(super) type Piece = (u64, u64);

/// Where a file's data is, if it has holes that are worth leaving out.
pub(super) fn pieces(file: &File, metadata: &Metadata) -> io::Result<Option<Vec<Piece>>> {
    let length = metadata.len();
    if metadata.blocks() * 512 + WORTH > length {
        return Ok(None);
    }
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < length {
        let begin = match seek(file, SeekFrom::Data(at)) {
            Ok(begin) => begin,
            // Nothing but a hole follows.
            Err(Errno::NXIO) => break,
            // The file system knows of no holes.
            Err(Errno::INVAL) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let end = seek(file, SeekFrom::Hole(begin))?.min(length);
        if begin >= end {
            break;
        }
        pieces.push((begin, end - begin));
        at = end;
    }
    Ok((pieces.len() <= PIECES_MAX).then_some(pieces))
}

/// The PAX records before a file of `length` bytes.
pub(super) fn records(length: u64) -> Vec<(String, Vec<u8>)> {
    [
        ("GNU.sparse.major", "1".to_owned()),
        ("GNU.sparse.minor", "0".to_owned()),
        ("GNU.sparse.realsize", length.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value.into_bytes()))
    .into()
}

/// The map before the pieces.
pub(super) fn map(pieces: &[Piece]) -> Vec<u8> {
    let mut map = format!("{}\n", pieces.len()).into_bytes();
    for (offset, length) in pieces {
        map.extend_from_slice(format!("{offset}\n{length}\n").as_bytes());
    }
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

/// Bytes of all pieces.
pub(super) fn stored(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|(_, length)| length).sum()
}

/// The pieces, one behind the other. What has become shorter meanwhile reads as zeros.
pub(super) struct Content<'a> {
    file: &'a File,
    pieces: VecDeque<Piece>,
}

impl<'a> Content<'a> {
    pub(super) fn new(file: &'a File, pieces: Vec<Piece>) -> Self {
        Self {
            file,
            pieces: pieces.into(),
        }
    }
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some((offset, length)) = self.pieces.front_mut() else {
            return Ok(0);
        };
        let wanted = buffer
            .len()
            .min(usize::try_from(*length).unwrap_or(usize::MAX));
        let read = match self.file.read_at(&mut buffer[..wanted], *offset)? {
            0 => {
                buffer[..wanted].fill(0);
                wanted
            }
            read => read,
        };
        *offset += read as u64;
        *length -= read as u64;
        if *length == 0 {
            self.pieces.pop_front();
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sparse_file(write: &[(u64, &[u8])], length: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        for (at, bytes) in write {
            file.write_all_at(bytes, *at).unwrap();
        }
        file
    }

    #[test]
    fn the_data_of_a_file_with_holes_comes_piece_by_piece() {
        let file = sparse_file(&[(1 << 20, b"begin"), (8 << 20, b"end")], 9 << 20);
        let Some(found) = pieces(&file, &file.metadata().unwrap()).unwrap() else {
            eprintln!("skipped: the file system of temporary files knows of no holes");
            return;
        };
        assert_eq!(found.len(), 2, "{found:?}");
        let mut content = Vec::new();
        Content::new(&file, found.clone())
            .read_to_end(&mut content)
            .unwrap();
        assert_eq!(content.len() as u64, stored(&found));
        assert_eq!(&content[..5], b"begin");
        let second = usize::try_from(found[0].1).unwrap();
        assert_eq!(&content[second..second + 3], b"end");
        let map = map(&found);
        assert_eq!(map.len() % BLOCK, 0);
        assert!(map.starts_with(format!("2\n{}\n", found[0].0).as_bytes()));
    }

    #[test]
    fn a_file_without_holes_has_no_map_and_one_of_holes_alone_an_empty_one() {
        let full = sparse_file(&[(0, &[1; 100_000])], 100_000);
        assert_eq!(pieces(&full, &full.metadata().unwrap()).unwrap(), None);
        let empty = sparse_file(&[], 10 << 20);
        let found = pieces(&empty, &empty.metadata().unwrap()).unwrap();
        assert!(found.is_none_or(|pieces| pieces.is_empty()));
    }
}

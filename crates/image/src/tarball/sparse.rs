//! Files whose holes an archive leaves out: where the pieces lie that it does hold.
//!
//! Three forms are in use (GNU tar's manual, "Storing Sparse Files"): the old one in the header
//! and the blocks behind it, version 0.1 in a PAX record, and version 1.0 before the content.

use std::io::{self, Read};

use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use super::{BLOCK, Content, Reader, Records, TarError, read_error, text};

/// Most pieces of one file.
const MOST_PIECES: usize = 1 << 16;
/// Most digits of a number.
const LONGEST_NUMBER: usize = 20;

/// Where the pieces of a file are.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sparse {
    /// (offset, length), ascending and apart.
    pieces: Vec<(u64, u64)>,
    real_size: u64,
}

impl Sparse {
    /// The map in PAX records of version 0.1, if there is one. Version 0.0 repeats records,
    /// and is not written any more.
    pub(super) fn of_records(records: &Records) -> Result<Option<Self>, TarError> {
        if records.contains_key(&b"GNU.sparse.offset"[..]) {
            return Err(TarError::Extension);
        }
        let Some(map) = records.get(&b"GNU.sparse.map"[..]) else {
            return Ok(None);
        };
        let real_size = Self::size_of_records(records)?.ok_or(TarError::Extension)?;
        let numbers = text(map)?
            .split(',')
            .filter(|number| !number.is_empty())
            .map(|number| number.parse().map_err(|_| TarError::Extension));
        let numbers = numbers.collect::<Result<Vec<u64>, _>>()?;
        Self::new(pairs(&numbers)?, real_size).map(Some)
    }

    /// The file's size in PAX records: that of the entry is what the archive holds of it.
    pub(super) fn size_of_records(records: &Records) -> Result<Option<u64>, TarError> {
        let size = records
            .get(&b"GNU.sparse.realsize"[..])
            .or_else(|| records.get(&b"GNU.sparse.size"[..]));
        size.map(|size| text(size)?.parse().map_err(|_| TarError::Extension))
            .transpose()
    }

    /// Whether the map is of version 1.0.
    pub(super) fn is_before_content(records: &Records) -> bool {
        records
            .get(&b"GNU.sparse.major"[..])
            .is_some_and(|major| major == b"1")
    }

    /// Reads the map of version 1.0: decimal numbers, one a line, the first of which says how
    /// many pieces there are; padded to a whole block.
    pub(super) fn of_content<R: Read>(
        real_size: u64,
        reader: &mut Reader<R>,
    ) -> Result<Self, TarError> {
        let mut read = 0;
        let mut number = || -> Result<u64, TarError> {
            let mut digits = Vec::new();
            loop {
                let mut byte = [0];
                reader.content().read_exact(&mut byte).map_err(read_error)?;
                read += 1;
                match byte[0] {
                    b'\n' => return text(&digits)?.parse().map_err(|_| TarError::Extension),
                    _ if digits.len() > LONGEST_NUMBER => return Err(TarError::Extension),
                    digit => digits.push(digit),
                }
            }
        };
        let count = number()?;
        if count > MOST_PIECES as u64 {
            return Err(TarError::Extension);
        }
        let mut pieces = Vec::new();
        for _ in 0..count {
            pieces.push((number()?, number()?));
        }
        let padding = u64::next_multiple_of(read, BLOCK) - read;
        let mut content = reader.content();
        let skipped = io::copy(&mut content.by_ref().take(padding), &mut io::sink());
        match skipped.map_err(TarError::Read)? == padding {
            true => Self::new(pieces, real_size),
            false => Err(TarError::Truncated),
        }
    }

    /// The map of the old form: four pieces in the header, and 21 in each block behind it.
    pub(super) fn of_gnu_header(header: &Header, stream: &mut impl Read) -> Result<Self, TarError> {
        let gnu = header.as_gnu().ok_or(TarError::Header)?;
        let real_size = gnu.real_size().map_err(|_| TarError::Header)?;
        let mut pieces = Vec::new();
        take_pieces(&gnu.sparse, &mut pieces)?;
        let mut goes_on = gnu.is_extended();
        while goes_on {
            let mut block = GnuExtSparseHeader::new();
            stream
                .read_exact(block.as_mut_bytes())
                .map_err(read_error)?;
            take_pieces(&block.sparse, &mut pieces)?;
            goes_on = block.is_extended();
        }
        Self::new(pieces, real_size)
    }

    fn new(pieces: Vec<(u64, u64)>, real_size: u64) -> Result<Self, TarError> {
        let mut end = 0;
        for (offset, length) in &pieces {
            let next = offset.checked_add(*length).ok_or(TarError::Extension)?;
            if *offset < end || next > real_size {
                return Err(TarError::Extension);
            }
            end = next;
        }
        match pieces.len() <= MOST_PIECES {
            true => Ok(Self { pieces, real_size }),
            false => Err(TarError::Extension),
        }
    }

    /// Bytes of the file.
    pub(super) fn real_size(&self) -> u64 {
        self.real_size
    }

    /// Bytes of it that the archive holds.
    pub(super) fn stored(&self) -> u64 {
        self.pieces.iter().map(|(_, length)| length).sum()
    }

    /// The whole file, given what the archive holds of it.
    pub(super) fn expand<'a, R: Read>(&'a self, content: Content<'a, R>) -> impl Read + 'a {
        Expanded {
            content,
            pieces: self.pieces.iter(),
            piece: None,
            at: 0,
            size: self.real_size,
        }
    }
}

struct Expanded<'a, R> {
    content: Content<'a, R>,
    pieces: std::slice::Iter<'a, (u64, u64)>,
    /// The piece that we are in or before.
    piece: Option<(u64, u64)>,
    at: u64,
    size: u64,
}

impl<R: Read> Read for Expanded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self
            .piece
            .is_none_or(|(offset, length)| offset + length <= self.at)
        {
            self.piece = self.pieces.next().copied();
            if self.piece.is_none() {
                break;
            }
        }
        let (offset, end) = match self.piece {
            Some((offset, length)) => (offset, offset + length),
            None => (self.size, self.size),
        };
        let room = |until: u64| {
            usize::try_from(until - self.at).map_or(buffer.len(), |left| left.min(buffer.len()))
        };
        let count = if self.at < offset {
            let count = room(offset);
            buffer[..count].fill(0);
            count
        } else {
            let count = room(end);
            self.content.read(&mut buffer[..count])?
        };
        self.at += count as u64;
        Ok(count)
    }
}

fn take_pieces(headers: &[GnuSparseHeader], pieces: &mut Vec<(u64, u64)>) -> Result<(), TarError> {
    for header in headers.iter().filter(|header| !header.is_empty()) {
        if pieces.len() >= MOST_PIECES {
            return Err(TarError::Extension);
        }
        let offset = header.offset().map_err(|_| TarError::Header)?;
        let length = header.length().map_err(|_| TarError::Header)?;
        pieces.push((offset, length));
    }
    Ok(())
}

fn pairs(numbers: &[u64]) -> Result<Vec<(u64, u64)>, TarError> {
    let pairs = numbers.chunks_exact(2);
    match pairs.remainder().is_empty() {
        true => Ok(pairs.map(|pair| (pair[0], pair[1])).collect()),
        false => Err(TarError::Extension),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tarball::End;
    use crate::tool::Tool;
    use std::io::{Seek, SeekFrom, Write};

    const TAR: Tool = Tool {
        name: "tar",
        package: "tar",
    };

    /// A file with seven pieces, so that the old form needs a block behind its header.
    fn sparse_file(path: &std::path::Path) -> Vec<u8> {
        let mut file = std::fs::File::create_new(path).unwrap();
        for piece in 0..7u64 {
            file.seek(SeekFrom::Start(piece * 300_000)).unwrap();
            file.write_all(format!("piece {piece}").as_bytes()).unwrap();
        }
        file.set_len(3_000_000).unwrap();
        std::fs::read(path).unwrap()
    }

    #[test]
    fn files_that_gnu_tar_stored_without_holes_are_whole() {
        let directory = tempfile::tempdir().unwrap();
        let original = sparse_file(&directory.path().join("file"));
        for (format, version) in [
            ("gnu", None),
            ("posix", Some("0.1")),
            ("posix", Some("1.0")),
        ] {
            let mut command = banger_process::command(TAR.find().unwrap());
            command
                .args(["--create", "--sparse", "--format", format])
                .args(version.map(|version| format!("--sparse-version={version}")))
                .arg("--directory")
                .arg(directory.path())
                .arg("file");
            let archive = command.output().unwrap().stdout;
            assert!(archive.len() < 200_000, "{} bytes", archive.len());
            let mut reader = Reader::new(&archive[..], End::Marked);
            let entry = reader.next_entry().unwrap().unwrap();
            assert_eq!(entry.path, b"file", "{version:?}");
            assert_eq!(entry.size, 3_000_000, "{version:?}");
            let mut content = Vec::new();
            let sparse = entry.sparse.as_ref().unwrap();
            sparse
                .expand(reader.content())
                .read_to_end(&mut content)
                .unwrap();
            assert!(content == original, "{version:?}");
            assert!(reader.next_entry().unwrap().is_none());
        }
    }

    #[test]
    fn a_map_that_lies_is_refused() {
        for (pieces, size) in [
            (vec![(0, 10), (5, 10)], 100),
            (vec![(0, 200)], 100),
            (vec![(u64::MAX, 2)], u64::MAX),
            (vec![(10, 1), (0, 1)], 100),
        ] {
            assert!(Sparse::new(pieces.clone(), size).is_err(), "{pieces:?}");
        }
    }
}

//! A tar stream, entry by entry: ustar with the extensions of PAX (POSIX.1-2001) and GNU.
//!
//! The crate `tar` splits PAX records at line ends, which breaks on the binary values of
//! extended attributes (file capabilities); so only its header type is used here, and
//! records are read by their lengths.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

use tar::{EntryType, Header};

mod sparse;

use sparse::Sparse;

use crate::ext4::{Attributes, Device, Ext4Error, Time, Writer};

const BLOCK: u64 = 512;
/// Most bytes of PAX records and long names that may stand before one entry, together; and most
/// that may be kept for all entries that follow.
const LONGEST_EXTENSION: u64 = 1 << 20;

/// Why a tar stream cannot be turned into a file system.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TarError {
    /// The stream could not be read.
    #[error("could not read the archive")]
    Read(#[source] io::Error),
    /// The stream ends inside an entry.
    #[error("the archive ends early")]
    Truncated,
    /// A header does not have the checksum that it says.
    #[error("the archive has a damaged header")]
    Header,
    /// An extension is too long or makes no sense.
    #[error("the archive has a malformed extension")]
    Extension,
    /// An entry of a kind that cannot be stored.
    #[error("the archive's entry `{}` is of a kind (`{kind}`) that is not supported", path.display())]
    Kind {
        /// Its path.
        path: PathBuf,
        /// The type flag.
        kind: char,
    },
    /// The file system could not take an entry.
    #[error(transparent)]
    Ext4(#[from] Ext4Error),
}

/// Writes all entries of the stream, in order, into `writer`.
pub(crate) fn copy_into(stream: impl Read, writer: &mut Writer) -> Result<(), TarError> {
    let mut reader = Reader::new(stream, End::Marked);
    while let Some(entry) = reader.next_entry()? {
        reader.copy_entry(&entry, writer)?;
    }
    Ok(())
}

/// How an archive may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Only with a block of zeros.
    Marked,
    /// Also behind any content: some makers of layers forget the mark, and the zeros before it
    /// (`umoci insert` 0.4). Only for what is known to be whole by its hash.
    Anywhere,
}

/// One entry of an archive.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    /// Target of a link; empty otherwise.
    pub(crate) link: Vec<u8>,
    pub(crate) kind: EntryType,
    pub(crate) attributes: Attributes,
    /// Bytes of content.
    pub(crate) size: u64,
    /// Where the content is, if the archive leaves its holes out.
    sparse: Option<Sparse>,
    /// Major and minor number of a device.
    pub(crate) device: (u32, u32),
}

impl Entry {
    /// Whether the archive leaves out the content's holes.
    pub(crate) fn is_sparse(&self) -> bool {
        self.sparse.is_some()
    }
}

/// Reads the entries of a tar stream.
pub(crate) struct Reader<R> {
    stream: R,
    /// Bytes of the current entry's content that were not read yet.
    left: u64,
    /// Zeros that follow the content.
    padding: u64,
    /// Shared with an entry until that has records of its own.
    global: Arc<Records>,
    end: End,
}

type Records = BTreeMap<Vec<u8>, Vec<u8>>;

impl<R: Read> Reader<R> {
    pub(crate) fn new(stream: R, end: End) -> Self {
        Self {
            stream,
            end,
            left: 0,
            padding: 0,
            global: Arc::default(),
        }
    }

    /// The next entry, `None` at the end. What was not read of the last one is skipped.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut records = Arc::clone(&self.global);
        let mut room = LONGEST_EXTENSION;
        let mut long_path = None;
        let mut long_link = None;
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = header.entry_size().map_err(|_| TarError::Header)?;
            self.begin_content(size)?;
            match header.entry_type() {
                EntryType::XHeader => {
                    let own = parse_records(&self.extension(&mut room)?)?;
                    Arc::make_mut(&mut records).extend(own);
                }
                EntryType::XGlobalHeader => {
                    let global = parse_records(&self.extension(&mut room)?)?;
                    Arc::make_mut(&mut records).extend(global.clone());
                    self.keep_for_all(global)?;
                }
                EntryType::GNULongName => long_path = Some(until_nul(self.extension(&mut room)?)),
                EntryType::GNULongLink => long_link = Some(until_nul(self.extension(&mut room)?)),
                _ => {
                    let (mut entry, stored) = entry(&header, &records, long_path, long_link)?;
                    // Where the pieces are may stand behind the header, and before the content.
                    if header.entry_type() == EntryType::GNUSparse {
                        let map = Sparse::of_gnu_header(&header, &mut self.stream)?;
                        entry.size = map.real_size();
                        entry.sparse = Some(map);
                    }
                    self.begin_content(stored)?;
                    if Sparse::is_before_content(&records) {
                        let map = Sparse::of_content(entry.size, self)?;
                        entry.sparse = Some(map);
                    }
                    if let Some(sparse) = &entry.sparse
                        && sparse.stored() != self.left
                    {
                        return Err(TarError::Extension);
                    }
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// Writes `entry`, the current one, into `writer`.
    pub(crate) fn copy_entry(
        &mut self,
        entry: &Entry,
        writer: &mut Writer,
    ) -> Result<(), TarError> {
        let Entry {
            path,
            link,
            kind,
            attributes,
            size,
            device,
            sparse,
        } = entry;
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => match sparse {
                Some(sparse) => {
                    let mut content = sparse.expand(self.content());
                    writer.file(path, attributes, &mut content, *size)?;
                }
                None => writer.file(path, attributes, &mut self.content(), *size)?,
            },
            EntryType::Directory => writer.directory(path, attributes)?,
            EntryType::Symlink => writer.symlink(path, attributes, link)?,
            EntryType::Link => writer.hard_link(path, link)?,
            EntryType::Char => {
                writer.device(path, attributes, Device::Character(device.0, device.1))?
            }
            EntryType::Block => {
                writer.device(path, attributes, Device::Block(device.0, device.1))?
            }
            EntryType::Fifo => writer.device(path, attributes, Device::Fifo)?,
            other => {
                return Err(TarError::Kind {
                    path: shown(path),
                    kind: char::from(other.as_byte()),
                });
            }
        }
        Ok(())
    }

    /// What it reads from.
    pub(crate) fn stream(&self) -> &R {
        &self.stream
    }

    /// What it is read from, given back.
    pub(crate) fn into_stream(self) -> R {
        self.stream
    }

    /// What is left of the current entry's content.
    pub(crate) fn content(&mut self) -> Content<'_, R> {
        Content(self)
    }

    fn begin_content(&mut self, size: u64) -> Result<(), TarError> {
        let whole = size.checked_next_multiple_of(BLOCK);
        self.padding = whole.ok_or(TarError::Header)? - size;
        self.left = size;
        Ok(())
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        let rest = self.left + self.padding;
        let skipped = io::copy(&mut self.stream.by_ref().take(rest), &mut io::sink())
            .map_err(TarError::Read)?;
        let is_whole = match self.end {
            End::Marked => skipped == rest,
            End::Anywhere => skipped >= self.left,
        };
        (self.left, self.padding) = (0, 0);
        match is_whole {
            true => Ok(()),
            false => Err(TarError::Truncated),
        }
    }

    /// The next header. The archive ends with a block of zeros; what follows is read so that
    /// the writer of a pipe is not killed by its closing.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let mut header = Header::new_old();
        let first = loop {
            match self.stream.read(header.as_mut_bytes()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => break outcome.map_err(TarError::Read)?,
            }
        };
        if first == 0 && self.end == End::Anywhere {
            return Ok(None);
        }
        self.stream
            .read_exact(&mut header.as_mut_bytes()[first..])
            .map_err(read_error)?;
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            io::copy(&mut self.stream, &mut io::sink()).map_err(TarError::Read)?;
            return Ok(None);
        }
        let bytes = header.as_bytes();
        let sum = bytes[..148]
            .iter()
            .chain(&bytes[156..])
            .map(|byte| u32::from(*byte))
            .sum::<u32>()
            + 8 * 32;
        match header.cksum() {
            Ok(said) if said == sum => Ok(Some(header)),
            _ => Err(TarError::Header),
        }
    }

    fn keep_for_all(&mut self, records: Records) -> Result<(), TarError> {
        let global = Arc::make_mut(&mut self.global);
        global.extend(records);
        let length: usize = global
            .iter()
            .map(|(key, value)| key.len() + value.len())
            .sum();
        match length as u64 <= LONGEST_EXTENSION {
            true => Ok(()),
            false => Err(TarError::Extension),
        }
    }

    /// The content of an extension, for which there must be `room`.
    fn extension(&mut self, room: &mut u64) -> Result<Vec<u8>, TarError> {
        *room = room.checked_sub(self.left).ok_or(TarError::Extension)?;
        let mut bytes = vec![0; usize::try_from(self.left).map_err(|_| TarError::Extension)?];
        self.content().read_exact(&mut bytes).map_err(read_error)?;
        Ok(bytes)
    }
}

/// The content of an entry.
pub(crate) struct Content<'a, R>(&'a mut Reader<R>);

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.0.stream.by_ref().take(self.0.left).read(buffer)?;
        self.0.left -= count as u64;
        Ok(count)
    }
}

fn entry(
    header: &Header,
    records: &Records,
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
) -> Result<(Entry, u64), TarError> {
    let record = |key: &str| records.get(key.as_bytes());
    let number = |key: &str| -> Result<Option<u64>, TarError> {
        record(key)
            .map(|value| text(value)?.parse().map_err(|_| TarError::Extension))
            .transpose()
    };
    let sparse = Sparse::of_records(records)?;
    let path = record("GNU.sparse.name")
        .or_else(|| record("path"))
        .cloned()
        .or(long_path)
        .unwrap_or_else(|| header.path_bytes().into_owned());
    let link = record("linkpath")
        .cloned()
        .or(long_link)
        .or_else(|| header.link_name_bytes().map(Into::into))
        .unwrap_or_default();
    // A type of "file" with a slash at the end is how the oldest archives say "directory".
    let kind = match header.entry_type() {
        EntryType::Regular if path.ends_with(b"/") => EntryType::Directory,
        kind => kind,
    };
    let has_content = matches!(kind, EntryType::Regular | EntryType::Continuous)
        || !(kind.is_dir()
            || kind.is_symlink()
            || kind.is_hard_link()
            || kind.is_character_special()
            || kind.is_block_special()
            || kind.is_fifo());
    let stored = match number("size")? {
        _ if !has_content => 0,
        Some(size) => size,
        None => header.entry_size().map_err(|_| TarError::Header)?,
    };
    let size = Sparse::size_of_records(records)?.unwrap_or(stored);
    let bad = |_| TarError::Header;
    let narrow = |value: u64| u32::try_from(value).map_err(|_| TarError::Header);
    let entry = Entry {
        link,
        kind,
        size,
        sparse,
        device: (
            header.device_major().ok().flatten().unwrap_or(0),
            header.device_minor().ok().flatten().unwrap_or(0),
        ),
        attributes: Attributes {
            mode: (header.mode().map_err(bad)? & 0o7777) as u16,
            uid: narrow(number("uid")?.map_or_else(|| header.uid().map_err(bad), Ok)?)?,
            gid: narrow(number("gid")?.map_or_else(|| header.gid().map_err(bad), Ok)?)?,
            modified: match record("mtime") {
                Some(value) => parse_time(text(value)?).ok_or(TarError::Extension)?,
                None => Time {
                    seconds: i64::try_from(header.mtime().map_err(bad)?)
                        .map_err(|_| TarError::Header)?,
                    nanoseconds: 0,
                },
            },
            extended: extended(records),
        },
        path,
    };
    Ok((entry, stored))
}

fn extended(records: &Records) -> Vec<(Vec<u8>, Vec<u8>)> {
    records
        .iter()
        .filter_map(|(key, value)| {
            Some((key.strip_prefix(b"SCHILY.xattr.")?.to_vec(), value.clone()))
        })
        // A label of the building host's own security module says nothing in a guest.
        .filter(|(name, _)| name != b"security.selinux")
        .collect()
}

/// Whether a record says something that an entry is made of. The others are not kept.
fn is_known(key: &[u8]) -> bool {
    matches!(
        key,
        b"path" | b"linkpath" | b"size" | b"uid" | b"gid" | b"mtime"
    ) || key.starts_with(b"SCHILY.xattr.")
        || key.starts_with(b"GNU.sparse.")
}

/// PAX records: `<length> <key>=<value>\n`, where the length counts the whole record.
fn parse_records(mut bytes: &[u8]) -> Result<Records, TarError> {
    let mut records = Records::new();
    while !bytes.is_empty() && bytes[0] != 0 {
        let space = bytes
            .iter()
            .take(20)
            .position(|byte| *byte == b' ')
            .ok_or(TarError::Extension)?;
        let length: usize = text(&bytes[..space])?
            .parse()
            .map_err(|_| TarError::Extension)?;
        let record = bytes.get(space + 1..length).ok_or(TarError::Extension)?;
        let record = record.strip_suffix(b"\n").ok_or(TarError::Extension)?;
        let equals = record
            .iter()
            .position(|byte| *byte == b'=')
            .ok_or(TarError::Extension)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        if is_known(key) {
            records.insert(key.to_vec(), value.to_vec());
        }
        bytes = &bytes[length..];
    }
    Ok(records)
}

/// Seconds with an optional fraction, such as `-1.25`.
fn parse_time(text: &str) -> Option<Time> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    Some(match whole.starts_with('-') && nanoseconds > 0 {
        true => Time {
            seconds: seconds.checked_sub(1)?,
            nanoseconds: 1_000_000_000 - nanoseconds,
        },
        false => Time {
            seconds,
            nanoseconds,
        },
    })
}

fn text(bytes: &[u8]) -> Result<&str, TarError> {
    std::str::from_utf8(bytes).map_err(|_| TarError::Extension)
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

fn read_error(error: io::Error) -> TarError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => TarError::Truncated,
        _ => TarError::Read(error),
    }
}

pub(crate) fn shown(path: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    PathBuf::from(std::ffi::OsStr::from_bytes(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn records_are_read_by_their_length_not_by_lines() {
        let records = parse_records(b"33 SCHILY.xattr.security.x=\n\x01\n\0\xff\n9 path=a\n");
        assert_eq!(
            records.unwrap(),
            Records::from([
                (
                    b"SCHILY.xattr.security.x".to_vec(),
                    b"\n\x01\n\0\xff".to_vec()
                ),
                (b"path".to_vec(), b"a".to_vec()),
            ])
        );
    }

    #[test]
    fn times_have_fractions_and_signs() {
        for (text, seconds, nanoseconds) in [
            ("12", 12, 0),
            ("1.5", 1, 500_000_000),
            ("-1.25", -2, 750_000_000),
        ] {
            assert_eq!(
                parse_time(text),
                Some(Time {
                    seconds,
                    nanoseconds
                }),
                "{text}"
            );
        }
        for text in ["", "a", "1.x", "--1", "1.2.3"] {
            assert_eq!(parse_time(text), None, "{text}");
        }
    }

    /// An entry of `kind` with `content`.
    fn block(kind: EntryType, content: &[u8]) -> Vec<u8> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_path("entry").unwrap();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }

    /// A PAX record of 300,000 bytes.
    fn long_record(key: &str) -> Vec<u8> {
        let mut record = format!("300000 {key}=").into_bytes();
        record.resize(299_999, b'x');
        record.push(b'\n');
        record
    }

    /// How many entries there are, unless the archive's extensions are refused.
    fn count(bytes: &[u8]) -> Option<usize> {
        let mut reader = Reader::new(bytes, End::Anywhere);
        let mut count = 0;
        loop {
            match reader.next_entry() {
                Ok(Some(_)) => count += 1,
                Ok(None) => return Some(count),
                Err(TarError::Extension) => return None,
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    #[test]
    fn what_stands_before_an_entry_is_bounded_together() {
        for kind in [
            EntryType::XHeader,
            EntryType::XGlobalHeader,
            EntryType::GNULongName,
        ] {
            for (blocks, expected) in [(3, Some(1)), (4, None)] {
                let mut bytes = block(kind, &long_record("comment")).repeat(blocks);
                bytes.extend(block(EntryType::Regular, b"x"));
                assert_eq!(count(&bytes), expected, "{blocks} of {kind:?}");
            }
        }
    }

    #[test]
    fn what_is_kept_for_all_entries_is_bounded_and_known() {
        let archive = |key: &dyn Fn(usize) -> String| {
            (0..4).fold(Vec::new(), |mut bytes, at| {
                let record = long_record(&key(at));
                bytes.extend(block(EntryType::XGlobalHeader, &record));
                bytes.extend(block(EntryType::Regular, b"x"));
                bytes
            })
        };
        let attribute = |at| format!("SCHILY.xattr.user.{at}");
        assert_eq!(count(&archive(&attribute)), None);
        assert_eq!(count(&archive(&|_| attribute(0))), Some(4));
        assert_eq!(count(&archive(&|at| format!("comment.{at}"))), Some(4));
    }

    #[test]
    fn an_archive_that_ends_early_is_refused() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_size(1000);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        builder
            .append_data(&mut header, "a", &[1; 1000][..])
            .unwrap();
        let bytes = builder.into_inner().unwrap();
        for cut in [0, 100, 512, 1000, 1536] {
            let mut reader = Reader::new(&bytes[..cut], End::Marked);
            let outcome = loop {
                match reader.next_entry() {
                    Ok(Some(_)) => {}
                    other => break other,
                }
            };
            assert!(
                matches!(outcome, Err(TarError::Truncated)),
                "cut at {cut}: {outcome:?}"
            );
        }
    }

    #[test]
    fn an_archive_whose_hash_vouches_for_it_may_end_behind_any_content() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_size(700);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        builder
            .append_data(&mut header, "a", &[1; 700][..])
            .unwrap();
        let bytes = builder.into_inner().unwrap();
        for (cut, is_whole) in [
            (0, true),
            (100, false),
            (512, false),
            (1211, false),
            (1212, true),
            (1536, true),
        ] {
            let mut reader = Reader::new(&bytes[..cut], End::Anywhere);
            let outcome = loop {
                match reader.next_entry() {
                    Ok(Some(_)) => {}
                    other => break other,
                }
            };
            assert_eq!(outcome.is_ok(), is_whole, "cut at {cut}: {outcome:?}");
        }
    }

    proptest! {
        #[test]
        fn rubbish_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = parse_records(&bytes);
            let mut reader = Reader::new(&bytes[..], End::Marked);
            while let Ok(Some(_)) = reader.next_entry() {}
        }

        #[test]
        fn a_damaged_archive_never_panics(at in 0usize..2048, byte: u8) {
            let mut builder = tar::Builder::new(Vec::new());
            let mut header = Header::new_gnu();
            header.set_size(3);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            builder.append_data(&mut header, "x".repeat(200), &b"abc"[..]).unwrap();
            let mut bytes = builder.into_inner().unwrap();
            let at = at % bytes.len();
            bytes[at] = byte;
            let mut reader = Reader::new(&bytes[..], End::Marked);
            while let Ok(Some(_)) = reader.next_entry() {}
        }
    }
}

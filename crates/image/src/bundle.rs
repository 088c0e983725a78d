//! Bundles: an image or a kernel as one file, `.tar.zst`, to be carried from store to store.
//!
//! ```text
//! image   manifest.json  rootfs.ext4  [work-seed.ext4]
//! kernel  vmlinux  [initrd.img]  [modules/…]
//! ```
//! Who carries it no further than over a socket may leave it unpacked, as `.tar`.
//!
//! A bundle comes from anywhere, so that nothing but exactly this is taken, each part once and
//! no longer than it may be; holes of disks stay holes.

use std::collections::BTreeSet;
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::path::Path;

use banger_proto::error::ErrorKind;
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};
use tokio_util::sync::CancellationToken;

use crate::hash::show_sha256;
use crate::progress::Reporter;
use crate::tarball::{End, Entry, Reader, TarError};

/// How hard bundles are packed: zeros and text shrink, and a disk takes seconds.
const LEVEL: i32 = 3;
/// Memory that unpacking may take, as a power of two (zstd's own default for strangers' files).
const WINDOW: u32 = 27;
/// How each frame of zstd begins (RFC 8878, section 3.1.1).
const MAGIC: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();

/// Why a bundle could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// It could not be read, or is no `.tar.zst`.
    #[error("could not read the bundle")]
    Read(#[source] io::Error),
    /// The archive in it is malformed.
    #[error("the bundle's archive makes no sense")]
    Archive(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It holds what has no place in it.
    #[error("the bundle holds `{0}`, which does not belong into it")]
    Stranger(String),
    /// It holds something more than once.
    #[error("the bundle holds `{0}` twice")]
    Twice(String),
    /// It lacks something.
    #[error("the bundle holds no `{0}`")]
    Lacks(&'static str),
    /// Something in it is too long.
    #[error("the bundle's `{name}` has {length} bytes, and may have {limit}")]
    TooLong {
        /// What.
        name: String,
        /// Its bytes.
        length: u64,
        /// Most bytes that it may have.
        limit: u64,
    },
    /// The first thing in it must say what the rest is.
    #[error("the bundle does not begin with `manifest.json`")]
    Order,
    /// The manifest is none.
    #[error("the bundle's `manifest.json` makes no sense: {0}")]
    Manifest(String),
    /// It has another hash than it should have.
    #[error("the bundle's hash is {found}, not {wanted}")]
    WrongHash {
        /// What it should be.
        wanted: String,
        /// What it is.
        found: String,
    },
    /// Whoever asked went away.
    #[error("it was called off")]
    Cancelled,
}

impl BundleError {
    /// What kind of failure it is, for the API.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Cancelled => ErrorKind::Cancelled,
            _ => ErrorKind::Invalid,
        }
    }
}

impl From<TarError> for BundleError {
    fn from(error: TarError) -> Self {
        match error {
            TarError::Read(source) => Self::Read(source),
            other => Self::Archive(other.into()),
        }
    }
}

/// How a bundle is checked on its way.
pub struct BundleSource<R> {
    /// Its bytes.
    pub from: R,
    /// What they must hash to, if anybody knows.
    pub sha256: Option<[u8; 32]>,
    /// Called off by this.
    pub cancel: CancellationToken,
    /// Told how far it is.
    pub progress: Reporter,
    /// What it is, for the progress.
    pub what: String,
}

/// What is read of a bundle: its entries, checked.
pub(crate) struct Bundle<R: Read> {
    reader: Reader<Stream<R>>,
    seen: BTreeSet<String>,
    wanted: Option<[u8; 32]>,
}

/// A part of a bundle.
#[derive(Debug)]
pub(crate) struct Part {
    /// Its path, such as `modules/kernel/x.ko`.
    pub(crate) name: String,
    pub(crate) length: u64,
}

impl<R: Read> Bundle<R> {
    pub(crate) fn open(source: BundleSource<R>) -> Result<Self, BundleError> {
        let hashed = Hashed {
            from: source.from,
            hasher: Sha256::new(),
            count: 0,
            cancel: source.cancel,
            progress: source.progress,
            what: source.what,
        };
        let mut hashed = BufReader::new(hashed);
        let packed = hashed
            .fill_buf()
            .map_err(BundleError::Read)?
            .starts_with(&MAGIC[..]);
        let stream = match packed {
            false => Stream::Plain(hashed),
            true => {
                let mut decoder = zstd::Decoder::with_buffer(hashed).map_err(BundleError::Read)?;
                decoder.window_log_max(WINDOW).map_err(BundleError::Read)?;
                Stream::Packed(Box::new(decoder))
            }
        };
        Ok(Self {
            reader: Reader::new(stream, End::Marked),
            seen: BTreeSet::new(),
            wanted: source.sha256,
        })
    }

    /// The next file; directories have nothing to say. `limit` is the most bytes of a file of
    /// that name, `None` if it does not belong here.
    pub(crate) fn next(
        &mut self,
        limit: impl Fn(&str) -> Option<u64>,
    ) -> Result<Option<Part>, BundleError> {
        while let Some(entry) = self.reader.next_entry()? {
            let shown = String::from_utf8_lossy(&entry.path).into_owned();
            let Some(name) = plain_name(&entry) else {
                return Err(BundleError::Stranger(shown));
            };
            match entry.kind {
                EntryType::Directory
                    if name.is_empty() || limit(&format!("{name}/x")).is_some() =>
                {
                    continue;
                }
                EntryType::Regular | EntryType::Continuous if !entry.is_sparse() => {}
                _ => return Err(BundleError::Stranger(shown)),
            }
            let Some(limit) = limit(&name) else {
                return Err(BundleError::Stranger(shown));
            };
            if entry.size > limit {
                return Err(BundleError::TooLong {
                    name,
                    length: entry.size,
                    limit,
                });
            }
            if !self.seen.insert(name.clone()) {
                return Err(BundleError::Twice(name));
            }
            return Ok(Some(Part {
                name,
                length: entry.size,
            }));
        }
        Ok(None)
    }

    /// The content of the part that was given last.
    pub(crate) fn content(&mut self) -> impl Read + '_ {
        self.reader.content()
    }

    /// Whether a part came.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.seen.contains(name)
    }

    /// Reads what follows the archive, and gives the hash of all.
    pub(crate) fn finish(self) -> Result<[u8; 32], BundleError> {
        let mut rest = match self.reader.into_stream() {
            Stream::Packed(decoder) => decoder.finish(),
            Stream::Plain(rest) => rest,
        };
        io::copy(&mut rest, &mut io::sink()).map_err(BundleError::Read)?;
        let hash = rest.into_inner().hasher.finalize().into();
        match self.wanted {
            Some(wanted) if wanted != hash => Err(BundleError::WrongHash {
                wanted: show_sha256(&wanted),
                found: show_sha256(&hash),
            }),
            _ => Ok(hash),
        }
    }
}

/// What the archive is read from.
enum Stream<R: Read> {
    Packed(Box<zstd::Decoder<'static, BufReader<Hashed<R>>>>),
    Plain(BufReader<Hashed<R>>),
}

impl<R: Read> Read for Stream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Packed(stream) => stream.read(buffer),
            Self::Plain(stream) => stream.read(buffer),
        }
    }
}

/// The path of an entry without `./`; `None` if it is odd or leads elsewhere.
fn plain_name(entry: &Entry) -> Option<String> {
    let path = std::str::from_utf8(&entry.path).ok()?;
    if path.starts_with('/') || path.contains('\0') {
        return None;
    }
    let parts: Vec<&str> = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    (!parts.contains(&"..")).then(|| parts.join("/"))
}

/// Hashes and counts what is read, until it is called off.
struct Hashed<R> {
    from: R,
    hasher: Sha256,
    count: u64,
    cancel: CancellationToken,
    progress: Reporter,
    what: String,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("it was called off"));
        }
        let count = self.from.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.count += count as u64;
        self.progress.bytes(&self.what, self.count, None);
        Ok(count)
    }
}

/// Writes a bundle.
pub struct Packer<W: Write> {
    into: zstd::Encoder<'static, W>,
}

impl<W: Write> Packer<W> {
    /// A bundle without anything in it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn new(into: W) -> io::Result<Self> {
        Ok(Self {
            into: zstd::Encoder::new(into, LEVEL)?,
        })
    }

    /// Adds a file of exactly `length` bytes.
    ///
    /// # Errors
    /// It cannot be read or written, or has become shorter.
    pub fn add(&mut self, name: &Path, length: u64, content: impl Read) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_path(name)?;
        header.set_size(length);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_entry_type(EntryType::Regular);
        header.set_cksum();
        self.into.write_all(header.as_bytes())?;
        let copied = io::copy(&mut content.take(length), &mut self.into)?;
        if copied != length {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("`{}` has become shorter", name.display()),
            ));
        }
        let padding = length.next_multiple_of(512) - length;
        io::copy(&mut io::repeat(0).take(padding), &mut self.into)?;
        Ok(())
    }

    /// Ends the bundle.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.into.write_all(&[0; 1024])?;
        let mut into = self.into.finish()?;
        into.flush()?;
        Ok(into)
    }
}

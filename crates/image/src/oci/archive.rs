//! Images in one tar file: what `docker save` and `podman save` write, and the image layout of
//! the OCI specification. Both may be compressed; which one it is shows in what is in it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_proto::id::ImageId;
use banger_proto::reference::Digest;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::convert::{self, Origin};
use super::document::{self, Config, Document, DocumentError};
use super::layer::decompressed;
use super::pull::require_digest;
use super::wanted::Wanted;
use super::{OciError, Shape, step};
use crate::disk::DiskError;
use crate::progress::Reporter;
use crate::sparse;
use crate::tarball::{End, Reader, TarError, shown};

/// Most files that an archive of an image may have.
const MOST_FILES: usize = 1 << 16;
/// Longest path of a file in it, or of what it links to. Those of its makers have some 80 bytes.
const LONGEST_PATH: usize = 512;
/// Most symbolic links on the way to a file.
const MOST_FOLLOWED: usize = 8;
/// Most indexes on the way to an image.
const DEEPEST: usize = 4;

/// Why an archive holds no image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    /// The file is no archive.
    #[error("it is no tar archive")]
    Tar(#[source] TarError),
    /// It could not be read, or decompressed.
    #[error("it could not be decompressed")]
    Unpack(#[source] io::Error),
    /// There is no room for what is decompressed.
    #[error(transparent)]
    Room(DiskError),
    /// It is larger than it may be when decompressed.
    #[error("it has more than {} MiB when decompressed", limit >> 20)]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// Too many files.
    #[error("it has more than {MOST_FILES} files, which no image's archive has")]
    TooManyFiles,
    /// A path that is too long.
    #[error("it has a path of more than {LONGEST_PATH} bytes, which no image's archive has")]
    LongPath,
    /// It is an archive of something else.
    #[error("it has neither `manifest.json` nor `index.json`, so it holds no image")]
    NoImage,
    /// Something is not there.
    #[error("it has no `{}`", path.display())]
    Missing {
        /// What is missing.
        path: PathBuf,
    },
    /// A document is far too large.
    #[error("its `{}` is larger than {} MiB", path.display(), document::LARGEST >> 20)]
    Document {
        /// Which one.
        path: PathBuf,
    },
    /// Which image is meant?
    #[error("it holds {0} images, and one is expected")]
    Several(usize),
}

/// Makes the image in `archive`, a tar file, and publishes it below `images`. Blocks.
///
/// `scratch` is a directory of the caller's for what is decompressed.
pub(crate) fn make(
    images: &Path,
    archive: File,
    scratch: &Path,
    shape: &Shape,
    progress: &Reporter,
    cancel: &CancellationToken,
) -> Result<ImageId, OciError> {
    let files = Files::open(archive, scratch, cancel).map_err(|error| {
        // Whoever called it off knows why it ended.
        match cancel.is_cancelled() {
            true => OciError::Cancelled,
            false => error,
        }
    })?;
    let image = files.image(shape.name.as_str())?;
    let layers = image.layers.into_iter();
    convert::convert(images, &image.origin, shape, layers, progress, cancel)?.publish(images)
}

/// What is in an archive, and where.
pub(super) struct Files {
    file: Arc<File>,
    places: HashMap<Vec<u8>, Place>,
}

enum Place {
    Content { at: u64, length: u64 },
    Link(Vec<u8>),
}

pub(super) struct Image {
    origin: Origin,
    layers: Vec<Section>,
}

/// `manifest.json` of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

impl Files {
    pub(super) fn open(
        mut archive: File,
        scratch: &Path,
        cancel: &CancellationToken,
    ) -> Result<Self, OciError> {
        let read_error = |source| OciError::from(ArchiveError::Unpack(source));
        let mut start = [0; 2];
        let is_short = archive.read_exact(&mut start).is_err();
        archive.seek(SeekFrom::Start(0)).map_err(read_error)?;
        let is_tar =
            is_short || !matches!(start, [0x1f, 0x8b] | [0x28, 0xb5] | [0x50..=0x5f, 0x2a]);
        let file = match is_tar {
            true => archive,
            false => unpack(archive, scratch, cancel)?,
        };
        let places = places(&file, cancel)?;
        Ok(Self {
            file: Arc::new(file),
            places,
        })
    }

    /// The image that the archive holds.
    pub(super) fn image(&self, name: &str) -> Result<Image, OciError> {
        if self.places.contains_key(&b"index.json"[..]) {
            self.image_of_layout(name)
        } else if self.places.contains_key(&b"manifest.json"[..]) {
            self.image_of_docker(name)
        } else {
            Err(ArchiveError::NoImage.into())
        }
    }

    fn image_of_layout(&self, name: &str) -> Result<Image, OciError> {
        let invalid = |source| OciError::Document {
            name: name.to_owned(),
            source,
        };
        let mut bytes = self.document(b"index.json")?;
        let mut digest = None;
        for _ in 0..DEEPEST {
            let found = require_digest(&bytes, digest.as_ref())?;
            match Document::read(&bytes, "").map_err(invalid)? {
                Document::Index(index) => {
                    let chosen = index.choose().map_err(invalid)?.digest.clone();
                    bytes = self.document(&blob(&chosen))?;
                    digest = Some(chosen);
                }
                Document::Manifest(manifest) => {
                    let config = self.document(&blob(&manifest.config.digest))?;
                    require_digest(&config, Some(&manifest.config.digest))?;
                    let config = Config::read(&config, manifest.layers.len()).map_err(invalid)?;
                    let layers = manifest
                        .layers
                        .iter()
                        .map(|layer| self.section(&blob(&layer.digest)))
                        .collect::<Result<Vec<_>, _>>()?;
                    return Ok(image("an OCI archive", found, config, layers));
                }
            }
        }
        Err(OciError::Loop {
            name: name.to_owned(),
        })
    }

    fn image_of_docker(&self, name: &str) -> Result<Image, OciError> {
        let invalid = |source| OciError::Document {
            name: name.to_owned(),
            source,
        };
        let list: Vec<Saved> = serde_json::from_slice(&self.document(b"manifest.json")?)
            .map_err(|source| DocumentError::Malformed {
                what: "manifest",
                source,
            })
            .map_err(invalid)?;
        let [saved] = list.as_slice() else {
            return Err(ArchiveError::Several(list.len()).into());
        };
        let config = self.document(saved.config.as_bytes())?;
        let digest = require_digest(&config, None)?;
        let config = Config::read(&config, saved.layers.len()).map_err(invalid)?;
        let layers = saved
            .layers
            .iter()
            .map(|layer| self.section(layer.as_bytes()))
            .collect::<Result<Vec<_>, _>>()?;
        let tag = saved.repo_tags.as_ref().and_then(|tags| tags.first());
        let source = match tag {
            Some(tag) => format!("a Docker archive of {tag}"),
            None => "a Docker archive".to_owned(),
        };
        Ok(image(&source, digest, config, layers))
    }

    fn document(&self, path: &[u8]) -> Result<Vec<u8>, OciError> {
        let mut section = self.section(path)?;
        if section.left > document::LARGEST {
            return Err(ArchiveError::Document { path: shown(path) }.into());
        }
        let mut bytes = Vec::new();
        section
            .read_to_end(&mut bytes)
            .map_err(step("read the archive"))?;
        Ok(bytes)
    }

    /// The content of `path`. Old archives of Docker link a layer that they have twice.
    fn section(&self, path: &[u8]) -> Result<Section, ArchiveError> {
        let missing = || ArchiveError::Missing { path: shown(path) };
        let mut at = normal(b"", path).ok_or_else(missing)?;
        for _ in 0..MOST_FOLLOWED {
            match self.places.get(&at).ok_or_else(missing)? {
                Place::Content { at, length } => {
                    return Ok(Section {
                        file: Arc::clone(&self.file),
                        at: *at,
                        left: *length,
                    });
                }
                Place::Link(target) => at = normal(&at, target).ok_or_else(missing)?,
            }
        }
        Err(missing())
    }
}

fn image(source: &str, digest: Digest, config: Config, layers: Vec<Section>) -> Image {
    let stored = layers.iter().map(|layer| layer.left).sum();
    Image {
        origin: Origin {
            source: format!("{source}, {digest}"),
            reference: None,
            digest,
            config,
            stored,
        },
        layers,
    }
}

fn blob(digest: &Digest) -> Vec<u8> {
    format!("blobs/sha256/{}", digest.hex()).into_bytes()
}

/// Decompresses into a file without a name in `scratch`.
fn unpack(mut archive: File, scratch: &Path, cancel: &CancellationToken) -> Result<File, OciError> {
    let stored = archive.metadata().map_err(ArchiveError::Unpack)?.len();
    let limit = convert::most(stored);
    let mut file = tempfile::tempfile_in(scratch).map_err(step("decompress the archive"))?;
    let stream = decompressed(&mut archive).map_err(ArchiveError::Unpack)?;
    let mut stream = Wanted::new(stream, cancel).take(limit + 1);
    let copied = sparse::copy(&mut stream, &mut file).map_err(|error| match error.downcast() {
        Ok(room) => ArchiveError::Room(room),
        Err(error) => ArchiveError::Unpack(error),
    })?;
    match copied > limit {
        true => Err(ArchiveError::TooLarge { limit }.into()),
        false => Ok(file),
    }
}

/// Where each file of the archive is.
fn places(
    file: &File,
    cancel: &CancellationToken,
) -> Result<HashMap<Vec<u8>, Place>, ArchiveError> {
    let whole = Section {
        file: Arc::new(file.try_clone().map_err(ArchiveError::Unpack)?),
        at: 0,
        left: u64::MAX,
    };
    let counted = Counted {
        stream: BufReader::with_capacity(1 << 18, Wanted::new(whole, cancel)),
        count: 0,
    };
    let mut reader = Reader::new(counted, End::Anywhere);
    let mut places = HashMap::new();
    while let Some(entry) = reader.next_entry().map_err(ArchiveError::Tar)? {
        if entry.path.len().max(entry.link.len()) > LONGEST_PATH {
            return Err(ArchiveError::LongPath);
        }
        let Some(path) = normal(b"", &entry.path) else {
            continue;
        };
        let place = if entry.kind.is_file() && !entry.is_sparse() {
            Place::Content {
                at: reader.stream().count,
                length: entry.size,
            }
        } else if entry.kind.is_symlink() {
            Place::Link(entry.link)
        } else if entry.kind.is_hard_link() {
            // From the archive's root, not from where the link is.
            Place::Link([b"/", &entry.link[..]].concat())
        } else {
            continue;
        };
        places.insert(path, place);
        if places.len() > MOST_FILES {
            return Err(ArchiveError::TooManyFiles);
        }
    }
    Ok(places)
}

/// A path without `.` and `..`, taken from beside `from`; `None` if it leads out.
fn normal(from: &[u8], path: &[u8]) -> Option<Vec<u8>> {
    let mut names: Vec<&[u8]> = match path.first() {
        Some(b'/') => Vec::new(),
        _ => from.split(|byte| *byte == b'/').collect(),
    };
    names.pop();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()?),
            name => names.push(name),
        }
    }
    Some(names.join(&b'/'))
}

/// A part of a file.
struct Section {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let count = self.file.read_at(&mut buffer[..wanted], self.at)?;
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

/// Counts what is read.
struct Counted<R> {
    stream: R,
    count: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.count += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use tar::{EntryType, Header};

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        file
    }

    fn opened(bytes: &[u8], cancel: &CancellationToken) -> Result<Files, OciError> {
        Files::open(file(bytes), &std::env::temp_dir(), cancel)
    }

    #[test]
    fn paths_that_no_image_has_take_no_memory() {
        for (kind, length, is_taken) in [
            (EntryType::Regular, LONGEST_PATH, true),
            (EntryType::Regular, LONGEST_PATH + 1, false),
            (EntryType::Symlink, LONGEST_PATH + 1, false),
        ] {
            let mut builder = tar::Builder::new(Vec::new());
            let mut header = Header::new_gnu();
            header.set_size(0);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.set_entry_type(kind);
            let long = "x".repeat(length);
            match kind {
                EntryType::Symlink => builder.append_link(&mut header, "l", long).unwrap(),
                _ => builder.append_data(&mut header, long, &b""[..]).unwrap(),
            }
            let archive = builder.into_inner().unwrap();
            match (opened(&archive, &CancellationToken::new()), is_taken) {
                (Ok(files), true) => assert_eq!(files.places.len(), 1),
                (Err(OciError::Archive(ArchiveError::LongPath)), false) => {}
                (other, _) => panic!("{length}: {:?}", other.map(|files| files.places.len())),
            }
        }
    }

    #[test]
    fn an_archive_that_is_called_off_is_not_unpacked_to_its_end() {
        let cancel = CancellationToken::new();
        cancel.cancel();
        let zeros = zstd::encode_all(&vec![0; 1 << 20][..], 1).unwrap();
        let images = tempfile::tempdir().unwrap();
        for bytes in [zeros, vec![b'x'; 1 << 20]] {
            let shape = Shape {
                name: "app".parse().unwrap(),
                kernel: "generic-6.12".parse().unwrap(),
                limit: None,
            };
            let (reporter, scratch) = (Reporter::silent(), images.path());
            let made = make(scratch, file(&bytes), scratch, &shape, &reporter, &cancel);
            assert!(matches!(made, Err(OciError::Cancelled)), "{made:?}");
        }
        assert_eq!(std::fs::read_dir(images.path()).unwrap().count(), 0);
    }

    #[test]
    fn links_of_an_archive_stay_in_it() {
        for (from, path, expected) in [
            ("", "./a//b", Some("a/b")),
            ("x/layer.tar", "../y/layer.tar", Some("y/layer.tar")),
            ("x/layer.tar", "/y", Some("y")),
            ("x", "../../etc/passwd", None),
        ] {
            let found = normal(from.as_bytes(), path.as_bytes());
            assert_eq!(
                found.as_deref(),
                expected.map(str::as_bytes),
                "{from} {path}"
            );
        }
    }
}

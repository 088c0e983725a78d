//! Packs a tree of this host.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use super::{ArchiveError, PiecesWriter};

/// Whose the files are at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owners {
    /// Whose they are here.
    Kept,
    /// The guest's root: an ordinary user's number means nothing there.
    Root,
}

/// What is packed, and how.
#[derive(Debug)]
pub(crate) struct Packing {
    /// The tree.
    pub(crate) from: PathBuf,
    /// What its root is called in the archive; `None`: only what is in it, without a root.
    pub(crate) root: Option<PathBuf>,
    pub(crate) owners: Owners,
}

/// Packs a tree and gives what was left out: sockets, pipes and devices. `progress` is told of
/// each number of bytes that went. Blocks.
///
/// # Errors
/// Something cannot be read, or nobody takes the archive; its stream then ends with an error, so
/// that it cannot be taken for a whole one.
pub(crate) fn pack(
    packing: &Packing,
    into: PiecesWriter,
    progress: impl Fn(u64),
) -> Result<Vec<PathBuf>, ArchiveError> {
    let mut packer = Packer {
        builder: Builder::new(into),
        links: HashMap::new(),
        owners: packing.owners,
        left_out: Vec::new(),
        progress,
    };
    let packed = match &packing.root {
        Some(root) => packer.add(&packing.from, root),
        None => packer.add_contents(&packing.from, Path::new("")),
    };
    let left_out = std::mem::take(&mut packer.left_out);
    match packed {
        Ok(()) => {
            let mut into = packer
                .builder
                .into_inner()
                .map_err(|_| ArchiveError::Gone)?;
            into.flush().map_err(|_| ArchiveError::Gone)?;
            Ok(left_out)
        }
        Err(error) => {
            // Ends the stream so that nobody takes it for a whole one.
            if let Ok(into) = packer.builder.into_inner() {
                into.fail(io::Error::other(error.to_string()));
            }
            Err(error)
        }
    }
}

/// Bytes of all files below a path; what cannot be looked at counts nothing.
pub(crate) fn size_of(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return 0;
    };
    if !metadata.is_dir() {
        return if metadata.is_file() {
            metadata.len()
        } else {
            0
        };
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| size_of(&entry.path())).sum()
}

struct Packer<P> {
    builder: Builder<PiecesWriter>,
    /// Names of files with several links, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
    owners: Owners,
    left_out: Vec<PathBuf>,
    progress: P,
}

impl<P: Fn(u64)> Packer<P> {
    fn add(&mut self, path: &Path, name: &Path) -> Result<(), ArchiveError> {
        let metadata = fs::symlink_metadata(path).map_err(|error| read(path, error))?;
        let mut header = self.header(&metadata);
        let kind = metadata.file_type();
        if kind.is_dir() {
            self.append(&mut header, name, path, io::empty())?;
            return self.add_contents(path, name);
        }
        if kind.is_symlink() {
            let target = fs::read_link(path).map_err(|error| read(path, error))?;
            return self.append_link(&mut header, name, &target, path);
        }
        if kind.is_socket() || kind.is_fifo() || kind.is_block_device() || kind.is_char_device() {
            self.left_out.push(path.to_owned());
            return Ok(());
        }
        if metadata.nlink() > 1 {
            let identity = (metadata.dev(), metadata.ino());
            if let Some(first) = self.links.get(&identity).cloned() {
                header.set_entry_type(EntryType::Link);
                header.set_size(0);
                return self.append_link(&mut header, name, &first, path);
            }
            self.links.insert(identity, name.to_owned());
        }
        let file = File::open(path).map_err(|error| read(path, error))?;
        // A file that grows or shrinks meanwhile keeps the length of its header.
        let data = file.chain(io::repeat(0)).take(metadata.len());
        self.append(&mut header, name, path, data)
    }

    fn add_contents(&mut self, path: &Path, name: &Path) -> Result<(), ArchiveError> {
        let mut entries: Vec<_> = fs::read_dir(path)
            .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect())
            .map_err(|error| read(path, error))?;
        entries.sort();
        for entry in entries {
            match self.add(&path.join(&entry), &name.join(&entry)) {
                // A tree that is in use loses files while it is read.
                Err(ArchiveError::Read { source, .. })
                    if source.kind() == io::ErrorKind::NotFound => {}
                result => result?,
            }
        }
        Ok(())
    }

    fn header(&self, metadata: &Metadata) -> Header {
        let mut header = Header::new_gnu();
        header.set_metadata(metadata);
        if self.owners == Owners::Root {
            header.set_uid(0);
            header.set_gid(0);
        }
        header
    }

    fn append(
        &mut self,
        header: &mut Header,
        name: &Path,
        path: &Path,
        data: impl Read,
    ) -> Result<(), ArchiveError> {
        let data = Counted {
            data,
            progress: &self.progress,
        };
        let appended = self.builder.append_data(header, name, data);
        appended.map_err(|error| append_failed(path, error))
    }

    fn append_link(
        &mut self,
        header: &mut Header,
        name: &Path,
        target: &Path,
        path: &Path,
    ) -> Result<(), ArchiveError> {
        let appended = self.builder.append_link(header, name, target);
        appended.map_err(|error| append_failed(path, error))
    }
}

fn read(path: &Path, source: io::Error) -> ArchiveError {
    ArchiveError::Read {
        path: path.to_owned(),
        source,
    }
}

fn append_failed(path: &Path, error: io::Error) -> ArchiveError {
    match error.kind() {
        io::ErrorKind::BrokenPipe => ArchiveError::Gone,
        _ => read(path, error),
    }
}

/// Tells how much of a file has been read.
struct Counted<'a, R, P> {
    data: R,
    progress: &'a P,
}

impl<R: Read, P: Fn(u64)> Read for Counted<'_, R, P> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.data.read(buffer)?;
        (self.progress)(length as u64);
        Ok(length)
    }
}

//! One layer laid over those below it (OCI image specification, "Image Layer Filesystem
//! Changeset").
//!
//! A layer is a tar stream. Its entries replace what is there: only a directory on a directory
//! keeps what is in it. `.wh.NAME` hides what the layers below have at `NAME`, and
//! `.wh..wh..opq` what they have in its directory; wherever in the stream they stand, they leave
//! alone what their own layer brings.

use std::io::Read;
use std::path::PathBuf;

use crate::ext4::{self, Ext4Error, Writer};
use crate::tarball::{End, Entry, Reader, TarError, shown};

const HIDES: &[u8] = b".wh.";
/// What AUFS has for itself; one of its names has a meaning for all.
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Files that say which distribution this is, and how much of them is read.
const OS_RELEASE: [&[u8]; 2] = [b"etc/os-release", b"usr/lib/os-release"];
const LONGEST_OS_RELEASE: u64 = 16 << 10;
/// What the ends of files' last blocks, attributes and targets may take on the disk, however small
/// the files are; beyond it as much as the files.
const OVERHEAD: u64 = 64 << 20;

/// Why a layer cannot be laid over the others.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MergeError {
    /// A whiteout that hides nothing that has a name.
    #[error("the whiteout `{}` names nothing", path.display())]
    Whiteout {
        /// Its path.
        path: PathBuf,
    },
    /// A path that leads out of the image.
    #[error("the path `{}` leads out of the image", path.display())]
    Traversal {
        /// It.
        path: PathBuf,
    },
    /// A symbolic link that leads out of the image.
    #[error("the symbolic link `{}` leads out of the image: `{}`", path.display(), target.display())]
    Escapes {
        /// The link.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// All files together are larger than they may be.
    #[error("its files are larger than {} MiB", limit >> 20)]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// The stream is no layer.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The file system cannot hold it.
    #[error(transparent)]
    Ext4(#[from] Ext4Error),
}

/// A file system that layers are laid into, lowest first.
pub(crate) struct Merge {
    writer: Writer,
    limit: u64,
    /// Bytes of all files so far.
    size: u64,
    os_release: Option<Vec<u8>>,
}

impl Merge {
    /// Files of at most `limit` bytes in all go into `writer`.
    pub(crate) fn new(writer: Writer, limit: u64) -> Self {
        Self {
            writer,
            limit,
            size: 0,
            os_release: None,
        }
    }

    /// Lays the layer that `stream` holds over what is there, and reads it to its end.
    pub(crate) fn lay(&mut self, stream: impl Read) -> Result<(), MergeError> {
        self.writer.begin_layer()?;
        let mut reader = Reader::new(stream, End::Anywhere);
        while let Some(mut entry) = reader.next_entry()? {
            self.take(&mut entry, &mut reader)?;
            let most = self.limit.saturating_mul(2).saturating_add(OVERHEAD);
            if self.writer.size_on_disk() > most {
                return Err(MergeError::TooLarge { limit: self.limit });
            }
        }
        Ok(())
    }

    /// The file system, and what its `os-release` says, if it has one.
    pub(crate) fn into_parts(self) -> (Writer, Option<Vec<u8>>) {
        (self.writer, self.os_release)
    }

    fn take<R: Read>(
        &mut self,
        entry: &mut Entry,
        reader: &mut Reader<R>,
    ) -> Result<(), MergeError> {
        let path = &entry.path;
        if names(path).any(|name| name == b"..") {
            return Err(MergeError::Traversal { path: shown(path) });
        }
        let (parent, name) = split_last(path);
        if name == OPAQUE {
            return Ok(self.writer.hide_content(parent)?);
        }
        if names(path).any(|name| name.starts_with(AUFS)) {
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(HIDES) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(MergeError::Whiteout { path: shown(path) });
            }
            return Ok(self.writer.hide(&[parent, b"/", hidden].concat())?);
        }
        self.check_links(entry)?;
        self.size = self.size.saturating_add(entry.size);
        if self.size > self.limit {
            return Err(MergeError::TooLarge { limit: self.limit });
        }
        drop_foreign_attributes(entry);
        if is_os_release(entry) {
            let mut content = Vec::new();
            let read = reader.content().read_to_end(&mut content);
            read.map_err(TarError::Read)?;
            if (content.len() as u64) < entry.size {
                return Err(TarError::Truncated.into());
            }
            self.writer.file(
                &entry.path,
                &entry.attributes,
                &mut &content[..],
                entry.size,
            )?;
            self.os_release = Some(content);
            return Ok(());
        }
        Ok(reader.copy_entry(entry, &mut self.writer)?)
    }

    /// Refuses links that could be used to reach what is not in the image. Absolute targets are
    /// as good as any: what follows them has the image as its root.
    fn check_links(&mut self, entry: &Entry) -> Result<(), MergeError> {
        let target = &entry.link;
        if entry.kind.is_hard_link() && names(target).any(|name| name == b"..") {
            return Err(MergeError::Traversal {
                path: shown(target),
            });
        }
        if entry.kind.is_symlink() && !target.starts_with(b"/") {
            let depth = self.writer.depth_of(&entry.path)?;
            if climbs_out(target, depth) {
                return Err(MergeError::Escapes {
                    path: shown(&entry.path),
                    target: shown(target),
                });
            }
        }
        Ok(())
    }
}

/// Whether a relative path that begins `depth` directories below the root leads above it.
fn climbs_out(target: &[u8], mut depth: usize) -> bool {
    for name in names(target) {
        match name {
            b".." if depth == 0 => return true,
            b".." => depth -= 1,
            _ => depth += 1,
        }
    }
    false
}

/// Takes out what ext4 has no place for, such as the attributes of other systems' files.
fn drop_foreign_attributes(entry: &mut Entry) {
    let Entry {
        path, attributes, ..
    } = entry;
    attributes.extended.retain(|(name, _)| {
        let stays = ext4::holds_attribute(name);
        if !stays {
            tracing::debug!(
                path = %shown(path).display(),
                attribute = %String::from_utf8_lossy(name),
                "an extended attribute that ext4 cannot hold is left out"
            );
        }
        stays
    });
}

fn is_os_release(entry: &Entry) -> bool {
    let path: Vec<&[u8]> = names(&entry.path).collect();
    entry.kind.is_file()
        && !entry.is_sparse()
        && entry.size <= LONGEST_OS_RELEASE
        && OS_RELEASE.contains(&&path.join(&b'/')[..])
}

/// The names of a path, without empty ones and `.`.
fn names(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
}

/// What is before the last name, and the last name.
fn split_last(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path.len() - path.iter().rev().take_while(|byte| **byte == b'/').count();
    let path = &path[..end];
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

#[cfg(test)]
mod tests;

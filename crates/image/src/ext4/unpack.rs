//! A part of a file system that is being written, laid out as ordinary files of the host.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use tokio_util::sync::CancellationToken;

use super::BLOCK;
use super::extent::{self, Extent};
use super::inode::{self, Inode, mode};
use super::tree::Tree;

/// What a directory must let its owner do, so that an ordinary user can fill and remove it.
const OWNERS: u16 = 0o700;
/// Most directories above anything: whoever makes an image must not decide how much stack it takes.
const DEEPEST: usize = 256;
/// Bytes copied at a time.
const CHUNK: usize = 256 << 10;

/// How much room files take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) inodes: u64,
    /// Bytes in whole blocks, without holes.
    pub(crate) bytes: u64,
}

/// A directory with all that is below it.
pub(crate) struct Subtree<'a> {
    tree: &'a Tree,
    number: u32,
}

impl<'a> Subtree<'a> {
    pub(super) fn new(tree: &'a Tree, number: u32) -> Self {
        Self { tree, number }
    }

    /// How much it takes; `None` if an ordinary user's files cannot show it: it is no directory,
    /// something in it is another user's than root, has extended attributes, is neither file,
    /// directory nor symbolic link, or lies deeper than anything is meant to.
    pub(crate) fn measure(&self) -> Option<Amount> {
        if !self.tree.is_directory(self.number) {
            return None;
        }
        let mut amount = Amount::default();
        let mut seen = HashSet::new();
        let mut open = vec![(self.number, 0)];
        while let Some((number, depth)) = open.pop() {
            if !seen.insert(number) {
                continue;
            }
            if depth > DEEPEST {
                return None;
            }
            let inode = self.tree.inode(number).filter(|inode| is_plain(inode))?;
            amount.inodes += 1;
            amount.bytes += inode.blocks.1 * BLOCK as u64;
            let names = self.tree.names(number);
            open.extend(names.map(|(_, child)| (child, depth + 1)));
        }
        Some(amount)
    }

    /// Lays it out, once it has been measured, as the directory `to`, which must not exist. The
    /// content of files is read from `disk`, to which the file system is written. All of it
    /// belongs to this process's user there. Fails soon after `cancel` is cancelled, with what was
    /// laid out until then.
    pub(crate) fn unpack(
        &self,
        disk: &File,
        to: &Path,
        cancel: &CancellationToken,
    ) -> io::Result<()> {
        let mut work = Work {
            tree: self.tree,
            disk,
            cancel,
            named: HashMap::new(),
        };
        work.entry(self.number, to)
    }
}

/// Whether an ordinary user's file can stand for it.
fn is_plain(inode: &Inode) -> bool {
    let is_roots = inode.uid == 0 && inode.gid == 0;
    let has_attributes = inode.attributes.is_some() || inode.attribute_block != 0;
    let is_of_a_kind = match inode.mode & mode::TYPE {
        mode::FILE | mode::SYMLINK => true,
        mode::DIRECTORY => inode.mode & OWNERS == OWNERS,
        _ => false,
    };
    is_roots && !has_attributes && is_of_a_kind
}

struct Work<'a> {
    tree: &'a Tree,
    disk: &'a File,
    cancel: &'a CancellationToken,
    /// Where a file with several names has its first one.
    named: HashMap<u32, PathBuf>,
}

impl Work<'_> {
    /// The recursion is no deeper than what was measured.
    fn entry(&mut self, number: u32, to: &Path) -> io::Result<()> {
        self.require_wanted()?;
        if let Some(first) = self.named.get(&number) {
            return fs::hard_link(first, to);
        }
        let inode = self.tree.inode(number).ok_or(io::ErrorKind::NotFound)?;
        if self.tree.is_directory(number) {
            fs::create_dir(to)?;
            for (name, child) in self.tree.names(number) {
                self.entry(child, &to.join(OsStr::from_bytes(name)))?;
            }
            return describe(inode, to);
        }
        match self.tree.target(number) {
            Some(target) => symlink(OsStr::from_bytes(target), to)?,
            None => self.file(inode, to)?,
        }
        if inode.links > 1 {
            self.named.insert(number, to.to_owned());
        }
        describe(inode, to)
    }

    fn file(&self, inode: &Inode, to: &Path) -> io::Result<()> {
        let file = File::create_new(to)?;
        let read = |block| {
            let mut bytes = [0; BLOCK];
            let read = self.disk.read_exact_at(&mut bytes, block * BLOCK as u64);
            read.map(|()| bytes)
        };
        if inode.flags & inode::EXTENTS != 0 {
            for extent in extent::read(&inode.block, read)? {
                self.copy(&file, extent, inode.size)?;
            }
        }
        file.set_len(inode.size)
    }

    fn copy(&self, file: &File, extent: Extent, size: u64) -> io::Result<()> {
        let from = extent.physical * BLOCK as u64;
        let to = u64::from(extent.logical) * BLOCK as u64;
        let length = (u64::from(extent.count) * BLOCK as u64).min(size.saturating_sub(to));
        let mut buffer = vec![0; CHUNK.min(usize::try_from(length).unwrap_or(CHUNK))];
        let mut done = 0;
        while done < length {
            self.require_wanted()?;
            let wanted = usize::try_from(length - done).unwrap_or(CHUNK);
            let chunk = &mut buffer[..wanted.min(CHUNK)];
            self.disk.read_exact_at(chunk, from + done)?;
            file.write_all_at(chunk, to + done)?;
            done += chunk.len() as u64;
        }
        Ok(())
    }

    fn require_wanted(&self) -> io::Result<()> {
        match self.cancel.is_cancelled() {
            true => Err(io::Error::other("it was called off")),
            false => Ok(()),
        }
    }
}

fn describe(inode: &Inode, to: &Path) -> io::Result<()> {
    if inode.mode & mode::TYPE != mode::SYMLINK {
        let mode = u32::from(inode.mode & 0o7777);
        fs::set_permissions(to, Permissions::from_mode(mode))?;
    }
    let modified = Timespec {
        tv_sec: inode.modified.seconds,
        tv_nsec: inode.modified.nanoseconds.into(),
    };
    let times = Timestamps {
        last_access: modified,
        last_modification: modified,
    };
    Ok(utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

//! How a VM's disks are made: clones of a formatted, empty template, or of another file.
//!
//! A template is a sparse file, made once for each size. A clone shares its extents where
//! the file system can do that, and is a copy of just its few data extents elsewhere, so a
//! new disk takes milliseconds and a few hundred KiB, whatever its size.
//!
//! Everything in here blocks for file operations: call it where blocking is fine.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use banger_proto::error::ErrorKind;
use banger_proto::size::ByteSize;
use rustix::fs::SeekFrom;

use crate::ext4::Amount;
use crate::tool::{self, MKE2FS, ToolError, UNSHARE};

/// Room that must be left on the file system beyond what a clone takes.
const RESERVE: u64 = 64 << 20;
/// Bytes written between two looks at the room that is left.
const LOOK_EVERY: u64 = 64 << 20;
/// Smallest disk that can hold an ext4 file system with a journal.
pub const SMALLEST: ByteSize = ByteSize::from_mib(16);
/// Least size of a seed, and its journal's.
const SEED: ByteSize = ByteSize::from_mib(256);
const SEED_JOURNAL: ByteSize = ByteSize::from_mib(64);
/// Bytes of a disk for each inode, as mke2fs has it for large ones.
const BYTES_PER_INODE: u64 = 16384;
/// Changed whenever templates are made in another way, so that old ones are not used.
const TEMPLATE_FORMAT: u32 = 2;

/// Why a disk could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Too small for a file system.
    #[error("a disk of {size} is too small: the least is {SMALLEST}")]
    TooSmall {
        /// The size asked for.
        size: ByteSize,
    },
    /// Too small for what the image puts into it.
    #[error("a work disk of {size} is too small: the image's own has {least}")]
    SmallerThanSeed {
        /// The size asked for.
        size: ByteSize,
        /// The least size.
        least: ByteSize,
    },
    /// It could not be formatted.
    #[error("could not format a disk of {size}")]
    Format {
        /// The size asked for.
        size: ByteSize,
        /// Why not.
        #[source]
        source: ToolError,
    },
    /// The file system lacks room.
    #[error(
        "the file system of `{path}` has {} MiB free, and {} MiB are needed",
        free >> 20,
        needed >> 20
    )]
    NoRoom {
        /// Where the disk was to be.
        path: PathBuf,
        /// Bytes free.
        free: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// The file system is getting full while something is written.
    #[error(
        "the file system that it is written to has {} MiB left, and {} MiB are needed",
        free >> 20,
        needed >> 20
    )]
    Full {
        /// Bytes free.
        free: u64,
        /// Bytes needed to go on.
        needed: u64,
    },
    /// It cannot be told whether there is room.
    #[error("could not ask the file system for its free space")]
    Room(#[source] io::Error),
    /// A file operation failed.
    #[error("could not {action} `{path}`")]
    Io {
        /// What was being done, such as `create`.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl DiskError {
    /// What kind of failure it is, for the API.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::TooSmall { .. } | Self::SmallerThanSeed { .. } => ErrorKind::Invalid,
            Self::NoRoom { .. }
            | Self::Full { .. }
            | Self::Format {
                source: ToolError::Missing { .. },
                ..
            } => ErrorKind::Precondition,
            Self::Format { .. } | Self::Room(_) | Self::Io { .. } => ErrorKind::Failed,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Format { source, .. } => source.hint(),
            Self::SmallerThanSeed { least, .. } => Some(format!("`--disk-size {least}`")),
            Self::NoRoom { .. } | Self::Full { .. } => {
                Some("free some space, or move banger's state elsewhere".to_owned())
            }
            _ => None,
        }
    }
}

/// Makes the empty, formatted disk `to` of `size`: ext4 with a journal and no blocks
/// reserved for root. `to` must not exist; it is not there after a failure.
pub fn clone_blank(cache_dir: &Path, size: ByteSize, to: &Path) -> Result<(), DiskError> {
    if size < SMALLEST {
        return Err(DiskError::TooSmall { size });
    }
    let (path, template) = template(cache_dir, size)?;
    clone_open(&template, &path, to)
}

/// Makes `to`, a disk to make others of by [`clone_seed`]: what is in the host's directory
/// `content`, which takes `amount`, as root's, and room to be used as it is. The disks grow to a
/// thousand times its size. `to` must not exist; it is not there after a failure.
pub(crate) fn make_seed(content: &Path, amount: Amount, to: &Path) -> Result<(), DiskError> {
    // An inode for each so many bytes, and a tenth for what the file system needs of its own.
    let bytes = amount.bytes.max(amount.inodes * BYTES_PER_INODE);
    let content_mib = (bytes + bytes / 10).div_ceil(1 << 20);
    let size = ByteSize::from_mib(SEED.mib().max(2 * SEED_JOURNAL.mib() + content_mib));
    let made = File::create_new(to)
        .and_then(|file| file.set_len(size.bytes()))
        .map_err(io_error("create", to))
        .and_then(|()| format_ext4(to, size, Some(content)));
    let synced = made.and_then(|()| {
        let file = File::open(to).map_err(io_error("open", to))?;
        file.sync_all().map_err(io_error("write", to))
    });
    synced.inspect_err(|_| {
        // The first failure is the one to tell of.
        let _ = std::fs::remove_file(to);
    })
}

/// Makes the disk `to` of `size` out of `seed`, whose file system the guest grows into it. `to`
/// must not exist; it is not there after a failure.
pub fn clone_seed(seed: &Path, size: ByteSize, to: &Path) -> Result<(), DiskError> {
    let least = std::fs::metadata(seed)
        .map_err(io_error("read", seed))?
        .len();
    if size.bytes() < least {
        return Err(DiskError::SmallerThanSeed {
            size,
            least: ByteSize::from_bytes(least),
        });
    }
    clone_file(seed, to)?;
    let grown = OpenOptions::new()
        .write(true)
        .open(to)
        .and_then(|disk| disk.set_len(size.bytes()));
    grown.map_err(|source| {
        // The first failure is the one to tell of.
        let _ = std::fs::remove_file(to);
        io_error("size", to)(source)
    })
}

/// Makes `to` a copy of `from` that shares its extents, or else has the same holes. `to`
/// must not exist; it is not there after a failure.
pub fn clone_file(from: &Path, to: &Path) -> Result<(), DiskError> {
    let source = File::open(from).map_err(io_error("open", from))?;
    clone_open(&source, from, to)
}

/// As [`clone_file`], of a file that is open.
fn clone_open(source: &File, from: &Path, to: &Path) -> Result<(), DiskError> {
    let target = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .map_err(io_error("create", to))?;
    let result = fill(source, from, &target, to);
    if result.is_err() {
        // The first failure is the one to tell of.
        let _ = std::fs::remove_file(to);
    }
    result
}

fn fill(source: &File, from: &Path, target: &File, to: &Path) -> Result<(), DiskError> {
    match rustix::fs::ioctl_ficlone(target, source) {
        Ok(()) => return Ok(()),
        Err(error) => tracing::trace!(%error, "no reflink, copying the data extents"),
    }
    let length = source.metadata().map_err(io_error("read", from))?.len();
    let extents = data_extents(source, length).map_err(io_error("read", from))?;
    require_room(to, extents.iter().map(|(start, end)| end - start).sum())?;
    target.set_len(length).map_err(io_error("size", to))?;
    for (start, end) in extents {
        copy_range(source, target, start, end).map_err(io_error("write", to))?;
    }
    Ok(())
}

/// The parts of the file that are not holes, as (start, end).
fn data_extents(file: &File, length: u64) -> io::Result<Vec<(u64, u64)>> {
    let mut extents = Vec::new();
    let mut at = 0;
    while at < length {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // No data from here to the end.
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))?;
        extents.push((start, end.min(length)));
        at = end;
    }
    Ok(extents)
}

fn copy_range(source: &File, target: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut from, mut to) = (start, start);
    while from < end {
        let wanted = usize::try_from(end - from).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), wanted) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            // Between file systems of different kinds.
            Err(
                rustix::io::Errno::XDEV | rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::INVAL,
            ) => {
                return copy_by_hand(source, target, from, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(source: &File, target: &File, start: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; 1 << 20];
    let mut at = start;
    while at < end {
        let wanted = buffer
            .len()
            .min(usize::try_from(end - at).unwrap_or(usize::MAX));
        source.read_exact_at(&mut buffer[..wanted], at)?;
        target.write_all_at(&buffer[..wanted], at)?;
        at += wanted as u64;
    }
    Ok(())
}

/// Refuses to write `bytes` to the file system of `path` if that would fill it.
pub(crate) fn require_room(path: &Path, bytes: u64) -> Result<(), DiskError> {
    let directory = path.parent().unwrap_or(path);
    let free = free_space(directory).map_err(io_error("ask for the free space of", directory))?;
    let needed = bytes.saturating_add(RESERVE);
    if free < needed {
        return Err(DiskError::NoRoom {
            path: path.to_owned(),
            free,
            needed,
        });
    }
    Ok(())
}

/// Looks every so often, while a file is written, whether its file system will not be full.
#[derive(Debug, Default)]
pub(crate) struct Room {
    /// Bytes that may be written before the next look.
    until_look: u64,
}

impl Room {
    /// Refuses to write `bytes` more to `file` if that would fill its file system.
    pub(crate) fn before(&mut self, file: &impl AsFd, bytes: u64) -> Result<(), DiskError> {
        if self.until_look < bytes {
            let stat = rustix::fs::fstatvfs(file).map_err(|error| DiskError::Room(error.into()))?;
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let needed = bytes.saturating_add(LOOK_EVERY).saturating_add(RESERVE);
            if free < needed {
                return Err(DiskError::Full { free, needed });
            }
            self.until_look = bytes.saturating_add(LOOK_EVERY);
        }
        self.until_look -= bytes;
        Ok(())
    }
}

/// Bytes that this user may still write to the file system of `directory`.
pub(crate) fn free_space(directory: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(directory)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Where templates are.
pub(crate) fn templates(cache_dir: &Path) -> PathBuf {
    cache_dir.join("templates")
}

/// The formatted, empty disk of `size`, made now if it is missing: where it is, and the file, which
/// may be tidied away at any time. Two that make the same one at once both make it; the later rename
/// wins, and either file is good.
fn template(cache_dir: &Path, size: ByteSize) -> Result<(PathBuf, File), DiskError> {
    let directory = templates(cache_dir);
    std::fs::create_dir_all(&directory).map_err(io_error("make the directory", &directory))?;
    let path = directory.join(format!("ext4-v{TEMPLATE_FORMAT}-{}.img", size.bytes()));
    if let Ok(file) = File::open(&path)
        && file
            .metadata()
            .is_ok_and(|found| found.len() == size.bytes())
    {
        return Ok((path, file));
    }
    let draft = tempfile::Builder::new()
        .prefix(".template-")
        .tempfile_in(&directory)
        .map_err(io_error("create a file in", &directory))?;
    draft
        .as_file()
        .set_len(size.bytes())
        .map_err(io_error("size", draft.path()))?;
    format_ext4(draft.path(), size, None)?;
    draft
        .as_file()
        .sync_all()
        .map_err(io_error("write", draft.path()))?;
    let file = draft
        .persist(&path)
        .map_err(|error| io_error("publish", &path)(error.error))?;
    Ok((path, file))
}

/// Formats the file `path`, with the content of a directory of the host's if there is one.
fn format_ext4(path: &Path, size: ByteSize, content: Option<&Path>) -> Result<(), DiskError> {
    // On a regular file, mke2fs punches holes and then knows that the inode tables are
    // zero: neither it nor the guest's kernel writes them.
    let format = || {
        let mut command = match content {
            // In a user namespace where it is root, an ordinary user's files are root's.
            Some(_) if !rustix::process::geteuid().is_root() => {
                let mut command = UNSHARE.command()?;
                command.args(["--map-root-user", "--"]).arg(MKE2FS.find()?);
                command
            }
            _ => MKE2FS.command()?,
        };
        command
            .args(["-q", "-F", "-t", "ext4", "-m", "0"])
            // As for a large disk, however small this one is: it may grow to a thousand times
            // its size while it is mounted, and its blocks and inodes must fit then.
            .args(["-b", "4096", "-i", &BYTES_PER_INODE.to_string()])
            .args(["-E", "discard,lazy_journal_init=1,root_owner=0:0"]);
        if let Some(content) = content {
            // The journal does not grow with the disk: this is that of a disk of 8 GiB.
            command.args(["-J", &format!("size={}", SEED_JOURNAL.mib())]);
            command.arg("-d").arg(content);
        }
        command.arg(path);
        tool::run(&mut command)
    };
    format()
        .map(drop)
        .map_err(|source| DiskError::Format { size, source })
}

fn io_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> DiskError + 'a {
    move |source| DiskError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tool::Tool;
    use std::os::unix::fs::{FileExt, MetadataExt};

    const E2FSCK: Tool = Tool {
        name: "e2fsck",
        package: "e2fsprogs",
    };
    const DUMPE2FS: Tool = Tool {
        name: "dumpe2fs",
        package: "e2fsprogs",
    };

    fn workplace() -> Option<tempfile::TempDir> {
        if MKE2FS.find().is_err() {
            eprintln!("skipped: e2fsprogs is not installed");
            return None;
        }
        Some(tempfile::tempdir().unwrap())
    }

    #[test]
    fn a_blank_disk_is_sparse_clean_and_needs_no_work_of_the_guest() {
        let Some(place) = workplace() else { return };
        let disk = place.path().join("disk");
        clone_blank(place.path(), ByteSize::from_gib(8), &disk).unwrap();
        let found = std::fs::metadata(&disk).unwrap();
        assert_eq!(found.len(), 8 << 30);
        assert!(
            found.blocks() * 512 < 16 << 20,
            "{} KiB",
            found.blocks() / 2
        );
        tool::run(E2FSCK.command().unwrap().args(["-f", "-n"]).arg(&disk)).unwrap();
        let facts = tool::run(DUMPE2FS.command().unwrap().arg(&disk)).unwrap();
        let facts = String::from_utf8_lossy(&facts).into_owned();
        assert!(facts.contains("has_journal"), "{facts}");
        assert!(facts.contains("Reserved block count:     0"), "{facts}");
        // Each group's inode table is known to be zero: the guest does not write it.
        assert_eq!(
            facts.matches(": (Blocks ").count(),
            facts.matches("ITABLE_ZEROED").count()
        );
    }

    #[test]
    fn a_small_disk_has_room_to_grow() {
        let Some(place) = workplace() else { return };
        let disk = place.path().join("disk");
        clone_blank(place.path(), ByteSize::from_mib(64), &disk).unwrap();
        let facts = tool::run(DUMPE2FS.command().unwrap().arg(&disk)).unwrap();
        let facts = String::from_utf8_lossy(&facts).into_owned();
        let number = |name: &str| -> u64 {
            let line = facts.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or(&facts).trim().parse().unwrap()
        };
        // A descriptor for each 128 MiB: those of 64 GiB fit.
        let descriptors = (number("Reserved GDT blocks:") + 1) * number("Block size:") / 64;
        assert!(descriptors << 27 >= 64 << 30, "{facts}");
        assert_eq!(number("Block size:"), 4096);
    }

    #[test]
    fn disks_of_one_size_come_from_one_template_and_are_their_own() {
        let Some(place) = workplace() else { return };
        let (first, second) = (place.path().join("1"), place.path().join("2"));
        let size = ByteSize::from_mib(64);
        clone_blank(place.path(), size, &first).unwrap();
        File::options()
            .write(true)
            .open(&first)
            .unwrap()
            .write_all_at(b"mine", 5000)
            .unwrap();
        clone_blank(place.path(), size, &second).unwrap();
        assert!(std::fs::read(&first).unwrap() != std::fs::read(&second).unwrap());
        assert_eq!(
            std::fs::read_dir(place.path().join("templates"))
                .unwrap()
                .count(),
            1
        );
        assert_eq!(std::fs::metadata(&first).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_template_that_was_cut_short_is_made_anew() {
        let Some(place) = workplace() else { return };
        let size = ByteSize::from_mib(32);
        let (template, _) = template(place.path(), size).unwrap();
        std::fs::write(&template, "cut").unwrap();
        let disk = place.path().join("disk");
        clone_blank(place.path(), size, &disk).unwrap();
        tool::run(E2FSCK.command().unwrap().args(["-f", "-n"]).arg(&disk)).unwrap();
    }

    #[test]
    fn a_clone_has_the_same_bytes_and_holes() {
        let place = tempfile::tempdir().unwrap();
        let (from, to) = (place.path().join("from"), place.path().join("to"));
        let file = File::create(&from).unwrap();
        file.set_len(100 << 20).unwrap();
        for at in [0, 7 << 20, (50 << 20) + 123, (100 << 20) - 4] {
            file.write_all_at(b"data", at).unwrap();
        }
        clone_file(&from, &to).unwrap();
        assert!(std::fs::read(&from).unwrap() == std::fs::read(&to).unwrap());
        assert!(std::fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20);
        // The way taken between file systems of different kinds.
        let (source, by_hand) = (File::open(&from).unwrap(), place.path().join("by-hand"));
        copy_by_hand(
            &source,
            &File::create(&by_hand).unwrap(),
            7 << 20,
            (7 << 20) + 5,
        )
        .unwrap();
        assert_eq!(std::fs::read(&by_hand).unwrap()[7 << 20..], *b"data\0");
    }

    #[test]
    fn an_existing_disk_is_not_touched_and_a_failed_one_not_left() {
        let place = tempfile::tempdir().unwrap();
        let (from, to) = (place.path().join("from"), place.path().join("to"));
        std::fs::write(&from, "new").unwrap();
        std::fs::write(&to, "old").unwrap();
        assert!(matches!(
            clone_file(&from, &to),
            Err(DiskError::Io {
                action: "create",
                ..
            })
        ));
        assert_eq!(std::fs::read_to_string(&to).unwrap(), "old");
        let missing = place.path().join("missing");
        assert!(clone_file(&missing, &place.path().join("x")).is_err());
        assert!(!place.path().join("x").exists());
    }

    #[test]
    fn sizes_and_room_that_do_not_suffice_are_refused() {
        let place = tempfile::tempdir().unwrap();
        let error =
            clone_blank(place.path(), ByteSize::from_mib(1), &place.path().join("x")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a disk of 1M is too small: the least is 16M"
        );
        let error = require_room(place.path(), 1 << 60).unwrap_err();
        assert!(matches!(error, DiskError::NoRoom { .. }), "{error}");
        assert_eq!(error.kind(), ErrorKind::Precondition);
    }
}

//! Whether a file that is not banger's can be booted from: it is there, readable, a whole ext4
//! file system that was unmounted cleanly, and nobody else can put another one in its place.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// Where the superblock is, and how long (Documentation/filesystems/ext4/super.rst).
const SUPERBLOCK: u64 = 1024;
const SUPERBLOCK_LENGTH: usize = 1024;
const MAGIC: u16 = 0xef53;
/// `INCOMPAT_RECOVER`: the journal has to be replayed.
const RECOVER: u32 = 0x4;
/// `INCOMPAT_64BIT`: the number of blocks has a high half.
const WIDE: u32 = 0x80;

/// Why a file cannot be booted from.
#[derive(Debug, thiserror::Error)]
pub enum ElsewhereError {
    /// It depends on where somebody is.
    #[error("`{}` is not an absolute path", .0.display())]
    Relative(PathBuf),
    /// It cannot be opened or read.
    #[error("could not {action} `{}`", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("`{}` is not a file", .0.display())]
    NoFile(PathBuf),
    /// It holds something else.
    #[error("`{}` is not an ext4 file system", .0.display())]
    NotExt4(PathBuf),
    /// The file ends before the file system does.
    #[error("`{}` is cut short: its file system has {wanted} bytes, and the file {length}", path.display())]
    Short {
        /// The file.
        path: PathBuf,
        /// Bytes that there should be.
        wanted: u64,
        /// Bytes that there are.
        length: u64,
    },
    /// A journal cannot be replayed on a disk that is read-only.
    #[error("`{}` was not unmounted cleanly", .0.display())]
    Unclean(PathBuf),
    /// Root would follow a link that somebody else can change.
    #[error("`{}` is a symbolic link that others than root can change", .0.display())]
    Planted(PathBuf),
}

impl ElsewhereError {
    /// Whether it is simply not there.
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Relative(_) => Some("write the path from `/` on".to_owned()),
            Self::Unclean(path) => Some(format!(
                "unmount it if it is mounted, then run `e2fsck -p {}`",
                path.display()
            )),
            Self::NotExt4(_) => Some(
                "an image is a file system without partitions, as `mke2fs -t ext4` makes it"
                    .to_owned(),
            ),
            Self::Planted(_) => Some("name the file without symbolic links".to_owned()),
            Self::Io { .. } | Self::NoFile(_) | Self::Short { .. } => None,
        }
    }
}

/// Checks the file at `path`; returns the bytes that it takes on the disk.
///
/// # Errors
/// Why no VM can boot from it.
pub(crate) fn check(path: &Path) -> Result<u64, ElsewhereError> {
    check_as(path, rustix::process::geteuid().is_root())
}

fn check_as(path: &Path, is_root: bool) -> Result<u64, ElsewhereError> {
    if !path.is_absolute() {
        return Err(ElsewhereError::Relative(path.to_owned()));
    }
    if is_root {
        refuse_planted_links(path)?;
    }
    let failed = |action| {
        let path = path.to_owned();
        move |source: io::Error| ElsewhereError::Io {
            action,
            path,
            source,
        }
    };
    // A fifo must not hold the daemon up.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|errno| failed("open")(errno.into()))?;
    let file = File::from(file);
    let metadata = file.metadata().map_err(failed("look at"))?;
    if !metadata.is_file() {
        return Err(ElsewhereError::NoFile(path.to_owned()));
    }
    let mut block = [0; SUPERBLOCK_LENGTH];
    match file.read_exact_at(&mut block, SUPERBLOCK) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(ElsewhereError::NotExt4(path.to_owned()));
        }
        Err(error) => return Err(failed("read")(error)),
    }
    let superblock =
        Superblock::parse(&block).ok_or_else(|| ElsewhereError::NotExt4(path.to_owned()))?;
    if superblock.length > metadata.len() {
        return Err(ElsewhereError::Short {
            path: path.to_owned(),
            wanted: superblock.length,
            length: metadata.len(),
        });
    }
    match superblock.is_clean {
        true => Ok(metadata.blocks() * 512),
        false => Err(ElsewhereError::Unclean(path.to_owned())),
    }
}

/// What of a superblock matters here.
#[derive(Debug, PartialEq, Eq)]
struct Superblock {
    length: u64,
    is_clean: bool,
}

impl Superblock {
    fn parse(block: &[u8; SUPERBLOCK_LENGTH]) -> Option<Self> {
        let half = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
        let word = |at: usize| {
            u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
        };
        let shift = word(0x18);
        // ext4 knows blocks of 1 to 64 KiB.
        if half(0x38) != MAGIC || shift > 6 {
            return None;
        }
        let features = word(0x60);
        let high = match features & WIDE {
            0 => 0,
            _ => word(0x150),
        };
        let blocks = u64::from(high) << 32 | u64::from(word(0x4));
        Some(Self {
            length: blocks.checked_mul(1024 << shift)?,
            is_clean: features & RECOVER == 0,
        })
    }
}

/// Refuses a path on which there is a symbolic link that another user could point elsewhere
/// while root trusts it: one of another user's, or in a directory in which others may rename.
fn refuse_planted_links(path: &Path) -> Result<(), ElsewhereError> {
    let mut so_far = PathBuf::from("/");
    for component in path.components() {
        let Component::Normal(name) = component else {
            continue;
        };
        let directory = so_far.clone();
        so_far.push(name);
        let look = |path: &Path| {
            std::fs::symlink_metadata(path).map_err(|source| ElsewhereError::Io {
                action: "look at",
                path: path.to_owned(),
                source,
            })
        };
        let found = look(&so_far)?;
        if !found.is_symlink() {
            continue;
        }
        let above = std::fs::metadata(&directory).map_err(|source| ElsewhereError::Io {
            action: "look at",
            path: directory.clone(),
            source,
        })?;
        // In a sticky directory only a link's owner replaces it (unlink(2)).
        let others_write = above.mode() & 0o022 != 0 && above.mode() & 0o1000 == 0;
        if found.uid() != 0 || above.uid() != 0 || others_write {
            return Err(ElsewhereError::Planted(so_far));
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    /// An empty file system, as far as anybody looks here.
    pub(crate) fn filesystem(path: &Path, features: u32) {
        let mut block = [0; SUPERBLOCK_LENGTH];
        block[0x4..0x8].copy_from_slice(&8u32.to_le_bytes());
        block[0x38..0x3a].copy_from_slice(&MAGIC.to_le_bytes());
        block[0x60..0x64].copy_from_slice(&features.to_le_bytes());
        let file = File::create(path).unwrap();
        file.set_len(8 * 1024).unwrap();
        file.write_all_at(&block, SUPERBLOCK).unwrap();
    }

    fn refusal(path: &Path, is_root: bool) -> String {
        let error = check_as(path, is_root).unwrap_err();
        let hint = error.hint().unwrap_or_default();
        let directory = path.parent().unwrap().display().to_string();
        format!("{error} ({hint})").replace(&directory, "/dir")
    }

    #[test]
    fn what_cannot_be_booted_says_why() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        filesystem(&at("good"), 0);
        assert!(check_as(&at("good"), false).is_ok());
        filesystem(&at("unclean"), RECOVER);
        filesystem(&at("short"), 0);
        File::options()
            .write(true)
            .open(at("short"))
            .unwrap()
            .set_len(4096)
            .unwrap();
        std::fs::write(at("text"), "hello").unwrap();
        std::fs::create_dir(at("directory")).unwrap();
        std::fs::write(at("zeros"), [0; 4096]).unwrap();
        let refused: Vec<String> = ["none", "text", "zeros", "directory", "unclean", "short"]
            .map(|name| refusal(&at(name), false))
            .into();
        insta::assert_snapshot!(refused.join("\n"), @"
        could not open `/dir/none` ()
        `/dir/text` is not an ext4 file system (an image is a file system without partitions, as `mke2fs -t ext4` makes it)
        `/dir/zeros` is not an ext4 file system (an image is a file system without partitions, as `mke2fs -t ext4` makes it)
        `/dir/directory` is not a file ()
        `/dir/unclean` was not unmounted cleanly (unmount it if it is mounted, then run `e2fsck -p /dir/unclean`)
        `/dir/short` is cut short: its file system has 8192 bytes, and the file 4096 ()
        ");
        let relative = check_as(Path::new("rootfs.ext4"), false).unwrap_err();
        assert!(matches!(relative, ElsewhereError::Relative(_)));
        assert!(check_as(&at("none"), false).unwrap_err().is_absence());
    }

    #[test]
    fn a_fifo_holds_nobody_up() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, Mode::from_raw_mode(0o600), 0).unwrap();
        let error = check_as(&fifo, false).unwrap_err();
        assert!(matches!(error, ElsewhereError::NoFile(_)));
    }

    #[test]
    fn root_follows_no_link_that_others_can_change() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        filesystem(&at("good"), 0);
        symlink(at("good"), at("link")).unwrap();
        assert!(check_as(&at("link"), false).is_ok(), "a user's own affair");
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o777)).unwrap();
        let error = check_as(&at("link"), true).unwrap_err();
        assert!(matches!(error, ElsewhereError::Planted(_)), "{error}");
    }

    proptest! {
        #[test]
        fn no_superblock_is_too_odd(bytes in proptest::collection::vec(any::<u8>(), SUPERBLOCK_LENGTH)) {
            let block: [u8; SUPERBLOCK_LENGTH] = bytes.try_into().unwrap();
            let _ = Superblock::parse(&block);
        }
    }
}

//! A machine's directory among the sockets: where Firecracker works.
//!
//! Where root's Firecracker has a user of its own, the directory is root's and that user's group
//! may write to it, with the sticky bit: it makes its own sockets in there, and what root made
//! stays where it is and root's.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::process::Gid;

use crate::process::Identity;

/// Whose Firecracker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// This process's user.
    This,
    /// A user with this group, which is no one else's.
    Group(Gid),
}

impl From<Option<&Identity>> for Owner {
    fn from(identity: Option<&Identity>) -> Self {
        identity.map_or(Self::This, |identity| Self::Group(identity.gid))
    }
}

/// Makes the directory, empty.
pub(super) fn make(path: &Path, owner: &Owner) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::DirBuilder::new().mode(0o700).create(path)?;
    let Owner::Group(group) = owner else {
        return Ok(());
    };
    let directory = open(path)?;
    rustix::fs::fchown(&directory, None, Some(*group))?;
    Ok(rustix::fs::fchmod(
        &directory,
        Mode::SVTX | Mode::RWXU | Mode::RWXG,
    )?)
}

/// A link in the directory's place is not followed.
pub(super) fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Lets Firecracker use something that this process has made in there, where nobody else can put
/// another in its place.
pub(super) fn share(path: &Path, owner: &Owner) -> io::Result<()> {
    let Owner::Group(group) = owner else {
        return Ok(());
    };
    chown(path, None, Some(group.as_raw()))?;
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP;
    Ok(rustix::fs::chmod(path, mode)?)
}

/// Makes a named pipe that Firecracker may use.
pub(super) fn make_pipe(path: &Path, owner: &Owner) -> io::Result<()> {
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, mode, 0)?;
    share(path, owner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

    #[test]
    fn a_directory_begins_empty_whatever_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fc");
        fs::create_dir_all(path.join("api")).unwrap();
        make(&path, &Owner::This).unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
        make_pipe(&path.join("log"), &Owner::This).unwrap();
        let pipe = fs::metadata(path.join("log")).unwrap();
        assert!(pipe.file_type().is_fifo() && pipe.permissions().mode() & 0o077 == 0);
        // A link to what is not the machine's.
        fs::remove_dir_all(&path).unwrap();
        let elsewhere = directory.path().join("elsewhere");
        fs::create_dir_all(elsewhere.join("stays")).unwrap();
        symlink(&elsewhere, &path).unwrap();
        make(&path, &Owner::This).unwrap();
        assert!(elsewhere.join("stays").exists());
    }

    #[test]
    fn what_is_shared_stays_roots() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root has engines of other users");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fc");
        let owner = Owner::Group(Gid::from_raw(0x7000_0007));
        make(&path, &owner).unwrap();
        make_pipe(&path.join("log"), &owner).unwrap();
        for (path, mode) in [(path.clone(), 0o1770), (path.join("log"), 0o660)] {
            let made = fs::metadata(path).unwrap();
            assert_eq!(
                (made.uid(), made.gid(), made.mode() & 0o7777),
                (0, 0x7000_0007, mode)
            );
        }
    }
}

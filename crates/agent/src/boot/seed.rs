//! What the work disk holds: `root/`, mounted at `/root`, filled from the image once. A disk that
//! was made from the image's work seed comes with it.
//!
//! ```text
//! empty --copy--> root.new --sync, rename--> root
//! ```
//! A copy that was cut short is `root.new` and is made again; there is no half `root`.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timestamps, XattrFlags, syncfs, utimensat};
use rustix::mount::mount_bind;
use rustix::time::Timespec;

use super::BootError;
use super::root::mount_disk;

/// Where the disk itself is mounted, in the image's root.
const WORK: &str = "run/banger/work";

/// Mounts the work disk and its `root/` at `/root`.
pub(super) fn mount_work(device: &str, root: &Path) -> Result<(), BootError> {
    let work = root.join(WORK);
    mount_disk(device, &work.to_string_lossy())?;
    let home = root.join("root");
    let failed = |source| BootError::Mount {
        what: device.to_owned(),
        target: "/root".to_owned(),
        source,
    };
    if !home.exists() {
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&home)
            .map_err(failed)?;
    }
    let seeded = work.join("root");
    if !seeded.exists() {
        fill(&home, &seeded).map_err(failed)?;
    }
    mount_bind(&seeded, &home).map_err(|errno| failed(errno.into()))
}

/// The mounted work disk's own root directory.
pub(super) fn open_work(root: &Path) -> Result<File, BootError> {
    let work = root.join(WORK);
    File::open(&work).map_err(|source| BootError::Mount {
        what: "the work disk".to_owned(),
        target: work.display().to_string(),
        source,
    })
}

/// Makes `to` a copy of `from`, whole or not at all.
pub(super) fn fill(from: &Path, to: &Path) -> io::Result<()> {
    let unfinished = to.with_extension("new");
    match fs::remove_dir_all(&unfinished) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        result => result?,
    }
    copy_tree(from, &unfinished)?;
    let directory = File::open(to.parent().unwrap_or(to))?;
    syncfs(&directory)?;
    fs::rename(&unfinished, to)?;
    directory.sync_all()
}

/// Copies a tree with its modes, owners, times, links and extended attributes.
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(from)?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        fs::DirBuilder::new().mode(0o700).create(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy_tree(&entry.path(), &to.join(entry.file_name()))?;
        }
    } else if kind.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
    } else if kind.is_file() {
        fs::copy(from, to)?;
    } else if kind.is_socket() {
        // Whoever listened on it is not here.
        return Ok(());
    } else {
        let kind = match kind {
            kind if kind.is_fifo() => FileType::Fifo,
            kind if kind.is_block_device() => FileType::BlockDevice,
            _ => FileType::CharacterDevice,
        };
        rustix::fs::mknodat(CWD, to, kind, Mode::RUSR, metadata.rdev())?;
    }
    copy_attributes(from, to, &metadata)
}

/// Owners before modes: changing the owner clears the set-user-id bit.
fn copy_attributes(from: &Path, to: &Path, metadata: &fs::Metadata) -> io::Result<()> {
    lchown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    if !metadata.is_symlink() {
        fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
    }
    copy_extended_attributes(from, to)?;
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: metadata.atime(),
            tv_nsec: metadata.atime_nsec(),
        },
        last_modification: Timespec {
            tv_sec: metadata.mtime(),
            tv_nsec: metadata.mtime_nsec(),
        },
    };
    Ok(utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// The marks of the root's own overlay are not among them: the kernel does not list these.
fn copy_extended_attributes(from: &Path, to: &Path) -> io::Result<()> {
    // Names and values are at most 64 KiB each (xattr(7)).
    let mut names = vec![0u8; 64 * 1024];
    let length = match rustix::fs::llistxattr(from, &mut names[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    let mut value = vec![0u8; if length == 0 { 0 } else { 64 * 1024 }];
    for name in names[..length]
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
    {
        let length = rustix::fs::lgetxattr(from, name, &mut value[..])?;
        rustix::fs::lsetxattr(to, name, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_whole_or_made_again() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        let work = directory.path().join("work");
        fs::create_dir_all(image.join(".config/deep")).unwrap();
        fs::create_dir_all(work.join("root.new/left-over")).unwrap();
        fs::write(image.join(".bashrc"), "alias ll='ls -l'\n").unwrap();
        fs::set_permissions(image.join(".bashrc"), PermissionsExt::from_mode(0o640)).unwrap();
        fs::write(image.join("run"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(image.join("run"), PermissionsExt::from_mode(0o4755)).unwrap();
        symlink("/nowhere", image.join("link")).unwrap();
        fs::set_permissions(&image, PermissionsExt::from_mode(0o700)).unwrap();

        let root = work.join("root");
        fill(&image, &root).unwrap();
        let mode = |path: &Path| fs::symlink_metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(&root), 0o700);
        assert_eq!(mode(&root.join(".bashrc")), 0o640);
        assert_eq!(mode(&root.join("run")), 0o4755);
        assert_eq!(
            fs::read_link(root.join("link")).unwrap(),
            Path::new("/nowhere")
        );
        assert!(root.join(".config/deep").is_dir());
        assert!(!root.join("left-over").exists() && !work.join("root.new").exists());
        let modified = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
        assert_eq!(modified(&root.join("run")), modified(&image.join("run")));
    }
}

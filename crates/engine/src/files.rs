//! Opens what an engine is to inherit: the engine itself needs no right to any path.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{MemfdFlags, OFlags, SealFlags};

use crate::{Access, LaunchError};

/// Opens a disk image with exactly the access that the guest gets.
pub(crate) fn disk(path: &Path, access: Access) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(access == Access::ReadWrite)
        // A pipe in a disk's place must not hang the daemon.
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)?;
    let kind = file.metadata()?.file_type();
    match kind.is_file() || kind.is_block_device() {
        true => Ok(file),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is neither a file nor a block device",
        )),
    }
}

/// Opens a file that the engine will open once more through `/proc/self/fd`. The path is
/// then of no matter, but the file's mode is: for an engine of another user, a file that is
/// not for everyone is handed over as a sealed copy in memory.
pub(crate) fn reopenable(path: &Path, by_another_user: bool) -> io::Result<File> {
    let mut file = disk(path, Access::ReadOnly)?;
    if !by_another_user || file.metadata()?.mode() & 0o004 != 0 {
        return Ok(file);
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut copy = File::from(rustix::fs::memfd_create("banger", flags)?);
    io::copy(&mut file, &mut copy)?;
    rustix::fs::fcntl_add_seals(
        &copy,
        SealFlags::SEAL | SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK,
    )?;
    Ok(copy)
}

/// Opens a kernel. A file that is none gets an answer that says so: QEMU would take it for a
/// kernel of another age.
pub(crate) fn kernel(path: &Path, by_another_user: bool) -> io::Result<File> {
    let file = reopenable(path, by_another_user)?;
    let mut magic = [0; 4];
    match file.read_exact_at(&mut magic, 0) {
        Ok(()) if magic == *b"\x7fELF" => Ok(file),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is no ELF image (`vmlinux`)",
        )),
    }
}

/// A fresh log that this process and the engine append to; the one before is kept beside it.
pub(crate) fn log(path: &Path) -> Result<File, LaunchError> {
    let opened = || {
        match fs::rename(path, path.with_extension("log.1")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        OpenOptions::new()
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
    };
    opened().map_err(|source| LaunchError::Open {
        what: "log".to_owned(),
        path: path.to_owned(),
        source,
    })
}

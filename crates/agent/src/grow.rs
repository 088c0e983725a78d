//! How a file system comes to use all of a disk that has become larger: ext4 grows while it is
//! mounted (ext4_resize_fs of the kernel's fs/ext4/resize.c), and nothing has to be unmounted.
//!
//! A disk that grew while the guest was down is seen at its boot; one that grows under a running
//! guest is told of by the daemon, and the kernel's event is awaited.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use banger_proto::agent::{DiskRole, Grow};
use banger_proto::size::ByteSize;

use crate::agent::{Agent, Place};
use crate::boot;

/// linux/ext4.h: `EXT4_IOC_RESIZE_FS` is `_IOW('f', 16, __u64)`, a number of blocks.
const EXT4_IOC_RESIZE_FS: libc::c_ulong = 0x4008_6610;
/// Where the superblock begins on the disk (Documentation/filesystems/ext4/super.rst).
const SUPERBLOCK: u64 = 1024;
/// Unit of `/sys/class/block/*/size`, whatever the disk's own sectors.
const SECTOR: u64 = 512;

/// Why a file system was not grown.
#[derive(Debug, thiserror::Error)]
pub enum GrowError {
    /// It is one of those that the host shares between VMs.
    #[error("the {} disk is not this VM's own", role.as_str())]
    Shared {
        /// Which disk.
        role: DiskRole,
    },
    /// The machine has no such disk, or it is not mounted.
    #[error("the {} disk is not in use", role.as_str())]
    Absent {
        /// Which disk.
        role: DiskRole,
    },
    /// The kernel does not show the new size.
    #[error("the kernel shows {shown} of the disk's {wanted}")]
    NotShown {
        /// The size that the disk is said to have.
        wanted: ByteSize,
        /// What the kernel shows of it.
        shown: ByteSize,
    },
    /// The disk cannot be looked at.
    #[error("could not look at the disk {device}: {reason}")]
    Look {
        /// The disk.
        device: String,
        /// Why.
        reason: io::Error,
    },
    /// The kernel does not grow the file system.
    #[error("could not grow the file system of {device}: {reason}")]
    Resize {
        /// The disk.
        device: String,
        /// Why.
        reason: io::Error,
    },
}

/// Waits until the kernel shows a disk's new size, in bounded time, and grows its file system.
/// Blocks.
///
/// # Errors
/// The size is not shown in time, or the file system cannot be grown.
pub fn live(agent: &Agent, grow: Grow) -> Result<(), GrowError> {
    let Place::Guest(power) = &agent.place else {
        // The disks of an ordinary process are not the agent's.
        return Ok(());
    };
    let role = grow.role;
    let absent = GrowError::Absent { role };
    let device = boot::device(role).ok_or(GrowError::Absent { role })?;
    let shown = boot::await_size(&device, grow.size.bytes(), shown_size);
    let shown = shown.map_err(|reason| look_failed(&device, reason))?;
    if shown < grow.size.bytes() {
        return Err(GrowError::NotShown {
            wanted: grow.size,
            shown: ByteSize::from_bytes(shown),
        });
    }
    match role {
        DiskRole::System => to_device(&device, power.system.as_ref().ok_or(absent)?),
        DiskRole::Work => {
            let root = File::open(crate::power::WORK).map_err(|_| absent)?;
            to_device(&device, &root)
        }
        DiskRole::Base | DiskRole::Modules => Err(GrowError::Shared { role }),
    }
}

/// Grows the mounted file system of `device`, of which `root` is a directory, to all of the
/// device. Does nothing where it has that size.
///
/// # Errors
/// The device cannot be looked at, or the kernel refuses.
pub fn to_device(device: &str, root: &impl AsFd) -> Result<(), GrowError> {
    let look = || -> io::Result<(u64, Superblock)> {
        Ok((shown_size(device)?, Superblock::read(Path::new(device))?))
    };
    let (size, superblock) = look().map_err(|reason| look_failed(device, reason))?;
    let blocks = size / superblock.block_size;
    if blocks <= superblock.blocks {
        return Ok(());
    }
    // SAFETY: the descriptor is open, and the argument is the number that the kernel reads.
    let resized = unsafe {
        libc::ioctl(
            root.as_fd().as_raw_fd(),
            EXT4_IOC_RESIZE_FS,
            &raw const blocks,
        )
    };
    match resized {
        0 => Ok(()),
        _ => Err(GrowError::Resize {
            device: device.to_owned(),
            reason: io::Error::last_os_error(),
        }),
    }
}

fn look_failed(device: &str, reason: io::Error) -> GrowError {
    GrowError::Look {
        device: device.to_owned(),
        reason,
    }
}

/// The size of a disk in bytes, as the kernel has it.
fn shown_size(device: &str) -> io::Result<u64> {
    let name = device.rsplit('/').next().unwrap_or(device);
    let text = fs::read_to_string(format!("/sys/class/block/{name}/size"))?;
    let sectors: u64 = text.trim().parse().map_err(io::Error::other)?;
    Ok(sectors * SECTOR)
}

/// What a file system says of its size.
#[derive(Debug, PartialEq, Eq)]
struct Superblock {
    blocks: u64,
    block_size: u64,
}

impl Superblock {
    /// The kernel keeps a mounted file system's superblock in the same memory that this reads.
    fn read(device: &Path) -> io::Result<Self> {
        let mut bytes = [0; 1024];
        File::open(device)?.read_exact_at(&mut bytes, SUPERBLOCK)?;
        Self::parse(&bytes).ok_or_else(|| io::Error::other("there is no ext4 on it"))
    }

    /// Offsets and names are those of Documentation/filesystems/ext4/super.rst.
    fn parse(bytes: &[u8; 1024]) -> Option<Self> {
        let word = |at: usize| {
            let four = bytes[at..at + 4].try_into().expect("4 bytes");
            u32::from_le_bytes(four)
        };
        // s_magic
        if bytes[0x38..0x3a] != [0x53, 0xef] {
            return None;
        }
        let (low, log_block_size, incompatible) = (word(0x4), word(0x18), word(0x60));
        // INCOMPAT_64BIT: s_blocks_count_hi counts.
        let high = if incompatible & 0x80 == 0 {
            0
        } else {
            word(0x150)
        };
        Some(Self {
            blocks: u64::from(high) << 32 | u64::from(low),
            block_size: 1024u64.checked_shl(log_block_size)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_superblock_tells_the_size() {
        let mut bytes = [0; 1024];
        assert_eq!(Superblock::parse(&bytes), None);
        bytes[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
        bytes[0x4..0x8].copy_from_slice(&7u32.to_le_bytes());
        bytes[0x18] = 2;
        bytes[0x150] = 1;
        let of_32_bits = Superblock {
            blocks: 7,
            block_size: 4096,
        };
        assert_eq!(Superblock::parse(&bytes), Some(of_32_bits));
        bytes[0x60] = 0x80;
        let blocks = Superblock::parse(&bytes).map(|superblock| superblock.blocks);
        assert_eq!(blocks, Some((1 << 32) + 7));
    }
}

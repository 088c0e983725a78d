//! An inode, as it is kept in memory and as it is on the disk.

use super::{INODE, low16, low32, put16, put32};

/// `i_flags`: `i_block` holds an extent tree.
pub(super) const EXTENTS: u32 = 0x8_0000;
/// Bytes behind the first 128 that hold nanoseconds and the birth time.
const EXTRA: usize = 32;
/// Bytes left for extended attributes.
pub(super) const ATTRIBUTE_ROOM: usize = INODE - 128 - EXTRA;

/// File types of `i_mode`.
pub(super) mod mode {
    pub(in crate::ext4) const FIFO: u16 = 0o010_000;
    pub(in crate::ext4) const CHARACTER: u16 = 0o020_000;
    pub(in crate::ext4) const DIRECTORY: u16 = 0o040_000;
    pub(in crate::ext4) const BLOCK: u16 = 0o060_000;
    pub(in crate::ext4) const FILE: u16 = 0o100_000;
    pub(in crate::ext4) const SYMLINK: u16 = 0o120_000;
    pub(in crate::ext4) const TYPE: u16 = 0o170_000;
}

/// A moment: seconds since 1970 and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Time {
    /// Seconds since 1970.
    pub(crate) seconds: i64,
    /// Nanoseconds, less than 10^9.
    pub(crate) nanoseconds: u32,
}

/// What every file has, whatever its kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// Permission bits with set-user-id, set-group-id and sticky.
    pub(crate) mode: u16,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// When it was changed last; the other times are the same.
    pub(crate) modified: Time,
    /// Extended attributes: full name and value.
    pub(crate) extended: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A special file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    /// A character device with its numbers.
    Character(u32, u32),
    /// A block device with its numbers.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

impl Device {
    pub(super) fn file_type(self) -> u16 {
        match self {
            Self::Character(..) => mode::CHARACTER,
            Self::Block(..) => mode::BLOCK,
            Self::Fifo => mode::FIFO,
        }
    }

    /// `i_block`: the old 16-bit form where it fits, else the new one in the second word.
    pub(super) fn numbers(self) -> [u8; 60] {
        let mut block = [0; 60];
        if let Self::Character(major, minor) | Self::Block(major, minor) = self {
            match major < 256 && minor < 256 {
                true => put32(&mut block, 0, major << 8 | minor),
                false => put32(
                    &mut block,
                    4,
                    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12),
                ),
            }
        }
        block
    }
}

/// An inode in memory.
pub(super) struct Inode {
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) links: u32,
    pub(super) flags: u32,
    pub(super) size: u64,
    pub(super) modified: Time,
    /// `i_block`: extents, a short symbolic link, or device numbers.
    pub(super) block: [u8; 60],
    /// Blocks that belong to it, all in one run: (start, count).
    pub(super) blocks: (u64, u64),
    /// The block with its extended attributes; 0 if there is none.
    pub(super) attribute_block: u64,
    /// Extended attributes inside the inode.
    pub(super) attributes: Option<Box<[u8]>>,
}

impl Inode {
    /// A new inode of that file type, with one link and no content.
    pub(super) fn new(file_type: u16, attributes: &Attributes) -> Self {
        Self {
            mode: file_type | (attributes.mode & 0o7777),
            uid: attributes.uid,
            gid: attributes.gid,
            links: 1,
            flags: 0,
            size: 0,
            modified: attributes.modified,
            block: [0; 60],
            blocks: (0, 0),
            attribute_block: 0,
            attributes: None,
        }
    }

    /// Bytes of memory that it takes besides itself.
    pub(super) fn memory(&self) -> usize {
        self.attributes.as_ref().map_or(0, |bytes| bytes.len() + 16)
    }

    pub(super) fn is_directory(&self) -> bool {
        self.mode & mode::TYPE == mode::DIRECTORY
    }

    /// The type byte of a directory entry that names this inode.
    pub(super) fn entry_type(&self) -> u8 {
        match self.mode & mode::TYPE {
            mode::FILE => 1,
            mode::DIRECTORY => 2,
            mode::CHARACTER => 3,
            mode::BLOCK => 4,
            mode::FIFO => 5,
            mode::SYMLINK => 7,
            _ => 0,
        }
    }

    /// The inode as it is on the disk.
    pub(super) fn encode(&self) -> [u8; INODE] {
        let mut bytes = [0; INODE];
        let (seconds, extra) = encode_time(self.modified);
        // In units of 512 bytes.
        let sectors = self.blocks.1 * 8;
        put16(&mut bytes, 0x00, self.mode);
        put16(&mut bytes, 0x02, low16(u64::from(self.uid)));
        put32(&mut bytes, 0x04, low32(self.size));
        for at in [0x08, 0x0c, 0x10, 0x90] {
            put32(&mut bytes, at, seconds);
        }
        for at in [0x84, 0x88, 0x8c, 0x94] {
            put32(&mut bytes, at, extra);
        }
        put16(&mut bytes, 0x18, low16(u64::from(self.gid)));
        put16(&mut bytes, 0x1a, low16(u64::from(self.links)));
        put32(&mut bytes, 0x1c, low32(sectors));
        put32(&mut bytes, 0x20, self.flags);
        bytes[0x28..0x28 + 60].copy_from_slice(&self.block);
        put32(&mut bytes, 0x68, low32(self.attribute_block));
        put32(&mut bytes, 0x6c, low32(self.size >> 32));
        put16(&mut bytes, 0x74, low16(sectors >> 32));
        put16(&mut bytes, 0x78, low16(u64::from(self.uid >> 16)));
        put16(&mut bytes, 0x7a, low16(u64::from(self.gid >> 16)));
        put16(&mut bytes, 0x80, EXTRA as u16);
        if let Some(attributes) = &self.attributes {
            bytes[INODE - ATTRIBUTE_ROOM..].copy_from_slice(attributes);
        }
        bytes
    }
}

/// The low 32 bits of the seconds, and a word of two more bits and the nanoseconds. Times
/// that do not fit are moved to the nearest that does (1901 to 2446).
fn encode_time(time: Time) -> (u32, u32) {
    const FIRST: i64 = i32::MIN as i64;
    const LAST: i64 = i32::MAX as i64 + (3 << 32);
    let seconds = time.seconds.clamp(FIRST, LAST);
    let low = seconds as u32;
    let epoch = (seconds - i64::from(low as i32)) >> 32;
    (
        low,
        (epoch as u32 & 3) | (time.nanoseconds.min(999_999_999) << 2),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_after_2038_use_the_extra_bits() {
        let at = |seconds| {
            let (low, extra) = encode_time(Time {
                seconds,
                nanoseconds: 5,
            });
            i64::from(low as i32) + (i64::from(extra & 3) << 32)
        };
        for seconds in [0, -1, i64::from(i32::MAX), 1 << 31, 1 << 32, (3 << 32) + 7] {
            assert_eq!(at(seconds), seconds);
        }
        assert_eq!(
            encode_time(Time {
                seconds: 0,
                nanoseconds: 5
            }),
            (0, 20)
        );
    }
}

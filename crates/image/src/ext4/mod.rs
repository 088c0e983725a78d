//! An ext4 file system, written from scratch into a sparse file, without mounting anything.
//!
//! [`Writer`] takes files in any order, as a tar stream gives them, and streams their bytes
//! straight to their place. Only names and inodes are kept in memory (some 250 bytes for
//! each file); bitmaps, inode tables and directories are written at the end, behind the data:
//!
//! ```text
//! block 0   1 … 64               65 …
//! super     group descriptors    data as it came | directories | bitmaps and inode tables
//! ```
//!
//! That layout is legal thanks to `flex_bg` (the metadata of a group may be anywhere) and
//! `sparse_super2` (no backup superblocks). There is no journal and no room to grow: the
//! result is a base to be mounted read-only. Facts are from the kernel's
//! `Documentation/filesystems/ext4/`.

mod attribute;
mod block;
mod directory;
mod extent;
mod inode;
#[cfg(test)]
pub(crate) mod read;
#[cfg(test)]
mod tests;
mod tree;
mod unpack;
mod writer;

pub(crate) use attribute::holds_attribute;
pub(crate) use inode::{Attributes, Device, Time};
pub(crate) use unpack::Amount;
pub(crate) use writer::{Ext4Error, Writer};

/// Bytes of a block.
const BLOCK: usize = 4096;
/// Bytes of an inode on the disk.
const INODE: usize = 256;
/// Inodes in a block of an inode table.
const INODES_PER_BLOCK: u32 = (BLOCK / INODE) as u32;
/// Blocks in a group: as many as the bits of one bitmap block.
const BLOCKS_PER_GROUP: u32 = (BLOCK * 8) as u32;

/// Writes `value` at `at`, little-endian.
fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

/// Writes `value` at `at`, little-endian.
fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// The low 16 bits.
fn low16(value: u64) -> u16 {
    (value & 0xffff) as u16
}

/// The low 32 bits.
fn low32(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

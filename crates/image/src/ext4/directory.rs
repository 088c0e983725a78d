//! The blocks of a directory.

use super::{BLOCK, low16, put16, put32};

/// One entry: inode, type byte, name.
pub(super) struct Entry<'a> {
    pub(super) inode: u32,
    pub(super) kind: u8,
    pub(super) name: &'a [u8],
}

/// Hands the directory's blocks to `write`, one after the other; in each of them the last entry
/// reaches to the end.
pub(super) fn encode<'a, E>(
    entries: impl Iterator<Item = Entry<'a>>,
    mut write: impl FnMut(&[u8; BLOCK]) -> Result<(), E>,
) -> Result<(), E> {
    let mut block = [0; BLOCK];
    // Where the next entry goes, and where the last one starts.
    let (mut at, mut last) = (0, 0);
    for entry in entries {
        let length = (8 + entry.name.len()).next_multiple_of(4);
        if at + length > BLOCK {
            put16(&mut block, last + 4, low16((BLOCK - last) as u64));
            write(&block)?;
            (block, at) = ([0; BLOCK], 0);
        }
        put32(&mut block, at, entry.inode);
        put16(&mut block, at + 4, low16(length as u64));
        block[at + 6] = entry.name.len() as u8;
        block[at + 7] = entry.kind;
        block[at + 8..at + 8 + entry.name.len()].copy_from_slice(entry.name);
        (last, at) = (at, at + length);
    }
    put16(&mut block, last + 4, low16((BLOCK - last) as u64));
    write(&block)
}

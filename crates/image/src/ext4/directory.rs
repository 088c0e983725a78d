//! The blocks of a directory.

use super::{BLOCK, low16, put16, put32};

/// One entry: inode, type byte, name.
pub(super) struct Entry<'a> {
    pub(super) inode: u32,
    pub(super) kind: u8,
    pub(super) name: &'a [u8],
}

/// The directory's bytes: whole blocks, in each of which the last entry reaches to the end.
pub(super) fn encode<'a>(entries: impl Iterator<Item = Entry<'a>>) -> Vec<u8> {
    let mut bytes: Vec<u8> = Vec::new();
    // Where the last entry of the current block starts.
    let mut last: Option<usize> = None;
    for entry in entries {
        let length = (8 + entry.name.len()).next_multiple_of(4);
        if bytes.len() % BLOCK + length > BLOCK
            || (last.is_some() && bytes.len().is_multiple_of(BLOCK))
        {
            close_block(&mut bytes, last.take());
        }
        let at = bytes.len();
        bytes.resize(at + length, 0);
        put32(&mut bytes, at, entry.inode);
        put16(&mut bytes, at + 4, low16(length as u64));
        bytes[at + 6] = entry.name.len() as u8;
        bytes[at + 7] = entry.kind;
        bytes[at + 8..at + 8 + entry.name.len()].copy_from_slice(entry.name);
        last = Some(at);
    }
    close_block(&mut bytes, last);
    bytes
}

fn close_block(bytes: &mut Vec<u8>, last: Option<usize>) {
    let Some(last) = last else { return };
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    let length = bytes.len() - last;
    put16(bytes, last + 4, low16(length as u64));
}

//! Extent trees: which blocks of the disk are which blocks of a file.

use std::io;

use super::block::Blocks;
use super::{BLOCK, low16, low32, put16, put32};

const MAGIC: u16 = 0xf30a;
const HEADER: usize = 12;
const ENTRY: usize = 12;
/// Entries that fit into the inode itself.
const IN_INODE: usize = 4;
/// Entries that fit into a block.
const IN_BLOCK: usize = (BLOCK - HEADER) / ENTRY;
/// Longest extent; a larger length would mean "unwritten".
const LONGEST: u32 = 1 << 15;

/// A run of a file's blocks that is one run of the disk's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) logical: u32,
    pub(super) physical: u64,
    pub(super) count: u32,
}

/// Adds `count` blocks at `physical` as block `logical` of the file, to the last extent
/// where they continue it.
pub(super) fn push(extents: &mut Vec<Extent>, logical: u32, physical: u64, count: u32) {
    let (mut logical, mut physical, mut count) = (logical, physical, count);
    if let Some(last) = extents.last_mut() {
        let continues = last.logical + last.count == logical
            && last.physical + u64::from(last.count) == physical;
        if continues {
            let taken = count.min(LONGEST - last.count);
            last.count += taken;
            logical += taken;
            physical += u64::from(taken);
            count -= taken;
        }
    }
    while count > 0 {
        let taken = count.min(LONGEST);
        extents.push(Extent {
            logical,
            physical,
            count: taken,
        });
        logical += taken;
        physical += u64::from(taken);
        count -= taken;
    }
}

/// The 60 bytes of the inode's `i_block` that map `extents`. Writes tree blocks where the
/// inode has no room for all of them.
pub(super) fn root(extents: &[Extent], blocks: &mut Blocks) -> io::Result<[u8; 60]> {
    let mut entries: Vec<(u32, [u8; ENTRY])> = extents
        .iter()
        .map(|extent| (extent.logical, leaf_entry(extent)))
        .collect();
    let mut depth = 0;
    while entries.len() > IN_INODE {
        let mut parents = Vec::with_capacity(entries.len().div_ceil(IN_BLOCK));
        for chunk in entries.chunks(IN_BLOCK) {
            let mut node = [0; BLOCK];
            fill_node(&mut node, chunk, IN_BLOCK, depth);
            let block = blocks.append(&node)?;
            parents.push((chunk[0].0, index_entry(chunk[0].0, block)));
        }
        entries = parents;
        depth += 1;
    }
    let mut root = [0; 60];
    fill_node(&mut root, &entries, IN_INODE, depth);
    Ok(root)
}

/// The extents that [`root`] has mapped; `block` reads a block of the disk.
pub(super) fn read(
    root: &[u8; 60],
    block: impl Fn(u64) -> io::Result<[u8; BLOCK]>,
) -> io::Result<Vec<Extent>> {
    let mut extents = Vec::new();
    let mut open = vec![root.to_vec()];
    while let Some(node) = open.pop() {
        let (count, depth) = (get16(&node, 2), get16(&node, 6));
        // Those of a node are in ascending order, and the last one of the stack comes next.
        let mut children = Vec::new();
        for entry in node[HEADER..].chunks_exact(ENTRY).take(count.into()) {
            let logical = get32(entry, 0);
            match depth {
                0 => extents.push(Extent {
                    logical,
                    physical: u64::from(get16(entry, 6)) << 32 | u64::from(get32(entry, 8)),
                    count: get16(entry, 4).into(),
                }),
                _ => {
                    let child = u64::from(get16(entry, 8)) << 32 | u64::from(get32(entry, 4));
                    children.push(block(child)?.to_vec());
                }
            }
        }
        open.extend(children.into_iter().rev());
    }
    Ok(extents)
}

fn get16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn get32(bytes: &[u8], at: usize) -> u32 {
    u32::from(get16(bytes, at)) | u32::from(get16(bytes, at + 2)) << 16
}

fn fill_node(node: &mut [u8], entries: &[(u32, [u8; ENTRY])], room: usize, depth: u16) {
    put16(node, 0, MAGIC);
    put16(node, 2, low16(entries.len() as u64));
    put16(node, 4, low16(room as u64));
    put16(node, 6, depth);
    for (slot, (_, entry)) in node[HEADER..].chunks_exact_mut(ENTRY).zip(entries) {
        slot.copy_from_slice(entry);
    }
}

fn leaf_entry(extent: &Extent) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    put32(&mut entry, 0, extent.logical);
    put16(&mut entry, 4, low16(u64::from(extent.count)));
    put16(&mut entry, 6, low16(extent.physical >> 32));
    put32(&mut entry, 8, low32(extent.physical));
    entry
}

fn index_entry(logical: u32, block: u64) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    put32(&mut entry, 0, logical);
    put32(&mut entry, 4, low32(block));
    put16(&mut entry, 8, low16(block >> 32));
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_that_follow_each_other_become_one_extent_up_to_the_longest() {
        let mut extents = Vec::new();
        push(&mut extents, 0, 100, 10);
        push(&mut extents, 10, 110, 40_000);
        push(&mut extents, 50_000, 40_110, 1);
        assert_eq!(
            extents
                .iter()
                .map(|extent| (extent.logical, extent.physical, extent.count))
                .collect::<Vec<_>>(),
            [
                (0, 100, 32_768),
                (32_768, 32_868, 7_242),
                (50_000, 40_110, 1)
            ]
        );
    }
}

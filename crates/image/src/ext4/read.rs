//! What is in a file system that the writer made, read by other means than it was written:
//! for tests. It knows only the features that the writer uses.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use sha2::{Digest, Sha256};

const BLOCK: usize = 4096;

/// All that can be seen of a file but its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    /// Type and permissions, as of `stat(2)`.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) modified: (i64, u32),
    /// Bytes; 0 for directories.
    pub(crate) size: u64,
    /// The hash of a file's blocks that are not zero, with their places.
    pub(crate) content: Option<[u8; 32]>,
    /// Target of a symbolic link.
    pub(crate) target: Option<Vec<u8>>,
    /// Major and minor number of a device.
    pub(crate) device: Option<(u32, u32)>,
    pub(crate) extended: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) links: u32,
    /// Tells names of one file from names of two.
    pub(crate) inode: u64,
}

/// Hashes a content so that holes cost nothing.
#[derive(Default)]
pub(crate) struct ContentHash(Sha256);

impl ContentHash {
    /// Adds the block `number`, which may be shorter at the end of the file.
    pub(crate) fn block(&mut self, number: u64, bytes: &[u8]) {
        let end = bytes.iter().rposition(|byte| *byte != 0);
        if let Some(end) = end {
            self.0.update(number.to_le_bytes());
            self.0.update(&bytes[..=end]);
        }
    }

    pub(crate) fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

struct Disk {
    file: File,
    inodes_per_group: u32,
    /// First block of each group's inode table.
    tables: Vec<u32>,
}

/// Every name of the file system in `path`, with `lost+found` left out. The root is ``.
pub(crate) fn tree(path: &Path) -> BTreeMap<Vec<u8>, Node> {
    let disk = Disk::open(path);
    let mut found = BTreeMap::new();
    let mut open = vec![(Vec::new(), 2)];
    while let Some((path, number)) = open.pop() {
        let inode = disk.inode(number);
        if mode(&inode) & 0o170_000 == 0o040_000 {
            for (name, child) in disk.names(&inode) {
                if path.is_empty() && name == b"lost+found" {
                    continue;
                }
                let child_path = match path.is_empty() {
                    true => name,
                    false => [&path[..], b"/", &name].concat(),
                };
                open.push((child_path, child));
            }
        }
        found.insert(path, disk.node(number, &inode));
    }
    found
}

impl Disk {
    fn open(path: &Path) -> Self {
        let file = File::open(path).unwrap();
        let mut superblock = [0; 1024];
        file.read_exact_at(&mut superblock, 1024).unwrap();
        assert_eq!(u16_at(&superblock, 0x38), 0xef53);
        let blocks = u32_at(&superblock, 4);
        let groups = blocks.div_ceil(u32_at(&superblock, 0x20));
        let mut descriptors = vec![0; groups as usize * 32];
        file.read_exact_at(&mut descriptors, BLOCK as u64).unwrap();
        Self {
            file,
            inodes_per_group: u32_at(&superblock, 0x28),
            tables: descriptors
                .chunks(32)
                .map(|group| u32_at(group, 8))
                .collect(),
        }
    }

    fn inode(&self, number: u32) -> [u8; 256] {
        let (group, index) = (
            (number - 1) / self.inodes_per_group,
            (number - 1) % self.inodes_per_group,
        );
        let at = u64::from(self.tables[group as usize]) * BLOCK as u64 + u64::from(index) * 256;
        let mut inode = [0; 256];
        self.file.read_exact_at(&mut inode, at).unwrap();
        inode
    }

    fn block(&self, number: u64) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        self.file
            .read_exact_at(&mut block, number * BLOCK as u64)
            .unwrap();
        block
    }

    /// (logical, physical, count) of each run.
    fn extents(&self, node: &[u8], found: &mut Vec<(u64, u64, u64)>) {
        assert_eq!(u16_at(node, 0), 0xf30a);
        let (entries, depth) = (u16_at(node, 2), u16_at(node, 6));
        for entry in node[12..].chunks(12).take(entries.into()) {
            if depth == 0 {
                let physical = u64::from(u16_at(entry, 6)) << 32 | u64::from(u32_at(entry, 8));
                let logical = u32_at(entry, 0).into();
                found.push((logical, physical, u16_at(entry, 4).into()));
            } else {
                let child = u64::from(u16_at(entry, 8)) << 32 | u64::from(u32_at(entry, 4));
                self.extents(&self.block(child), found);
            }
        }
    }

    fn blocks(&self, inode: &[u8; 256]) -> Vec<(u64, u64)> {
        let mut runs = Vec::new();
        self.extents(&inode[0x28..0x64], &mut runs);
        runs.into_iter()
            .flat_map(|(logical, physical, count)| {
                (0..count).map(move |at| (logical + at, physical + at))
            })
            .collect()
    }

    fn names(&self, inode: &[u8; 256]) -> Vec<(Vec<u8>, u32)> {
        let mut names = Vec::new();
        for (_, physical) in self.blocks(inode) {
            let block = self.block(physical);
            let mut at = 0;
            while at < BLOCK {
                let (number, length) = (u32_at(&block, at), u16_at(&block, at + 4));
                let name = &block[at + 8..][..block[at + 6].into()];
                if number != 0 && name != b"." && name != b".." {
                    names.push((name.to_vec(), number));
                }
                at += usize::from(length);
            }
        }
        names
    }

    fn node(&self, number: u32, inode: &[u8; 256]) -> Node {
        let kind = mode(inode) & 0o170_000;
        let size = u64::from(u32_at(inode, 0x6c)) << 32 | u64::from(u32_at(inode, 4));
        let has_extents = u32_at(inode, 0x20) & 0x8_0000 != 0;
        let content = (kind == 0o100_000).then(|| {
            let mut hash = ContentHash::default();
            for (logical, physical) in self.blocks(inode) {
                hash.block(logical, &self.block(physical));
            }
            hash.finish()
        });
        let target = (kind == 0o120_000).then(|| {
            let length = usize::try_from(size).unwrap();
            match has_extents {
                true => self.block(self.blocks(inode)[0].1)[..length].to_vec(),
                false => inode[0x28..][..length].to_vec(),
            }
        });
        let device = matches!(kind, 0o020_000 | 0o060_000).then(|| {
            let (old, new) = (u32_at(inode, 0x28), u32_at(inode, 0x2c));
            match old {
                0 => ((new >> 8) & 0xfff, (new & 0xff) | ((new >> 12) & 0xfff00)),
                old => (old >> 8, old & 0xff),
            }
        });
        let extra = u32_at(inode, 0x88);
        let seconds = i64::from(u32_at(inode, 0x10).cast_signed());
        Node {
            mode: mode(inode),
            uid: u32::from(u16_at(inode, 2)) | u32::from(u16_at(inode, 0x78)) << 16,
            gid: u32::from(u16_at(inode, 0x18)) | u32::from(u16_at(inode, 0x7a)) << 16,
            modified: (seconds + (i64::from(extra & 3) << 32), extra >> 2),
            size: if kind == 0o040_000 { 0 } else { size },
            content,
            target,
            device,
            extended: self.extended(inode),
            links: u16_at(inode, 0x1a).into(),
            inode: number.into(),
        }
    }

    fn extended(&self, inode: &[u8; 256]) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut found = BTreeMap::new();
        let own = &inode[160..];
        if u32_at(own, 0) == 0xea02_0000 {
            attributes(&own[4..], 0, &mut found);
        }
        let block = u32_at(inode, 0x68);
        if block != 0 {
            attributes(&self.block(block.into()), 32, &mut found);
        }
        found
    }
}

/// Reads the entries from `at`; values count from the start of `bytes`.
fn attributes(bytes: &[u8], mut at: usize, found: &mut BTreeMap<Vec<u8>, Vec<u8>>) {
    while u32_at(bytes, at) != 0 {
        let (length, index) = (usize::from(bytes[at]), bytes[at + 1]);
        let prefix: &[u8] = match index {
            1 => b"user.",
            2 => b"system.posix_acl_access",
            3 => b"system.posix_acl_default",
            4 => b"trusted.",
            6 => b"security.",
            other => panic!("a family of attributes that is not known: {other}"),
        };
        let name = [prefix, &bytes[at + 16..][..length]].concat();
        let value_at = usize::from(u16_at(bytes, at + 2));
        let size = usize::try_from(u32_at(bytes, at + 8)).unwrap();
        let value = match index {
            2 | 3 => access_list(&bytes[value_at..][..size]),
            _ => bytes[value_at..][..size].to_vec(),
        };
        found.insert(name, value);
        at += 16 + length.next_multiple_of(4);
    }
}

/// An access control list as `getxattr` gives it.
fn access_list(mut stored: &[u8]) -> Vec<u8> {
    let mut value = vec![2, 0, 0, 0];
    stored = &stored[4..];
    while !stored.is_empty() {
        let named = matches!(stored[0], 2 | 8);
        let (entry, rest) = stored.split_at(if named { 8 } else { 4 });
        value.extend(entry);
        if !named {
            value.extend([0xff; 4]);
        }
        stored = rest;
    }
    value
}

fn mode(inode: &[u8; 256]) -> u32 {
    u16_at(inode, 0).into()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

//! Files on their way to the disk, and the metadata that is written at the end.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use super::attribute::{AttributeError, Placed};
use super::block::Blocks;
use super::directory::{self, Entry};
use super::extent::{self, Extent};
use super::inode::{self, Attributes, Device, Inode, mode};
use super::tree::{self, FIRST_INODE, Freed, MOST_MEMORY, Place, ROOT, Tree};
use super::unpack::Subtree;
use super::{BLOCK, BLOCKS_PER_GROUP, INODES_PER_BLOCK, attribute, low16, low32, put16, put32};
use crate::disk::DiskError;

/// Blocks kept for group descriptors: enough for 8192 groups, which are 1 TiB.
const DESCRIPTOR_BLOCKS: u64 = 64;
const DESCRIPTOR: usize = 32;
const MOST_GROUPS: u64 = DESCRIPTOR_BLOCKS * (BLOCK / DESCRIPTOR) as u64;
/// Room kept within the most groups for directories, bitmaps and inode tables.
const DATA_LIMIT: u64 = MOST_GROUPS * BLOCKS_PER_GROUP as u64 * 15 / 16;
/// Most names of one inode (`EXT4_LINK_MAX`).
const MOST_LINKS: u32 = 65_000;
/// Largest file that 512-byte sectors in 48 bits and 32-bit logical blocks can hold.
const LARGEST_FILE: u64 = 1 << 43;
/// Longest target of a symbolic link, as the kernel has it.
const LONGEST_TARGET: usize = 4095;
/// Shortest run of zero blocks that becomes a hole; shorter ones would only split extents.
const SHORTEST_HOLE: u32 = 16;
const ZEROS: [u8; BLOCK] = [0; BLOCK];
/// Bytes read from a file at a time.
const CHUNK: usize = 256 << 10;

/// Why the file system cannot be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ext4Error {
    /// The disk's file could not be written.
    #[error("could not write the file system")]
    Write(#[source] io::Error),
    /// There is no room for it.
    #[error(transparent)]
    Room(DiskError),
    /// A file's content could not be read.
    #[error("could not read the content of `{}`", path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The content is shorter than it was said to be.
    #[error("the content of `{}` ends early", path.display())]
    Short {
        /// Its path.
        path: PathBuf,
    },
    /// ext4 cannot hold that name.
    #[error("`{}` is not a path that ext4 can hold", path.display())]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// A file is where a directory must be.
    #[error("`{}` lies below something that is not a directory", path.display())]
    NotADirectory {
        /// The path that was to be made.
        path: PathBuf,
    },
    /// A hard link to nothing, or to a directory.
    #[error("`{}` is a hard link to `{}`, which is not there or a directory", path.display(), target.display())]
    LinkTarget {
        /// The link.
        path: PathBuf,
        /// What it names.
        target: PathBuf,
    },
    /// A file or a target is larger than ext4 allows.
    #[error("`{}` is too large for ext4", path.display())]
    TooLarge {
        /// Its path.
        path: PathBuf,
    },
    /// Too many names of one file.
    #[error("`{}` has more than {MOST_LINKS} hard links", path.display())]
    TooManyLinks {
        /// The last one.
        path: PathBuf,
    },
    /// The extended attributes cannot be stored.
    #[error("cannot store `{}`", path.display())]
    Attribute {
        /// The path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: AttributeError,
    },
    /// Symbolic links on the way lead round and round.
    #[error("there are too many symbolic links on the way to `{}`", path.display())]
    TooManySymlinks {
        /// The path that was to be made.
        path: PathBuf,
    },
    /// More layers than can be told apart.
    #[error("there are too many layers")]
    TooManyLayers,
    /// More files than the disk's groups can hold.
    #[error("there are too many files for one file system")]
    TooManyFiles,
    /// Names, attributes and the like that memory is not to be filled with.
    #[error("it would take more than {} MiB of memory to keep its names", MOST_MEMORY >> 20)]
    TooMuch,
}

/// What stands in the way of writing.
fn write_error(error: io::Error) -> Ext4Error {
    match error.downcast() {
        Ok(room) => Ext4Error::Room(room),
        Err(error) => Ext4Error::Write(error),
    }
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Length of the disk.
    pub(crate) length: u64,
    /// Number of inodes in use, without the reserved ones.
    pub(crate) inodes: u64,
}

/// Writes one file system; see the module.
pub(crate) struct Writer {
    blocks: Blocks,
    uuid: [u8; 16],
    tree: Tree,
}

impl Writer {
    /// Starts a file system in `file`, which must be empty.
    pub(crate) fn new(file: File, uuid: [u8; 16]) -> Self {
        let mut writer = Self {
            blocks: Blocks::new(file, 1 + DESCRIPTOR_BLOCKS, DATA_LIMIT),
            uuid,
            tree: Tree::new(),
        };
        let lost_and_found = Attributes {
            mode: 0o700,
            ..Attributes::default()
        };
        writer
            .directory(b"lost+found", &lost_and_found)
            .expect("the first directory is made without any write");
        writer
    }

    /// Bytes of memory that names and inodes take, as counted and when counted anew.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn memory(&self) -> (usize, usize) {
        self.tree.memory()
    }

    #[cfg(test)]
    pub(super) fn limit_memory(&mut self, bytes: usize) {
        self.tree.limit_memory(bytes);
    }

    /// Makes the directory `path`, or changes the attributes of the one that is there.
    pub(crate) fn directory(
        &mut self,
        path: &[u8],
        attributes: &Attributes,
    ) -> Result<(), Ext4Error> {
        let start = self.blocks.next();
        let mut inode = self.new_inode(path, mode::DIRECTORY, attributes)?;
        inode.links = 2;
        inode.blocks = (start, self.blocks.next() - start);
        let Some(place) = self.tree.place(path)? else {
            return self.replace_directory(ROOT, inode);
        };
        match self.tree.at(place) {
            Some(number) if self.tree.is_directory(number) => {
                self.tree.touch(place);
                self.replace_directory(number, inode)
            }
            _ => {
                let number = self.tree.add_directory(inode)?;
                let freed = self.tree.name(place, number);
                self.free(freed)
            }
        }
    }

    /// Makes the file `path` with `size` bytes of `content`.
    pub(crate) fn file(
        &mut self,
        path: &[u8],
        attributes: &Attributes,
        content: &mut dyn Read,
        size: u64,
    ) -> Result<(), Ext4Error> {
        let place = self.place_file(path)?;
        if size > LARGEST_FILE {
            return Err(Ext4Error::TooLarge { path: shown(path) });
        }
        let start = self.blocks.next();
        let mut inode = self.new_inode(path, mode::FILE, attributes)?;
        let extents = self.copy(path, content, size)?;
        inode.block = extent::root(&extents, &mut self.blocks).map_err(write_error)?;
        inode.flags = inode::EXTENTS;
        inode.size = size;
        inode.blocks = (start, self.blocks.next() - start);
        self.insert(place, inode)?;
        Ok(())
    }

    /// Makes the symbolic link `path`.
    pub(crate) fn symlink(
        &mut self,
        path: &[u8],
        attributes: &Attributes,
        target: &[u8],
    ) -> Result<(), Ext4Error> {
        let place = self.place_file(path)?;
        if target.is_empty() || target.len() > LONGEST_TARGET || target.contains(&0) {
            return Err(Ext4Error::TooLarge { path: shown(path) });
        }
        let start = self.blocks.next();
        let attributes = Attributes {
            mode: 0o777,
            ..attributes.clone()
        };
        let mut inode = self.new_inode(path, mode::SYMLINK, &attributes)?;
        inode.size = target.len() as u64;
        if target.len() < inode.block.len() {
            inode.block[..target.len()].copy_from_slice(target);
        } else {
            let mut extents = Vec::new();
            let block = self.blocks.append(target).map_err(write_error)?;
            extent::push(&mut extents, 0, block, 1);
            inode.block = extent::root(&extents, &mut self.blocks).map_err(write_error)?;
            inode.flags = inode::EXTENTS;
        }
        inode.blocks = (start, self.blocks.next() - start);
        let is_long = inode.flags & inode::EXTENTS != 0;
        let number = self.insert(place, inode)?;
        if is_long {
            self.tree.keep_target(number, target);
        }
        Ok(())
    }

    /// Makes the special file `path`.
    pub(crate) fn device(
        &mut self,
        path: &[u8],
        attributes: &Attributes,
        device: Device,
    ) -> Result<(), Ext4Error> {
        let place = self.place_file(path)?;
        let start = self.blocks.next();
        let mut inode = self.new_inode(path, device.file_type(), attributes)?;
        inode.block = device.numbers();
        inode.blocks = (start, self.blocks.next() - start);
        self.insert(place, inode)?;
        Ok(())
    }

    /// Makes `path` another name of the file `target`.
    pub(crate) fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), Ext4Error> {
        let place = self.place_file(path)?;
        let number = match self.tree.look(target)? {
            Some(target) => self.tree.at(target),
            None => None,
        };
        let number = number
            .filter(|number| !self.tree.is_directory(*number))
            .ok_or_else(|| Ext4Error::LinkTarget {
                path: shown(path),
                target: shown(target),
            })?;
        if self.tree.at(place) == Some(number) {
            self.tree.touch(place);
            return Ok(());
        }
        let inode = self.tree.inode_mut(number);
        if inode.links >= MOST_LINKS {
            return Err(Ext4Error::TooManyLinks { path: shown(path) });
        }
        // Counted first: the link may take the place of the directory that holds its target.
        inode.links += 1;
        let freed = self.tree.name(place, number);
        self.free(freed)
    }

    /// Removes `path` with everything below it. Nothing happens if it is not there.
    pub(crate) fn remove(&mut self, path: &[u8]) -> Result<(), Ext4Error> {
        let place = self.tree.look(path)?;
        let freed = match place {
            Some(place) if place.name.is_empty() => {
                return Err(Ext4Error::Path { path: shown(path) });
            }
            Some(place) => self.tree.remove(place),
            None => return Ok(()),
        };
        self.free(freed)
    }

    /// How many directories are above `path`, once symbolic links are followed.
    pub(crate) fn depth_of(&mut self, path: &[u8]) -> Result<usize, Ext4Error> {
        let place = self.tree.look(path)?;
        // Directories that are not there yet will be where the path says.
        let as_written = || tree::components(path).count().saturating_sub(1);
        Ok(place.map_or_else(as_written, |place| place.depth))
    }

    /// Bytes of the disk that all files take by now, with their attributes and the ends of their
    /// last blocks.
    pub(crate) fn size_on_disk(&self) -> u64 {
        self.blocks.kept() * BLOCK as u64
    }

    /// The directory `path` to be laid out as files of the host; `None` if it is not there.
    pub(crate) fn subtree(&mut self, path: &[u8]) -> Result<Option<Subtree<'_>>, Ext4Error> {
        let place = self.tree.look(path)?;
        let Some(number) = place.and_then(|place| self.tree.at(place)) else {
            return Ok(None);
        };
        self.blocks.flush().map_err(Ext4Error::Write)?;
        Ok(Some(Subtree::new(&self.tree, number)))
    }

    /// What is written from here on is of a layer above all that was written before.
    pub(crate) fn begin_layer(&mut self) -> Result<(), Ext4Error> {
        self.tree.begin_layer().ok_or(Ext4Error::TooManyLayers)
    }

    /// Removes what layers below left at `path`, and keeps what this layer brings there.
    pub(crate) fn hide(&mut self, path: &[u8]) -> Result<(), Ext4Error> {
        let freed = match self.tree.look(path)? {
            Some(place) => self.tree.hide(place),
            None => return Ok(()),
        };
        self.free(freed)
    }

    /// Removes what layers below left in the directory `path`.
    pub(crate) fn hide_content(&mut self, path: &[u8]) -> Result<(), Ext4Error> {
        // A name below it, so that the directory itself may be reached by a symbolic link.
        let below = [path, b"/-"].concat();
        let freed = match self.tree.look(&below)? {
            Some(place) => self.tree.hide_below(place.directory),
            None => return Ok(()),
        };
        self.free(freed)
    }

    /// Writes directories, inodes, bitmaps and the superblock, and waits until all of it is
    /// on the disk.
    pub(crate) fn finish(mut self) -> Result<Summary, Ext4Error> {
        self.write_directories()?;
        let data_end = self.blocks.next();
        let layout = Layout::new(data_end, self.tree.inodes().len() as u64)
            .ok_or(Ext4Error::TooManyFiles)?;
        let length = layout.total * BLOCK as u64;
        let inodes = self
            .tree
            .inodes()
            .iter()
            .skip(FIRST_INODE as usize - 1)
            .flatten()
            .count() as u64;
        self.write_metadata(&layout).map_err(write_error)?;
        self.blocks
            .finish(layout.total)
            .and_then(|file| file.sync_all())
            .map_err(write_error)?;
        Ok(Summary { length, inodes })
    }

    /// Streams `size` bytes to the disk; long runs of zeros become holes.
    fn copy(
        &mut self,
        path: &[u8],
        content: &mut dyn Read,
        size: u64,
    ) -> Result<Vec<Extent>, Ext4Error> {
        let mut extents = Vec::new();
        let mut buffer = vec![0; CHUNK.min(usize::try_from(size).unwrap_or(CHUNK))];
        let mut left = size;
        let mut logical: u32 = 0;
        let mut zeros: u32 = 0;
        while left > 0 {
            let wanted = buffer
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            content
                .read_exact(&mut buffer[..wanted])
                .map_err(|source| match source.kind() {
                    io::ErrorKind::UnexpectedEof => Ext4Error::Short { path: shown(path) },
                    _ => Ext4Error::Read {
                        path: shown(path),
                        source,
                    },
                })?;
            left -= wanted as u64;
            for block in buffer[..wanted].chunks(BLOCK) {
                if *block == ZEROS[..block.len()] {
                    zeros += 1;
                    continue;
                }
                match zeros < SHORTEST_HOLE {
                    true => {
                        for _ in 0..zeros {
                            self.append(&mut extents, &mut logical, &ZEROS)?;
                        }
                    }
                    false => logical += zeros,
                }
                zeros = 0;
                self.append(&mut extents, &mut logical, block)?;
            }
        }
        Ok(extents)
    }

    fn append(
        &mut self,
        extents: &mut Vec<Extent>,
        logical: &mut u32,
        block: &[u8],
    ) -> Result<(), Ext4Error> {
        let physical = self.blocks.append(block).map_err(write_error)?;
        extent::push(extents, *logical, physical, 1);
        *logical += 1;
        Ok(())
    }

    /// An inode with its extended attributes in place.
    fn new_inode(
        &mut self,
        path: &[u8],
        file_type: u16,
        attributes: &Attributes,
    ) -> Result<Inode, Ext4Error> {
        let mut inode = Inode::new(file_type, attributes);
        let placed =
            attribute::place(&attributes.extended, inode::ATTRIBUTE_ROOM).map_err(|source| {
                Ext4Error::Attribute {
                    path: shown(path),
                    source,
                }
            })?;
        match placed {
            Placed::None => {}
            Placed::Inode(bytes) => inode.attributes = Some(bytes),
            Placed::Block(bytes) => {
                inode.attribute_block = self.blocks.append(&bytes[..]).map_err(write_error)?;
            }
        }
        Ok(inode)
    }

    fn place_file<'a>(&mut self, path: &'a [u8]) -> Result<Place<'a>, Ext4Error> {
        self.tree
            .place(path)?
            .ok_or_else(|| Ext4Error::Path { path: shown(path) })
    }

    /// Adds `inode` under that name, in place of what had it.
    fn insert(&mut self, place: Place<'_>, inode: Inode) -> Result<u32, Ext4Error> {
        let number = self.tree.add(inode)?;
        let freed = self.tree.name(place, number);
        self.free(freed)?;
        Ok(number)
    }

    fn replace_directory(&mut self, number: u32, inode: Inode) -> Result<(), Ext4Error> {
        let old = self.tree.replace_directory(number, inode);
        self.free(vec![old.blocks])
    }

    fn free(&mut self, freed: Freed) -> Result<(), Ext4Error> {
        for (start, count) in freed {
            self.blocks.free(start, count).map_err(write_error)?;
        }
        Ok(())
    }

    fn write_directories(&mut self) -> Result<(), Ext4Error> {
        let directories = self.tree.take_directories();
        let mut parents = BTreeMap::from([(ROOT, ROOT)]);
        for (number, names) in &directories {
            for child in names
                .values()
                .map(|name| name.inode)
                .filter(|child| directories.contains_key(child))
            {
                parents.insert(child, *number);
            }
        }
        for (number, names) in &directories {
            let dots = [(&b"."[..], *number), (&b".."[..], parents[number])];
            let named = names.iter().map(|(text, name)| (&text[..], name.inode));
            let entries = dots.into_iter().chain(named).map(|(name, child)| Entry {
                inode: child,
                kind: self.tree.inode(child).map_or(0, Inode::entry_type),
                name,
            });
            let start = self.blocks.next();
            let (mut extents, mut count) = (Vec::new(), 0);
            let blocks = &mut self.blocks;
            let written = directory::encode(entries, |block| -> io::Result<()> {
                let physical = blocks.append(block)?;
                extent::push(&mut extents, count, physical, 1);
                count += 1;
                Ok(())
            });
            written.map_err(write_error)?;
            let root = extent::root(&extents, &mut self.blocks).map_err(write_error)?;
            let total = self.blocks.next() - start;
            let inode = self.tree.inode_mut(*number);
            inode.block = root;
            inode.flags = inode::EXTENTS;
            inode.size = u64::from(count) * BLOCK as u64;
            inode.blocks.1 += total;
            // `dir_nlink`: a directory with more subdirectories than can be counted has 1.
            if inode.links >= MOST_LINKS {
                inode.links = 1;
            }
        }
        Ok(())
    }

    fn write_metadata(&mut self, layout: &Layout) -> io::Result<()> {
        let usage = self.block_usage(layout);
        let mut descriptors = vec![0; layout.groups as usize * DESCRIPTOR];
        let (mut free_blocks, mut free_inodes) = (0, 0);
        for group in 0..layout.groups {
            let block_bitmap = usage.bitmap(group);
            let (inode_bitmap, used_inodes, used_directories) = self.inode_bitmap(layout, group);
            let at = layout.group_at(group);
            self.blocks.write_at(at, &block_bitmap)?;
            self.blocks.write_at(at + 1, &inode_bitmap)?;
            self.write_inode_table(layout, group)?;

            let free = block_bitmap
                .iter()
                .map(|byte| byte.count_zeros())
                .sum::<u32>();
            let free_here = layout.inodes_per_group - used_inodes;
            free_blocks += u64::from(free);
            free_inodes += free_here;
            let descriptor = &mut descriptors[group as usize * DESCRIPTOR..][..DESCRIPTOR];
            put32(descriptor, 0x0, low32(at));
            put32(descriptor, 0x4, low32(at + 1));
            put32(descriptor, 0x8, low32(at + 2));
            put16(descriptor, 0xc, low16(u64::from(free)));
            put16(descriptor, 0xe, low16(u64::from(free_here)));
            put16(descriptor, 0x10, low16(u64::from(used_directories)));
        }
        self.blocks.write_at(1, &descriptors)?;
        let superblock = self.superblock(layout, free_blocks, free_inodes);
        self.blocks.write_at(0, &superblock)
    }

    fn block_usage(&self, layout: &Layout) -> Usage {
        let mut usage = Usage::new(layout.total, layout.groups);
        usage.set(0, 1 + layout.descriptor_blocks());
        usage.set(
            1 + DESCRIPTOR_BLOCKS,
            layout.data_end - 1 - DESCRIPTOR_BLOCKS,
        );
        for (start, count) in self.blocks.freed() {
            usage.clear(start, count);
        }
        usage.set(
            layout.data_end,
            u64::from(layout.groups) * layout.blocks_per_group_metadata(),
        );
        usage
    }

    /// The group's inode bitmap, and how many inodes and directories it counts.
    fn inode_bitmap(&self, layout: &Layout, group: u32) -> (Vec<u8>, u32, u32) {
        let mut bitmap = vec![0xff; BLOCK];
        let (mut used, mut directories) = (0, 0);
        for index in 0..layout.inodes_per_group {
            let number = group * layout.inodes_per_group + index;
            let inode = self
                .tree
                .inodes()
                .get(number as usize)
                .and_then(Option::as_ref);
            if inode.is_some() || number < FIRST_INODE - 1 {
                used += 1;
                directories += u32::from(inode.is_some_and(Inode::is_directory));
            } else {
                bitmap[index as usize / 8] &= !(1 << (index % 8));
            }
        }
        (bitmap, used, directories)
    }

    fn write_inode_table(&mut self, layout: &Layout, group: u32) -> io::Result<()> {
        let first = group as usize * layout.inodes_per_group as usize;
        let last = (first + layout.inodes_per_group as usize).min(self.tree.inodes().len());
        if first >= last {
            return Ok(());
        }
        let table: Vec<u8> = self.tree.inodes()[first..last]
            .iter()
            .flat_map(|inode| inode.as_ref().map_or([0; super::INODE], Inode::encode))
            .collect();
        self.blocks.write_at(layout.group_at(group) + 2, &table)
    }

    fn superblock(&self, layout: &Layout, free_blocks: u64, free_inodes: u32) -> [u8; BLOCK] {
        const EXT_ATTR: u32 = 0x8;
        const SPARSE_SUPER2: u32 = 0x200;
        const FILETYPE: u32 = 0x2;
        const EXTENTS: u32 = 0x40;
        const FLEX_BG: u32 = 0x200;
        const LARGE_FILE: u32 = 0x2;
        const HUGE_FILE: u32 = 0x8;
        const DIR_NLINK: u32 = 0x20;
        const EXTRA_ISIZE: u32 = 0x40;
        let mut block = [0; BLOCK];
        let bytes = &mut block[1024..2048];
        put32(bytes, 0x00, layout.groups * layout.inodes_per_group);
        put32(bytes, 0x04, low32(layout.total));
        put32(bytes, 0x0c, low32(free_blocks));
        put32(bytes, 0x10, free_inodes);
        put32(bytes, 0x18, 2); // blocks of 4 KiB
        put32(bytes, 0x1c, 2); // and clusters too
        put32(bytes, 0x20, BLOCKS_PER_GROUP);
        put32(bytes, 0x24, BLOCKS_PER_GROUP);
        put32(bytes, 0x28, layout.inodes_per_group);
        put16(bytes, 0x36, 0xffff); // no check after so many mounts
        put16(bytes, 0x38, 0xef53);
        put16(bytes, 0x3a, 1); // clean
        put16(bytes, 0x3c, 1); // continue after errors
        put32(bytes, 0x4c, 1); // dynamic revision
        put32(bytes, 0x54, FIRST_INODE);
        put16(bytes, 0x58, super::INODE as u16);
        put32(bytes, 0x5c, EXT_ATTR | SPARSE_SUPER2);
        put32(bytes, 0x60, FILETYPE | EXTENTS | FLEX_BG);
        put32(
            bytes,
            0x64,
            LARGE_FILE | HUGE_FILE | DIR_NLINK | EXTRA_ISIZE,
        );
        bytes[0x68..0x78].copy_from_slice(&self.uuid);
        bytes[0xec..0xfc].copy_from_slice(&self.uuid); // seed of directory hashes, unused
        bytes[0xfc] = 1; // half MD4
        put16(bytes, 0x15c, 32);
        put16(bytes, 0x15e, 32);
        put32(bytes, 0x160, 1); // signed directory hashes
        bytes[0x174] = 4; // 16 groups in a flexible one
        block
    }
}

/// How many groups there are and where their metadata is.
struct Layout {
    /// First block behind the data.
    data_end: u64,
    /// All blocks of the disk.
    total: u64,
    groups: u32,
    inodes_per_group: u32,
}

impl Layout {
    /// A layout for so much data and so many inodes; `None` if they are too many.
    fn new(data_end: u64, inodes: u64) -> Option<Self> {
        let per_group = u64::from(BLOCKS_PER_GROUP);
        let mut groups = data_end
            .div_ceil(per_group)
            .max(inodes.div_ceil(per_group))
            .max(1);
        // Adding a group adds metadata, which may need one more group; this ends because a
        // group has more blocks than its metadata takes.
        loop {
            let inodes_per_group = inodes
                .div_ceil(groups)
                .next_multiple_of(u64::from(INODES_PER_BLOCK));
            let metadata = 2 + inodes_per_group / u64::from(INODES_PER_BLOCK);
            let end = data_end + groups * metadata;
            let needed = end.div_ceil(per_group);
            if needed > MOST_GROUPS {
                return None;
            }
            if needed <= groups {
                return Some(Self {
                    data_end,
                    // The last group must have at least one block.
                    total: end.max((groups - 1) * per_group + 1),
                    groups: u32::try_from(groups).ok()?,
                    inodes_per_group: u32::try_from(inodes_per_group).ok()?,
                });
            }
            groups = needed;
        }
    }

    fn descriptor_blocks(&self) -> u64 {
        (self.groups as usize * DESCRIPTOR).div_ceil(BLOCK) as u64
    }

    fn blocks_per_group_metadata(&self) -> u64 {
        2 + u64::from(self.inodes_per_group / INODES_PER_BLOCK)
    }

    /// The group's block bitmap; its inode bitmap and inode table follow.
    fn group_at(&self, group: u32) -> u64 {
        self.data_end + u64::from(group) * self.blocks_per_group_metadata()
    }
}

/// One bit for each block: is it in use?
struct Usage(Vec<u8>);

impl Usage {
    /// Blocks behind `total` count as used.
    fn new(total: u64, groups: u32) -> Self {
        let all = u64::from(groups) * u64::from(BLOCKS_PER_GROUP);
        let mut usage = Self(vec![0; groups as usize * BLOCK]);
        usage.set(total, all - total);
        usage
    }

    fn set(&mut self, start: u64, count: u64) {
        for block in start..start + count {
            self.0[(block / 8) as usize] |= 1 << (block % 8);
        }
    }

    fn clear(&mut self, start: u64, count: u64) {
        for block in start..start + count {
            self.0[(block / 8) as usize] &= !(1 << (block % 8));
        }
    }

    fn bitmap(&self, group: u32) -> Vec<u8> {
        self.0[group as usize * BLOCK..][..BLOCK].to_vec()
    }
}

pub(super) fn shown(path: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    PathBuf::from(std::ffi::OsStr::from_bytes(path))
}

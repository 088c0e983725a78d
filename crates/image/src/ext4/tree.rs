//! The names and inodes of a file system that is being built: where a path leads, and which
//! layer a name is of.
//!
//! Paths are followed as the kernel would follow them in the finished file system: a symbolic
//! link on the way is followed from the root of the tree, never out of it. Only the last name
//! of a path is taken as it is.
//!
//! A name belongs to the layer that wrote it, or something below it, last. That is what a
//! whiteout needs: it hides what layers below left there, never what its own layer brings,
//! whatever comes first in the layer.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::inode::{Attributes, Inode, mode};
use super::writer::{Ext4Error, shown};

pub(super) const ROOT: u32 = 2;
/// First inode that is not reserved; `lost+found` by convention.
pub(super) const FIRST_INODE: u32 = 11;
/// Most bytes of memory for names, inodes, targets and attributes, as the costs below count them:
/// enough for two million files. Whoever makes an image decides how many it has, so this must not
/// be more than a host can spare.
pub(super) const MOST_MEMORY: usize = 512 << 20;
/// What an inode takes, whether it is in use or free again.
const INODE_COST: usize = size_of::<Option<Inode>>() + size_of::<u32>();
/// What a name takes besides its text: its place in a tree whose nodes are half full, and the
/// allocation of the text.
const NAME_COST: usize = 2 * size_of::<(Box<[u8]>, Name)>() + 16;
/// What a directory takes before it has more than a few names: a whole node, and its own place.
const DIRECTORY_COST: usize = 12 * size_of::<(Box<[u8]>, Name)>() + 2 * size_of::<(u32, Names)>();
/// What a long target takes besides its text.
const TARGET_COST: usize = 2 * size_of::<(u32, Box<[u8]>)>() + 16;
/// Most that one step adds after it was looked whether there is room.
const STEP_COST: usize = 16 << 10;
/// Most symbolic links that are followed on one path, as in the kernel.
const MOST_FOLLOWED: usize = 40;
/// Longest path that the kernel takes (`PATH_MAX`, with its zero byte).
const LONGEST_PATH: usize = 4095;
const LONGEST_NAME: usize = 255;

/// Blocks that belong to nobody any more: (start, count).
pub(super) type Freed = Vec<(u64, u64)>;

type Names = BTreeMap<Box<[u8]>, Name>;

/// What a name leads to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name {
    pub(super) inode: u32,
    layer: u16,
}

/// Where a path ends: the directory that it is in, and its name there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) directory: u32,
    pub(super) name: &'a [u8],
    /// How many directories are above it, the root not counted.
    pub(super) depth: usize,
}

/// What happens to directories on the way that are not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    Stop,
}

/// Names and inodes; see the module.
pub(super) struct Tree {
    /// Inode 1 is at index 0; those that are free are `None`.
    inodes: Vec<Option<Inode>>,
    vacant: Vec<u32>,
    directories: BTreeMap<u32, Names>,
    /// Targets of those symbolic links that are too long for their inodes.
    targets: BTreeMap<u32, Box<[u8]>>,
    layer: u16,
    /// Directories below which nothing is left of the layers below the current one.
    bare: BTreeSet<u32>,
    /// Bytes of memory that all of it takes, and the most that it may take.
    memory: usize,
    most_memory: usize,
}

impl Tree {
    /// A tree of just a root.
    pub(super) fn new() -> Self {
        let mut tree = Self {
            inodes: (1..FIRST_INODE).map(|_| None).collect(),
            vacant: Vec::new(),
            directories: BTreeMap::new(),
            targets: BTreeMap::new(),
            layer: 0,
            bare: BTreeSet::new(),
            memory: 0,
            most_memory: MOST_MEMORY,
        };
        tree.inodes[ROOT as usize - 1] = Some(plain_directory());
        tree.directories.insert(ROOT, Names::new());
        tree
    }

    /// What comes from here on is of another layer; `None` if there were too many.
    pub(super) fn begin_layer(&mut self) -> Option<()> {
        self.layer = self.layer.checked_add(1)?;
        self.bare.clear();
        Some(())
    }

    /// All inodes, from number 1 on.
    pub(super) fn inodes(&self) -> &[Option<Inode>] {
        &self.inodes
    }

    pub(super) fn inode(&self, number: u32) -> Option<&Inode> {
        self.inodes.get(number as usize - 1)?.as_ref()
    }

    pub(super) fn inode_mut(&mut self, number: u32) -> &mut Inode {
        self.inodes[number as usize - 1]
            .as_mut()
            .expect("a name refers to an inode that is there")
    }

    pub(super) fn is_directory(&self, number: u32) -> bool {
        self.directories.contains_key(&number)
    }

    /// What is in the directory `number`, by name.
    pub(super) fn names(&self, number: u32) -> impl Iterator<Item = (&[u8], u32)> {
        let names = self.directories.get(&number).into_iter().flatten();
        names.map(|(text, name)| (&text[..], name.inode))
    }

    /// Takes the names of all directories out.
    pub(super) fn take_directories(&mut self) -> BTreeMap<u32, Names> {
        std::mem::take(&mut self.directories)
    }

    /// Where `path` ends, `None` for the root. Missing directories on the way are made, and
    /// those that are there are of the current layer from now on.
    pub(super) fn place<'a>(&mut self, path: &'a [u8]) -> Result<Option<Place<'a>>, Ext4Error> {
        self.require_memory()?;
        let (way, last) = split(path)?;
        let Some(name) = last else { return Ok(None) };
        let (directory, depth) = self
            .descend(way, path, Missing::Make)?
            .expect("what is missing was made");
        Ok(Some(Place {
            directory,
            name,
            depth,
        }))
    }

    /// Where `path` ends, if all directories on the way are there; for the root, the root and
    /// an empty name.
    pub(super) fn look<'a>(&mut self, path: &'a [u8]) -> Result<Option<Place<'a>>, Ext4Error> {
        let (way, last) = split(path)?;
        let found = self.descend(way, path, Missing::Stop)?;
        Ok(found.map(|(directory, depth)| Place {
            directory,
            name: last.unwrap_or_default(),
            depth,
        }))
    }

    /// What has that name.
    pub(super) fn at(&self, place: Place<'_>) -> Option<u32> {
        Some(self.directories[&place.directory].get(place.name)?.inode)
    }

    /// Adds an inode that has no name yet.
    pub(super) fn add(&mut self, inode: Inode) -> Result<u32, Ext4Error> {
        self.require_memory()?;
        self.memory += inode.memory();
        if let Some(number) = self.vacant.pop() {
            self.inodes[number as usize - 1] = Some(inode);
            return Ok(number);
        }
        self.memory += INODE_COST;
        self.inodes.push(Some(inode));
        Ok(u32::try_from(self.inodes.len()).expect("memory is not for so many"))
    }

    /// Adds `inode` as an empty directory.
    pub(super) fn add_directory(&mut self, inode: Inode) -> Result<u32, Ext4Error> {
        let number = self.add(inode)?;
        self.memory += DIRECTORY_COST;
        self.directories.insert(number, Names::new());
        Ok(number)
    }

    /// What is counted of the memory, and what it is when counted anew.
    #[cfg(any(test, fuzzing))]
    pub(super) fn memory(&self) -> (usize, usize) {
        let inodes = self.inodes.iter().skip(FIRST_INODE as usize - 1);
        let mut memory = 0;
        for inode in inodes {
            memory += INODE_COST + inode.as_ref().map_or(0, Inode::memory);
        }
        for (number, names) in &self.directories {
            memory += if *number == ROOT { 0 } else { DIRECTORY_COST };
            memory += names
                .keys()
                .map(|text| NAME_COST + text.len())
                .sum::<usize>();
        }
        for target in self.targets.values() {
            memory += TARGET_COST + target.len();
        }
        (self.memory, memory)
    }

    #[cfg(test)]
    pub(super) fn limit_memory(&mut self, bytes: usize) {
        self.most_memory = bytes;
    }

    /// Names `inode` at `place`, in place of what had that name.
    pub(super) fn name(&mut self, place: Place<'_>, inode: u32) -> Freed {
        let freed = self.remove(place);
        let name = Name {
            inode,
            layer: self.layer,
        };
        self.names_mut(place.directory)
            .insert(place.name.into(), name);
        self.memory += NAME_COST + place.name.len();
        if self.is_directory(inode) {
            self.inode_mut(place.directory).links += 1;
        }
        freed
    }

    /// Another inode in the place of a directory's.
    pub(super) fn replace_directory(&mut self, number: u32, inode: Inode) -> Inode {
        self.memory += inode.memory();
        let slot = self.inode_mut(number);
        let links = slot.links;
        let old = std::mem::replace(slot, Inode { links, ..inode });
        self.memory -= old.memory();
        old
    }

    /// The name is the current layer's from now on.
    pub(super) fn touch(&mut self, place: Place<'_>) {
        let layer = self.layer;
        if let Some(name) = self.names_mut(place.directory).get_mut(place.name) {
            name.layer = layer;
        }
    }

    /// Remembers the target of a symbolic link that does not fit into its inode.
    pub(super) fn keep_target(&mut self, number: u32, target: &[u8]) {
        self.targets.insert(number, target.into());
        self.memory += TARGET_COST + target.len();
    }

    /// Removes what has that name, with everything below it.
    pub(super) fn remove(&mut self, place: Place<'_>) -> Freed {
        let mut freed = Freed::new();
        let Some(name) = self.names_mut(place.directory).remove(place.name) else {
            return freed;
        };
        self.memory -= NAME_COST + place.name.len();
        if self.is_directory(name.inode) {
            self.inode_mut(place.directory).links -= 1;
        }
        let mut doomed = vec![name.inode];
        while let Some(number) = doomed.pop() {
            let names = self.directories.remove(&number);
            let is_directory = names.is_some();
            for (text, name) in names.into_iter().flatten() {
                self.memory -= NAME_COST + text.len();
                doomed.push(name.inode);
            }
            let inode = self.inode_mut(number);
            inode.links -= 1;
            if inode.links == 0 || is_directory {
                freed.push(inode.blocks);
                self.forget(number);
            }
        }
        freed
    }

    /// The number is free for another inode.
    fn forget(&mut self, number: u32) {
        let inode = self.inodes[number as usize - 1].take();
        let inode = inode.expect("a name refers to an inode that is there");
        self.memory -= inode.memory();
        if inode.is_directory() {
            self.memory -= DIRECTORY_COST;
        }
        if let Some(target) = self.targets.remove(&number) {
            self.memory -= TARGET_COST + target.len();
        }
        self.bare.remove(&number);
        self.vacant.push(number);
    }

    /// Removes what layers below the current one left at that name, and keeps what the current
    /// one brings there.
    pub(super) fn hide(&mut self, place: Place<'_>) -> Freed {
        let Some(name) = self.directories[&place.directory].get(place.name).copied() else {
            return Freed::new();
        };
        match name.layer == self.layer {
            true => self.hide_below(name.inode),
            false => self.remove(place),
        }
    }

    /// As [`Tree::hide`], of all names in the directory `number`, if it is one.
    pub(super) fn hide_below(&mut self, number: u32) -> Freed {
        let mut freed = Freed::new();
        let mut open = vec![number];
        while let Some(number) = open.pop() {
            let Some(names) = self.directories.get(&number) else {
                continue;
            };
            // Layers below bring nothing any more: what is once bare stays so.
            if !self.bare.insert(number) {
                continue;
            }
            let mut lower = Vec::new();
            for (text, name) in names {
                match name.layer == self.layer {
                    true => open.push(name.inode),
                    false => lower.push(text.clone()),
                }
            }
            for name in lower {
                freed.extend(self.remove(Place {
                    directory: number,
                    name: &name,
                    depth: 0,
                }));
            }
        }
        freed
    }

    /// The directory at the end of `way`, and how deep it is.
    fn descend(
        &mut self,
        way: Vec<&[u8]>,
        path: &[u8],
        missing: Missing,
    ) -> Result<Option<(u32, usize)>, Ext4Error> {
        // What is left of the way, the next name last, and the directories that we are in.
        let mut left: Vec<Cow<'_, [u8]>> = way.into_iter().rev().map(Cow::Borrowed).collect();
        let mut within = vec![ROOT];
        let mut followed = 0;
        while let Some(name) = left.pop() {
            if *name == *b".." {
                if within.len() > 1 {
                    within.pop();
                }
                continue;
            }
            let directory = *within.last().expect("the root is never left");
            let place = Place {
                directory,
                name: &name,
                depth: within.len() - 1,
            };
            let found = self.at(place);
            match found {
                Some(number) if self.is_directory(number) => {
                    if missing == Missing::Make {
                        self.touch(place);
                    }
                    within.push(number);
                }
                Some(number) => {
                    let target = self
                        .target(number)
                        .ok_or_else(|| Ext4Error::NotADirectory { path: shown(path) })?
                        .to_vec();
                    followed += 1;
                    if followed > MOST_FOLLOWED {
                        return Err(Ext4Error::TooManySymlinks { path: shown(path) });
                    }
                    if target.starts_with(b"/") {
                        within.truncate(1);
                    }
                    let names: Vec<_> = components(&target).map(<[u8]>::to_vec).collect();
                    if names.iter().any(|name| name.len() > LONGEST_NAME) {
                        return Err(Ext4Error::Path { path: shown(path) });
                    }
                    left.extend(names.into_iter().rev().map(Cow::Owned));
                }
                None if missing == Missing::Stop => return Ok(None),
                None => {
                    let number = self.add_directory(plain_directory())?;
                    self.name(place, number);
                    within.push(number);
                }
            }
        }
        let directory = *within.last().expect("the root is never left");
        Ok(Some((directory, within.len() - 1)))
    }

    /// The target of the symbolic link `number`, `None` if it is something else.
    pub(super) fn target(&self, number: u32) -> Option<&[u8]> {
        let inode = self.inode(number)?;
        if inode.mode & mode::TYPE != mode::SYMLINK {
            return None;
        }
        match self.targets.get(&number) {
            Some(target) => Some(target),
            None => inode.block.get(..usize::try_from(inode.size).ok()?),
        }
    }

    /// Refuses to go on when memory for one more step is not there.
    fn require_memory(&self) -> Result<(), Ext4Error> {
        match self.memory + STEP_COST <= self.most_memory {
            true => Ok(()),
            false => Err(Ext4Error::TooMuch),
        }
    }

    fn names_mut(&mut self, directory: u32) -> &mut Names {
        self.directories
            .get_mut(&directory)
            .expect("the number was taken from the table of directories")
    }
}

/// The names on the way, and the last one; `None` for the root.
#[expect(
    clippy::type_complexity,
    reason = "two parts of a path, taken apart by the callers at once"
)]
fn split(path: &[u8]) -> Result<(Vec<&[u8]>, Option<&[u8]>), Ext4Error> {
    let mut names: Vec<_> = components(path).collect();
    let is_bad = |name: &&[u8]| name.len() > LONGEST_NAME || *name == b".." || name.contains(&0);
    if path.len() > LONGEST_PATH || names.iter().any(is_bad) {
        return Err(Ext4Error::Path { path: shown(path) });
    }
    let last = names.pop();
    Ok((names, last))
}

/// The names of a path, without empty ones and `.`.
pub(super) fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
}

/// A directory that nobody described.
fn plain_directory() -> Inode {
    let attributes = Attributes {
        mode: 0o755,
        ..Attributes::default()
    };
    let mut inode = Inode::new(mode::DIRECTORY, &attributes);
    inode.links = 2;
    inode
}

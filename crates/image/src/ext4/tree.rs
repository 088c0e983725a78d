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
use std::collections::BTreeMap;

use super::inode::{Attributes, Inode, mode};
use super::writer::{Ext4Error, shown};

pub(super) const ROOT: u32 = 2;
/// First inode that is not reserved; `lost+found` by convention.
pub(super) const FIRST_INODE: u32 = 11;
/// Most inodes of one file system: each takes some 250 bytes of memory.
const MOST_INODES: usize = 1 << 22;
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
        };
        tree.inodes[ROOT as usize - 1] = Some(plain_directory());
        tree.directories.insert(ROOT, Names::new());
        tree
    }

    /// What comes from here on is of another layer; `None` if there were too many.
    pub(super) fn begin_layer(&mut self) -> Option<()> {
        self.layer = self.layer.checked_add(1)?;
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

    /// Takes the names of all directories out.
    pub(super) fn take_directories(&mut self) -> BTreeMap<u32, Names> {
        std::mem::take(&mut self.directories)
    }

    /// Where `path` ends, `None` for the root. Missing directories on the way are made, and
    /// those that are there are of the current layer from now on.
    pub(super) fn place<'a>(&mut self, path: &'a [u8]) -> Result<Option<Place<'a>>, Ext4Error> {
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
        if let Some(number) = self.vacant.pop() {
            self.inodes[number as usize - 1] = Some(inode);
            return Ok(number);
        }
        if self.inodes.len() >= MOST_INODES {
            return Err(Ext4Error::TooManyFiles);
        }
        self.inodes.push(Some(inode));
        Ok(u32::try_from(self.inodes.len()).expect("less than MOST_INODES"))
    }

    /// Adds `inode` as an empty directory.
    pub(super) fn add_directory(&mut self, inode: Inode) -> Result<u32, Ext4Error> {
        let number = self.add(inode)?;
        self.directories.insert(number, Names::new());
        Ok(number)
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
        if self.is_directory(inode) {
            self.inode_mut(place.directory).links += 1;
        }
        freed
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
    }

    /// Removes what has that name, with everything below it.
    pub(super) fn remove(&mut self, place: Place<'_>) -> Freed {
        let mut freed = Freed::new();
        let Some(name) = self.names_mut(place.directory).remove(place.name) else {
            return freed;
        };
        if self.is_directory(name.inode) {
            self.inode_mut(place.directory).links -= 1;
        }
        let mut doomed = vec![name.inode];
        while let Some(number) = doomed.pop() {
            let names = self.directories.remove(&number);
            let is_directory = names.is_some();
            doomed.extend(names.into_iter().flatten().map(|(_, name)| name.inode));
            let inode = self.inode_mut(number);
            inode.links -= 1;
            if inode.links == 0 || is_directory {
                freed.push(inode.blocks);
                self.inodes[number as usize - 1] = None;
                self.targets.remove(&number);
                self.vacant.push(number);
            }
        }
        freed
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
    fn target(&self, number: u32) -> Option<&[u8]> {
        let inode = self.inode(number)?;
        if inode.mode & mode::TYPE != mode::SYMLINK {
            return None;
        }
        match self.targets.get(&number) {
            Some(target) => Some(target),
            None => inode.block.get(..usize::try_from(inode.size).ok()?),
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

//! Unpacks a tree that a guest sent. The guest is not trusted: whatever its archive says, only
//! the copy's own place is written, and no link that came with it is followed.

use std::fs;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use tar::{Archive, Entry, EntryType};

use super::{ArchiveError, Pieces};

/// What a guest sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    /// A file, or a symbolic link.
    File,
}

/// Unpacks the archive whose root is to be at the path that `place` says once it knows what
/// the root is. Modes, times and links are kept, and owners if `owners`; a directory that was
/// there before keeps its own. Gives what was left out: devices and pipes. Blocks.
///
/// # Errors
/// The archive is broken or wants out, or something cannot be written; what was unpacked
/// before stays, and no file is there in part.
pub(crate) fn unpack(
    from: Pieces,
    owners: bool,
    place: impl FnOnce(Kind) -> Result<PathBuf, ArchiveError>,
) -> Result<Vec<PathBuf>, ArchiveError> {
    let mut archive = Archive::new(from);
    archive.set_preserve_permissions(true);
    archive.set_preserve_mtime(true);
    archive.set_preserve_ownerships(owners);
    archive.set_overwrite(true);
    let mut place = Some(place);
    let mut root = None;
    let mut directories = Vec::new();
    let mut left_out = Vec::new();
    for entry in archive.entries().map_err(ArchiveError::Broken)? {
        let mut entry = entry.map_err(ArchiveError::Broken)?;
        let kind = entry.header().entry_type();
        if let Some(place) = place.take() {
            root = Some(Root::at(place(match kind {
                EntryType::Directory => Kind::Directory,
                _ => Kind::File,
            })?)?);
        }
        let root = root.as_ref().expect("the first entry gave it its place");
        let path = root.path_of(&entry)?;
        match kind {
            EntryType::Directory => {
                if make_directory(&path)? {
                    // Their modes and times come last: they would keep files out, or be changed.
                    directories.push((path, entry));
                }
            }
            EntryType::Link => root.link(&entry, &path)?,
            EntryType::Regular
            | EntryType::Continuous
            | EntryType::GNUSparse
            | EntryType::Symlink => put_whole(&mut entry, &path)?,
            _ => left_out.push(path),
        }
    }
    for (path, mut entry) in directories.into_iter().rev() {
        entry.unpack(&path).map_err(|error| write(&path, error))?;
    }
    // What pads an archive is still on its way.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(ArchiveError::Broken)?;
    match root {
        Some(_) => Ok(left_out),
        None => Err(ArchiveError::Broken(io::ErrorKind::UnexpectedEof.into())),
    }
}

/// The place of the archive's root.
struct Root {
    path: PathBuf,
    /// The directory that it is in, as it really is.
    parent: PathBuf,
}

impl Root {
    fn at(path: PathBuf) -> Result<Self, ArchiveError> {
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let parent = parent
            .canonicalize()
            .map_err(|error| write(parent, error))?;
        Ok(Self { path, parent })
    }

    fn path_of(&self, entry: &Entry<'_, impl Read>) -> Result<PathBuf, ArchiveError> {
        self.resolve(&entry.path().map_err(ArchiveError::Broken)?)
    }

    /// The path of an entry on this host: its name without the first part, which is the root's
    /// in the archive, below the root's here.
    fn resolve(&self, name: &Path) -> Result<PathBuf, ArchiveError> {
        let escape = || ArchiveError::Escape(name.display().to_string());
        let mut parts = name.components();
        parts.next();
        let mut path = self.path.clone();
        for part in parts {
            match part {
                Component::Normal(part) => path.push(part),
                Component::CurDir => {}
                Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                    return Err(escape());
                }
            }
        }
        if path == self.path {
            return Ok(path);
        }
        // A link that came before, or was there, may lead anywhere.
        let parent = path.parent().ok_or_else(escape)?;
        let real = parent
            .canonicalize()
            .map_err(|error| write(parent, error))?;
        let own = self.path.file_name().map(|name| self.parent.join(name));
        match own {
            Some(own) if real.starts_with(&own) => Ok(path),
            // The root is `.` or `/`, or a link to a directory that was there before.
            _ if self.is_own(&real) => Ok(path),
            _ => Err(escape()),
        }
    }

    fn is_own(&self, real: &Path) -> bool {
        let is_link = fs::symlink_metadata(&self.path).is_ok_and(|at| at.is_symlink());
        !is_link
            && self
                .path
                .canonicalize()
                .is_ok_and(|own| real.starts_with(own))
    }

    fn link(&self, entry: &Entry<'_, impl Read>, path: &Path) -> Result<(), ArchiveError> {
        let target = entry.link_name().map_err(ArchiveError::Broken)?;
        let target = target.ok_or_else(|| ArchiveError::Escape(path.display().to_string()))?;
        let first = self.resolve(&target)?;
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(write(path, error));
            }
            _ => {}
        }
        fs::hard_link(&first, path).map_err(|error| write(path, error))
    }
}

/// Writes a file beside its place and gives it its name when all of it is there: a copy that is
/// interrupted leaves what was there before.
fn put_whole(entry: &mut Entry<'_, impl Read>, path: &Path) -> Result<(), ArchiveError> {
    // One process copies one thing at a time, so that its number makes the name its own. What a
    // killed one has left there is written over.
    let draft = path.with_file_name(format!(".banger-cp-{}", std::process::id()));
    let written = entry.unpack(&draft);
    let named = written.and_then(|_| fs::rename(&draft, path));
    named.map_err(|error| {
        // It may not have come to be.
        let _ = fs::remove_file(&draft);
        write(path, error)
    })
}

/// Makes a directory, or finds it; true if it is new. A link to one is none: it may have come
/// with the archive.
fn make_directory(path: &Path) -> Result<bool, ArchiveError> {
    match fs::symlink_metadata(path) {
        Ok(there) if there.is_dir() => Ok(false),
        _ => fs::create_dir(path)
            .map(|()| true)
            .map_err(|error| write(path, error)),
    }
}

fn write(path: &Path, source: io::Error) -> ArchiveError {
    // The library wraps what the system said in words of its own.
    let system = source.get_ref().and_then(|inner| inner.source());
    let system = system.and_then(|cause| cause.downcast_ref::<io::Error>());
    let source = match system.and_then(io::Error::raw_os_error) {
        Some(number) => io::Error::from_raw_os_error(number),
        None => source,
    };
    ArchiveError::Write {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::{Owners, Packing, pack, pieces};
    use std::io::Write;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use tar::{Builder, Header};

    fn copied(from: &Path, to: &Path) -> Result<Vec<PathBuf>, ArchiveError> {
        let (writer, reader) = pieces();
        let packing = Packing {
            from: from.to_owned(),
            root: Some("whatever".into()),
            owners: Owners::Root,
        };
        let packing = std::thread::spawn(move || pack(&packing, writer, |_| {}));
        let to = to.to_owned();
        let unpacked = unpack(reader, false, |_| Ok(to));
        packing.join().unwrap()?;
        unpacked
    }

    fn unpacked(to: &Path, archive: Vec<u8>) -> Result<Vec<PathBuf>, ArchiveError> {
        let (mut writer, reader) = pieces();
        std::thread::spawn(move || {
            let _ = writer.write_all(&archive).and_then(|()| writer.flush());
        });
        unpack(reader, false, |_| Ok(to.to_owned()))
    }

    #[test]
    fn a_tree_survives_the_way_out_and_in() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        let long = "n".repeat(150);
        fs::create_dir_all(tree.join("sub/read-only")).unwrap();
        fs::write(tree.join(&long), "long").unwrap();
        fs::write(tree.join("sub/run"), vec![7; 300_000]).unwrap();
        fs::set_permissions(tree.join("sub/run"), PermissionsExt::from_mode(0o750)).unwrap();
        fs::hard_link(tree.join("sub/run"), tree.join("sub/second")).unwrap();
        symlink("/no/where", tree.join("link")).unwrap();
        fs::write(tree.join("sub/read-only/file"), "x").unwrap();
        fs::set_permissions(tree.join("sub/read-only"), PermissionsExt::from_mode(0o555)).unwrap();
        let copy = directory.path().join("copy");
        // Again over itself, as a second copy does: what is there keeps its mode.
        for read_only_mode in [0o555, 0o755] {
            assert!(copied(&tree, &copy).unwrap().is_empty());
            assert_eq!(fs::read_to_string(copy.join(&long)).unwrap(), "long");
            let run = fs::metadata(copy.join("sub/run")).unwrap();
            let original = fs::metadata(tree.join("sub/run")).unwrap();
            assert_eq!(
                (run.len(), run.mode(), run.nlink()),
                (300_000, original.mode(), 2)
            );
            assert_eq!(run.mtime(), original.mtime());
            let link = fs::read_link(copy.join("link")).unwrap();
            assert_eq!(link, Path::new("/no/where"));
            let read_only = fs::metadata(copy.join("sub/read-only")).unwrap();
            assert_eq!(read_only.mode() & 0o7777, read_only_mode);
            // So that an ordinary user can copy over it, and the test clean up.
            let open = PermissionsExt::from_mode(0o755);
            fs::set_permissions(copy.join("sub/read-only"), open).unwrap();
        }
        let open = PermissionsExt::from_mode(0o755);
        fs::set_permissions(tree.join("sub/read-only"), open).unwrap();
    }

    #[test]
    fn what_is_no_file_is_left_out_and_said() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let socket = tree.join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let (writer, mut reader) = pieces();
        let packing = Packing {
            from: tree,
            root: Some("t".into()),
            owners: Owners::Kept,
        };
        let reading = std::thread::spawn(move || io::copy(&mut reader, &mut io::sink()));
        assert_eq!(pack(&packing, writer, |_| {}).unwrap(), [socket]);
        assert!(reading.join().unwrap().unwrap() > 0);
    }

    #[test]
    fn a_directory_that_was_there_keeps_its_mode() {
        let home = tempfile::tempdir().unwrap();
        let own = PermissionsExt::from_mode(0o700);
        fs::set_permissions(home.path(), own).unwrap();
        fs::create_dir(home.path().join(".ssh")).unwrap();
        let own = PermissionsExt::from_mode(0o700);
        fs::set_permissions(home.path().join(".ssh"), own).unwrap();
        let mut builder = Builder::new(Vec::new());
        for name in ["tmp", "tmp/.ssh", "tmp/new"] {
            let mut header = entry(name, EntryType::Directory);
            header.set_mode(0o777);
            header.set_cksum();
            builder.append(&header, io::empty()).unwrap();
        }
        unpacked(home.path(), builder.into_inner().unwrap()).unwrap();
        let mode = |name: &str| fs::metadata(home.path().join(name)).unwrap().mode() & 0o7777;
        assert_eq!([".", ".ssh", "new"].map(mode), [0o700, 0o700, 0o777]);
    }

    fn entry(name: &str, kind: EntryType) -> Header {
        let mut header = Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_mode(0o755);
        header.set_cksum();
        header
    }

    #[test]
    fn nothing_of_a_hostile_guest_gets_out() {
        let directory = tempfile::tempdir().unwrap();
        let outside = directory.path().join("outside");
        fs::create_dir(&outside).unwrap();
        let to = directory.path().join("to");
        for name in [
            "r/../outside/evil",
            "r/a/../../outside/evil",
            "r//../../evil",
        ] {
            let mut builder = Builder::new(Vec::new());
            builder
                .append(&entry("r", EntryType::Directory), io::empty())
                .unwrap();
            builder
                .append(&entry(name, EntryType::Regular), io::empty())
                .unwrap();
            let error = unpacked(&to, builder.into_inner().unwrap()).unwrap_err();
            assert!(matches!(error, ArchiveError::Escape(_)), "{name}: {error}");
        }
        // Through a link that the archive itself brings: as a part, and as the root.
        for (link, file) in [("r/way", "r/way/evil"), ("r", "r/evil")] {
            let mut builder = Builder::new(Vec::new());
            if link != "r" {
                builder
                    .append(&entry("r", EntryType::Directory), io::empty())
                    .unwrap();
            }
            let mut header = entry(link, EntryType::Symlink);
            builder.append_link(&mut header, link, &outside).unwrap();
            builder
                .append(&entry(file, EntryType::Regular), io::empty())
                .unwrap();
            let to = directory.path().join(format!("to-{}", link.len()));
            assert!(
                unpacked(&to, builder.into_inner().unwrap()).is_err(),
                "{link}"
            );
        }
        // A hard link to a file that is not the copy's.
        fs::write(outside.join("secret"), "x").unwrap();
        let mut builder = Builder::new(Vec::new());
        builder
            .append(&entry("r", EntryType::Directory), io::empty())
            .unwrap();
        let mut header = entry("r/l", EntryType::Link);
        let target = "r/../outside/secret";
        builder.append_link(&mut header, "r/l", target).unwrap();
        assert!(unpacked(&to, builder.into_inner().unwrap()).is_err());
        let left: Vec<_> = fs::read_dir(&outside).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "only the secret");
        assert_eq!(fs::metadata(outside.join("secret")).unwrap().nlink(), 1);
    }

    #[test]
    fn an_archive_that_is_cut_short_or_empty_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let mut builder = Builder::new(Vec::new());
        let mut header = entry("f", EntryType::Regular);
        header.set_size(5000);
        header.set_cksum();
        builder.append(&header, &[1u8; 5000][..]).unwrap();
        let mut archive = builder.into_inner().unwrap();
        archive.truncate(3000);
        let a = directory.path().join("a");
        assert!(unpacked(&a, archive.clone()).is_err());
        assert!(fs::read_dir(&directory).unwrap().next().is_none());
        // What was there before stays.
        fs::write(&a, "before").unwrap();
        assert!(unpacked(&a, archive).is_err());
        assert_eq!(fs::read_to_string(&a).unwrap(), "before");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        assert!(unpacked(&directory.path().join("b"), Vec::new()).is_err());
    }
}

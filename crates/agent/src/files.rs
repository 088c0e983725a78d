//! File trees as tar streams, out of the guest and into it.
//!
//! Out: the entries are named from the base name of what was asked for on, so `/etc/apt`
//! gives `apt/`, `apt/sources.list`, ... and `/` gives `./`, `./bin`, ... In: the entries are
//! unpacked below a directory, which is made if it is missing; no entry gets out of it.

mod sparse;

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, Bytes, BytesMut};
use rustix::fs::{lgetxattr, llistxattr};
use rustix::process::geteuid;
use tar::{Archive, Builder, EntryType, Header};
use tokio::sync::mpsc;

/// Longest list of attributes' names, and longest value (xattr(7)).
const ATTRIBUTE_NAMES_MAX: usize = 64 * 1024;
const ATTRIBUTE_MAX: usize = 64 * 1024;
/// Size of the pieces in which an archive is sent.
const PIECE: usize = 64 * 1024;

/// Why a tree could not be packed or unpacked.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file of the guest cannot be read.
    #[error("could not read {path}: {reason}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: io::Error,
    },
    /// The directory to unpack into cannot be made.
    #[error("could not make the directory {path}: {reason}")]
    Target {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: io::Error,
    },
    /// The archive is broken, or its stream was cut short.
    #[error("could not read the archive: {0}")]
    Archive(String),
    /// An entry would land outside of the target.
    #[error("the entry `{0}` leads out of the target directory")]
    Escape(String),
    /// An entry cannot be written.
    #[error("could not unpack `{name}`: {reason}")]
    Unpack {
        /// The entry's name.
        name: String,
        /// Why.
        reason: String,
        /// What of that the system said.
        kind: io::ErrorKind,
    },
    /// Nobody takes the archive any more.
    #[error("the archive's reader is gone")]
    Gone,
}

impl FilesError {
    /// What the system said, where it was the system.
    pub fn kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Read { reason, .. } | Self::Target { reason, .. } => Some(reason.kind()),
            Self::Unpack { kind, .. } => Some(*kind),
            Self::Archive(_) | Self::Escape(_) | Self::Gone => None,
        }
    }
}

/// Packs what is at `path` and sends the archive's bytes. Blocks.
///
/// # Errors
/// Something could not be read; the archive is then incomplete.
pub fn pack(path: &Path, pieces: mpsc::Sender<io::Result<Bytes>>) -> Result<(), FilesError> {
    let name = path
        .file_name()
        .map_or_else(|| PathBuf::from("."), PathBuf::from);
    Packer::new(pieces, None).pack(path, &name)
}

/// Packs the guest's whole system, as [`pack`] does with `/`, but without what is not the system's
/// own: see `SystemBounds`. Blocks.
///
/// # Errors
/// As [`pack`].
pub fn pack_system(pieces: mpsc::Sender<io::Result<Bytes>>) -> Result<(), FilesError> {
    let root = Path::new("/");
    let bounds = SystemBounds::of(root).map_err(|reason| FilesError::Read {
        path: root.to_owned(),
        reason,
    })?;
    Packer::new(pieces, Some(bounds)).pack(root, Path::new("."))
}

struct Packer {
    builder: Builder<PieceWriter>,
    /// Names of files with several links, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
    bounds: Option<SystemBounds>,
}

/// What belongs to a system that becomes an image.
///
/// - Other file systems do not (`/proc`, `/dev`, `/run`, ...), but for `/root`, which is a disk of
///   its own: of them only the directory is packed.
/// - The content of [`PASSING`] directories does not.
/// - The machine's id is not the image's: the file is packed empty, so that init makes a new one.
#[derive(Debug)]
struct SystemBounds {
    devices: Vec<u64>,
}

/// Directories whose content is not meant to stay.
const PASSING: [&str; 2] = ["./tmp", "./var/tmp"];
/// Files that say which machine this is.
const MACHINE_ID: &str = "./etc/machine-id";

impl SystemBounds {
    fn of(root: &Path) -> io::Result<Self> {
        let home = fs::symlink_metadata(root.join("root"));
        let devices = [Some(fs::symlink_metadata(root)?), home.ok()];
        let devices = devices.into_iter().flatten().map(|found| found.dev());
        Ok(Self {
            devices: devices.collect(),
        })
    }

    /// Whether what is in a directory is packed too.
    fn enter(&self, name: &Path, directory: &Metadata) -> bool {
        let passing = PASSING.iter().any(|passing| name == Path::new(passing));
        self.devices.contains(&directory.dev()) && !passing
    }
}

impl Packer {
    fn new(pieces: mpsc::Sender<io::Result<Bytes>>, bounds: Option<SystemBounds>) -> Self {
        let output = PieceWriter {
            pieces,
            buffer: BytesMut::new(),
        };
        Self {
            builder: Builder::new(output),
            links: HashMap::new(),
            bounds,
        }
    }

    fn pack(mut self, path: &Path, name: &Path) -> Result<(), FilesError> {
        self.add(path, name)?;
        let mut output = self.builder.into_inner().map_err(|_| FilesError::Gone)?;
        output.flush().map_err(|_| FilesError::Gone)
    }

    fn add(&mut self, path: &Path, name: &Path) -> Result<(), FilesError> {
        let read = |reason| FilesError::Read {
            path: path.to_owned(),
            reason,
        };
        let metadata = fs::symlink_metadata(path).map_err(read)?;
        let kind = metadata.file_type();
        let mut header = Header::new_gnu();
        header.set_metadata(&metadata);
        if kind.is_dir() {
            self.append(&mut header, name, io::empty())?;
            if self
                .bounds
                .as_ref()
                .is_some_and(|bounds| !bounds.enter(name, &metadata))
            {
                return Ok(());
            }
            let mut entries: Vec<_> = fs::read_dir(path)
                .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect())
                .map_err(read)?;
            entries.sort();
            for entry in entries {
                match self.add(&path.join(&entry), &name.join(&entry)) {
                    // A tree that is in use loses files while it is read.
                    Err(FilesError::Read { reason, .. })
                        if reason.kind() == io::ErrorKind::NotFound => {}
                    result => result?,
                }
            }
            return Ok(());
        }
        if kind.is_symlink() {
            let target = fs::read_link(path).map_err(read)?;
            return self.append_link(&mut header, name, &target);
        }
        if kind.is_socket() {
            return Ok(());
        }
        if metadata.nlink() > 1 {
            let identity = (metadata.dev(), metadata.ino());
            if let Some(first) = self.links.get(&identity).cloned() {
                header.set_entry_type(EntryType::Link);
                header.set_size(0);
                return self.append_link(&mut header, name, &first);
            }
            self.links.insert(identity, name.to_owned());
        }
        if kind.is_file() && self.bounds.is_some() && name == Path::new(MACHINE_ID) {
            header.set_size(0);
            return self.append(&mut header, name, io::empty());
        }
        if kind.is_file() {
            let file = File::open(path).map_err(read)?;
            // Only banger itself takes a whole system: others may not know of holes.
            if self.bounds.is_some()
                && let Some(pieces) = sparse::pieces(&file, &metadata).map_err(read)?
            {
                return self.append_sparse(path, &mut header, name, &file, &pieces);
            }
            self.append_attributes(path, Vec::new())?;
            // A file that grows or shrinks meanwhile keeps the length of its header.
            let data = file.chain(io::repeat(0)).take(metadata.len());
            return self.append(&mut header, name, data);
        }
        let device = |number: fn(u64) -> u32| number(metadata.rdev());
        header
            .set_device_major(device(rustix::fs::major))
            .map_err(read)?;
        header
            .set_device_minor(device(rustix::fs::minor))
            .map_err(read)?;
        self.append(&mut header, name, io::empty())
    }

    /// Puts a file's extended attributes in front of its entry, in the way of GNU tar and of
    /// star. Those of the overlay and of access control are the file system's own. (A value with
    /// a newline is lost on the way in: the library takes that for the record's end.)
    fn append_attributes(
        &mut self,
        path: &Path,
        mut records: Vec<(String, Vec<u8>)>,
    ) -> Result<(), FilesError> {
        let attributes = attributes(path)
            .into_iter()
            .filter(|(name, _)| name.starts_with("user.") || name == "security.capability")
            .map(|(name, value)| (format!("SCHILY.xattr.{name}"), value));
        records.extend(attributes);
        if records.is_empty() {
            return Ok(());
        }
        let records = records
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_slice()));
        let appended = self.builder.append_pax_extensions(records);
        appended.map_err(|reason| append_failed(path, reason))
    }

    /// Packs a file without its holes.
    fn append_sparse(
        &mut self,
        path: &Path,
        header: &mut Header,
        name: &Path,
        file: &File,
        pieces: &[sparse::Piece],
    ) -> Result<(), FilesError> {
        let length = header
            .size()
            .map_err(|reason| append_failed(name, reason))?;
        self.append_attributes(path, sparse::records(length))?;
        let map = sparse::map(pieces);
        header.set_size(map.len() as u64 + sparse::stored(pieces));
        let content = sparse::Content::new(file, pieces.to_vec());
        self.append(header, name, Read::chain(&map[..], content))
    }

    fn append(
        &mut self,
        header: &mut Header,
        name: &Path,
        data: impl Read,
    ) -> Result<(), FilesError> {
        let appended = self.builder.append_data(header, name, data);
        appended.map_err(|reason| append_failed(name, reason))
    }

    fn append_link(
        &mut self,
        header: &mut Header,
        name: &Path,
        target: &Path,
    ) -> Result<(), FilesError> {
        let appended = self.builder.append_link(header, name, target);
        appended.map_err(|reason| append_failed(name, reason))
    }
}

/// The extended attributes of a file; none where the file system has no such thing.
fn attributes(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut names = vec![0; ATTRIBUTE_NAMES_MAX];
    let Ok(length) = llistxattr(path, &mut names[..]) else {
        return Vec::new();
    };
    let names = names[..length].split(|byte| *byte == 0);
    let names = names.filter_map(|name| Some(str::from_utf8(name).ok()?.to_owned()));
    names
        .filter(|name| !name.is_empty())
        .filter_map(|name| {
            let mut value = vec![0; ATTRIBUTE_MAX];
            // One that is gone since the list was made.
            let length = lgetxattr(path, &name, &mut value[..]).ok()?;
            value.truncate(length);
            Some((name, value))
        })
        .collect()
}

fn append_failed(name: &Path, reason: io::Error) -> FilesError {
    match reason.kind() {
        io::ErrorKind::BrokenPipe => FilesError::Gone,
        _ => FilesError::Read {
            path: name.to_owned(),
            reason,
        },
    }
}

/// Unpacks an archive below `target`. Blocks.
///
/// # Errors
/// The archive is broken, wants out, or cannot be written. What was unpacked before stays.
pub fn unpack(target: &Path, pieces: mpsc::Receiver<io::Result<Bytes>>) -> Result<(), FilesError> {
    fs::create_dir_all(target).map_err(|reason| FilesError::Target {
        path: target.to_owned(),
        reason,
    })?;
    let mut archive = Archive::new(PieceReader {
        pieces,
        piece: Bytes::new(),
    });
    archive.set_preserve_permissions(true);
    archive.set_preserve_mtime(true);
    archive.set_preserve_ownerships(geteuid().is_root());
    archive.set_unpack_xattrs(geteuid().is_root());
    archive.set_overwrite(true);
    let broken = |error: io::Error| FilesError::Archive(in_full(&error));
    let mut directories = Vec::new();
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if !stays_below(&entry.path().map_err(broken)?) {
            return Err(FilesError::Escape(name));
        }
        if entry.header().entry_type() == EntryType::Directory {
            // Their modes and times come last: they would keep files out, or be changed.
            directories.push(entry);
        } else {
            put(&mut entry, target, &name)?;
        }
    }
    directories.sort_by(|left, right| right.path_bytes().cmp(&left.path_bytes()));
    for mut directory in directories {
        let name = String::from_utf8_lossy(&directory.path_bytes()).into_owned();
        put(&mut directory, target, &name)?;
    }
    // Archives are padded; whoever sends one expects all of it to be taken.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(broken)?;
    Ok(())
}

fn put(entry: &mut tar::Entry<'_, impl Read>, target: &Path, name: &str) -> Result<(), FilesError> {
    let unpack = |error: io::Error| FilesError::Unpack {
        name: name.to_owned(),
        reason: in_full(&error),
        kind: error.kind(),
    };
    match entry.header().entry_type() {
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            return put_whole(entry, target, name, unpack);
        }
        EntryType::Link => {
            // The library replaces files and symbolic links that are in the way, but not for a
            // hard link.
            let path = entry.path().map_err(unpack)?;
            make_way(target, &path).map_err(unpack)?;
        }
        _ => {}
    }
    match entry.unpack_in(target) {
        Ok(true) => Ok(()),
        Ok(false) => Err(FilesError::Escape(name.to_owned())),
        Err(error) => Err(unpack(error)),
    }
}

/// Writes a file beside its place and gives it its name when all of it is there: a copy that is
/// interrupted leaves what was there before.
fn put_whole(
    entry: &mut tar::Entry<'_, impl Read>,
    target: &Path,
    name: &str,
    failed: impl Fn(io::Error) -> FilesError + Copy,
) -> Result<(), FilesError> {
    static DRAFTS: AtomicU64 = AtomicU64::new(0);
    let path = entry.path().map_err(failed)?.into_owned();
    let escape = || FilesError::Escape(name.to_owned());
    let file = path.file_name().ok_or_else(escape)?;
    let directory = make_parents(target, &path).map_err(failed)?;
    let directory = directory.ok_or_else(escape)?;
    let number = DRAFTS.fetch_add(1, Ordering::Relaxed);
    let draft = directory.join(format!(".banger-cp-{}-{number}", std::process::id()));
    let written = entry.unpack(&draft);
    let named = written.and_then(|_| fs::rename(&draft, directory.join(file)));
    named.map_err(|error| {
        // It may not have come to be.
        let _ = fs::remove_file(&draft);
        failed(error)
    })
}

/// The directory that `path` below `target` is in, with all links followed, made if it is
/// missing; `None` if a link leads out of `target`.
fn make_parents(target: &Path, path: &Path) -> io::Result<Option<PathBuf>> {
    let root = target.canonicalize()?;
    let mut directory = root.clone();
    let parents = path.parent().into_iter().flat_map(Path::components);
    for part in parents.filter(|part| matches!(part, Component::Normal(_))) {
        let next = directory.join(part);
        directory = match next.canonicalize() {
            Ok(real) if real.starts_with(&root) => real,
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir(&next)?;
                next
            }
            Err(error) => return Err(error),
        };
    }
    Ok(Some(directory))
}

/// Removes the file at `path` below `target`, if there is one and no link leads out.
fn make_way(target: &Path, path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(());
    };
    match target.join(parent).canonicalize() {
        Ok(parent) if parent.starts_with(target.canonicalize()?) => {
            match fs::remove_file(parent.join(name)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                result => result,
            }
        }
        // The library refuses the one, and makes the other.
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn stays_below(path: &Path) -> bool {
    path.components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// The tar library wraps what the system said.
fn in_full(error: &io::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.get_ref().and_then(|error| error.source());
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Sends what is written in pieces.
struct PieceWriter {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    buffer: BytesMut,
}

impl Write for PieceWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() + bytes.len() > PIECE {
            self.flush()?;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = self.buffer.split().freeze();
        self.pieces
            .blocking_send(Ok(piece))
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Reads what comes in pieces.
struct PieceReader {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let length = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::XattrFlags;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn packed(path: &Path) -> Vec<u8> {
        let (sender, mut receiver) = mpsc::channel(1000);
        pack(path, sender).unwrap();
        let mut bytes = Vec::new();
        while let Ok(piece) = receiver.try_recv() {
            bytes.extend_from_slice(&piece.unwrap());
        }
        bytes
    }

    fn unpacked(target: &Path, archive: &[u8]) -> Result<(), FilesError> {
        let (sender, receiver) = mpsc::channel(1000);
        for piece in archive.chunks(1000) {
            sender.try_send(Ok(Bytes::copy_from_slice(piece))).unwrap();
        }
        drop(sender);
        unpack(target, receiver)
    }

    #[test]
    fn a_tree_survives_the_way_out_and_in() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        let long = "n".repeat(150);
        fs::create_dir_all(tree.join("sub/read-only")).unwrap();
        fs::write(tree.join(&long), "long").unwrap();
        fs::write(tree.join("sub/run"), vec![7; 200_000]).unwrap();
        fs::set_permissions(tree.join("sub/run"), PermissionsExt::from_mode(0o4751)).unwrap();
        fs::hard_link(tree.join("sub/run"), tree.join("sub/second")).unwrap();
        symlink("/no/where", tree.join("link")).unwrap();
        fs::write(tree.join("sub/read-only/file"), "x").unwrap();
        let name = "user.note";
        let noted = rustix::fs::setxattr(tree.join("sub/run"), name, b"\0=", XattrFlags::empty());
        fs::set_permissions(tree.join("sub/read-only"), PermissionsExt::from_mode(0o555)).unwrap();

        let target = directory.path().join("new/target");
        unpacked(&target, &packed(&tree)).unwrap();
        let copy = target.join("tree");
        assert_eq!(fs::read_to_string(copy.join(&long)).unwrap(), "long");
        let run = fs::metadata(copy.join("sub/run")).unwrap();
        assert_eq!(
            (run.len(), run.mode() & 0o7777, run.nlink()),
            (200_000, 0o4751, 2)
        );
        assert_eq!(
            run.mtime(),
            fs::metadata(tree.join("sub/run")).unwrap().mtime()
        );
        assert_eq!(
            fs::read_link(copy.join("link")).unwrap(),
            Path::new("/no/where")
        );
        let read_only = fs::metadata(copy.join("sub/read-only")).unwrap();
        assert_eq!(read_only.mode() & 0o7777, 0o555);
        if noted.is_ok() && geteuid().is_root() {
            let note = attributes(&copy.join("sub/run"));
            assert_eq!(note, [(name.to_owned(), b"\0=".to_vec())]);
        }
        // Again over itself, as a second copy of a workspace does.
        unpacked(&target, &packed(&tree)).unwrap();
    }

    #[test]
    fn no_entry_gets_out_of_the_target() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        let outside = directory.path().join("outside");
        fs::create_dir(&outside).unwrap();
        let entry = |name: &str| {
            let mut header = Header::new_gnu();
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(1);
            header.set_mode(0o644);
            header.set_cksum();
            header
        };
        for name in [
            "../outside/evil",
            "/tmp/../outside/evil",
            "a/../../outside/evil",
        ] {
            let mut builder = Builder::new(Vec::new());
            builder.append(&entry(name), &b"x"[..]).unwrap();
            let error = unpacked(&target, &builder.into_inner().unwrap()).unwrap_err();
            assert!(matches!(error, FilesError::Escape(_)), "{name}: {error}");
        }
        // Through a link that the archive itself brings.
        let mut builder = Builder::new(Vec::new());
        let mut link = Header::new_gnu();
        link.set_entry_type(EntryType::Symlink);
        link.set_size(0);
        builder.append_link(&mut link, "way", &outside).unwrap();
        builder.append(&entry("way/evil"), &b"x"[..]).unwrap();
        assert!(unpacked(&target, &builder.into_inner().unwrap()).is_err());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn an_archive_that_is_cut_short_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("file"), vec![1; 5000]).unwrap();
        let archive = packed(&directory.path().join("file"));
        let error = unpacked(&directory.path().join("target"), &archive[..3000]).unwrap_err();
        assert!(!error.to_string().is_empty());
        // No file is there in part, and what was there before stays.
        let target = directory.path().join("target");
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
        fs::write(target.join("file"), "before").unwrap();
        unpacked(&target, &archive[..3000]).unwrap_err();
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "before");
        assert_eq!(fs::read_dir(&target).unwrap().count(), 1);
        unpacked(&target, &archive).unwrap();
        assert_eq!(fs::read(target.join("file")).unwrap(), vec![1; 5000]);
        assert_eq!(fs::read_dir(&target).unwrap().count(), 1);
    }
}

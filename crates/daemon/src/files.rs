//! Files and directories that are private from birth, written whole or not at all, and
//! removed without complaint when they are not there.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

use banger_proto::id::{RequestId, SHORT_LEN};
use banger_proto::size::ByteSize;

/// Stands between a file's name and the digits of its draft.
const DRAFT: &str = ".draft-";
/// How often a directory is removed again into which something came meanwhile: more often than
/// whoever may write then has files to write.
const REMOVE_ROUNDS: usize = 16;

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("could not {action} `{}`", .path.display())]
pub struct FileError {
    /// What was being done, as a verb phrase.
    pub action: &'static str,
    /// To what.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

impl FileError {
    pub(crate) fn new(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self {
            action,
            path,
            source,
        }
    }

    /// What the user can do, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self.source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Some("free some space, or move banger's state elsewhere".to_owned())
            }
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                let directory = self.path.parent().unwrap_or(&self.path);
                Some(format!(
                    "`{}` must be writable for you",
                    directory.display()
                ))
            }
            _ => None,
        }
    }
}

/// What may still be written to the file system of `path`; `None` where that cannot be told.
pub fn free_space(path: &Path) -> Option<ByteSize> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(ByteSize::from_bytes(
        stat.f_bavail.saturating_mul(stat.f_frsize),
    ))
}

/// Makes a directory, and those above it, that only this user may enter. One that is there
/// already must be this user's and no symlink.
///
/// # Errors
/// It cannot be made, or belongs to someone else.
pub fn make_private_directory(path: &Path) -> Result<(), FileError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(FileError::new("make the directory", path))?;
    let found = fs::symlink_metadata(path).map_err(FileError::new("look at", path))?;
    let own = rustix::process::geteuid().as_raw();
    if !found.is_dir() || found.uid() != own {
        let why = format!("it is not a directory of user {own}");
        let source = io::Error::new(io::ErrorKind::PermissionDenied, why);
        return Err(FileError::new("use the directory", path)(source));
    }
    if found.mode() & 0o077 != 0 {
        let private = fs::Permissions::from_mode(0o700);
        fs::set_permissions(path, private).map_err(FileError::new("make private", path))?;
    }
    Ok(())
}

/// Writes a file that only this user may read, by renaming a finished one into its place. It
/// is whole whenever this host runs; after a power cut it may be empty, so this is for what
/// can be made again.
///
/// # Errors
/// It cannot be written; what was there before is still there.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), FileError> {
    let draft = draft_of(path);
    write_new(&draft, content)
        .map(drop)
        .and_then(|()| fs::rename(&draft, path))
        .map_err(FileError::new("write", path))
        .inspect_err(|_| drop(fs::remove_file(&draft)))
}

/// Writes a private file that must outlive a power cut: it is on the disk, whole and under its
/// name, when this returns.
///
/// # Errors
/// It cannot be written; what was there before is still there.
pub fn write_durable(path: &Path, content: &[u8]) -> Result<(), FileError> {
    let draft = draft_of(path);
    write_new(&draft, content)
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(&draft, path))
        .map_err(FileError::new("write", path))
        .inspect_err(|_| drop(fs::remove_file(&draft)))?;
    let directory = path.parent().unwrap_or(path);
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(FileError::new("write", path))
}

/// Removes what dead writers have left beside the files of `directory`. Nobody may write there
/// meanwhile.
///
/// # Errors
/// The directory cannot be read, or a draft stays.
pub fn remove_drafts(directory: &Path) -> Result<(), FileError> {
    let failed = |error| FileError::new("read the directory", directory)(error);
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if is_draft(&entry.file_name().to_string_lossy()) {
            remove_file(&entry.path())?;
        }
    }
    Ok(())
}

/// Whether a file of this name is one that was being written and has not got its name yet.
pub fn is_draft(name: &str) -> bool {
    name.rsplit_once(DRAFT).is_some_and(|(name, id)| {
        !name.is_empty() && id.len() == SHORT_LEN && id.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

/// Writes a private file unless there is one; says whether it did. Of several writers at
/// once exactly one succeeds, and nobody ever reads half a file, also after a power cut.
///
/// # Errors
/// It cannot be written.
pub fn write_private_once(path: &Path, content: &[u8]) -> Result<bool, FileError> {
    let draft = draft_of(path);
    let written = write_new(&draft, content)
        .and_then(|file| file.sync_data())
        .and_then(|()| match fs::hard_link(&draft, path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        });
    // Written or not, the draft is of no more use.
    let _ = fs::remove_file(&draft);
    written.map_err(FileError::new("write", path))
}

/// The length of a regular file; `None` if it cannot be told. Blocks.
pub fn length(path: &Path) -> Option<ByteSize> {
    let file = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    Some(ByteSize::from_bytes(file.len()))
}

/// Makes a file of `size` bytes of a smaller one, with a hole at its end. A larger one stays.
///
/// # Errors
/// It is not there, or cannot be made larger.
pub fn grow(path: &Path, size: ByteSize) -> Result<(), FileError> {
    let grown = || {
        let file = OpenOptions::new().write(true).open(path)?;
        match file.metadata()?.len() < size.bytes() {
            true => file.set_len(size.bytes()),
            false => Ok(()),
        }
    };
    grown().map_err(FileError::new("make larger", path))
}

/// Removes a file.
///
/// # Errors
/// It is still there.
pub fn remove_file(path: &Path) -> Result<(), FileError> {
    tolerate_absence(fs::remove_file(path)).map_err(FileError::new("remove", path))
}

/// Removes a directory with everything in it, also what comes into it meanwhile: a link to a
/// guest that is made anew writes keys while its VM may be deleted. Does not follow symlinks.
///
/// # Errors
/// Something of it is still there.
pub fn remove_directory(path: &Path) -> Result<(), FileError> {
    let mut removed = fs::remove_dir_all(path);
    for _ in 1..REMOVE_ROUNDS {
        match &removed {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                removed = fs::remove_dir_all(path);
            }
            _ => break,
        }
    }
    tolerate_absence(removed).map_err(FileError::new("remove", path))
}

fn tolerate_absence(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn draft_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!("{DRAFT}{}", RequestId::new().short()));
    PathBuf::from(name)
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<File> {
    let mut file: File = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(content)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_private_file_is_whole_private_and_leaves_no_draft() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_private(&path, b"one").unwrap();
        write_private(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(!write_private_once(&path, b"three").unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(names(dir.path()), ["a"]);
    }

    #[test]
    fn a_durable_file_replaces_the_one_before_and_dead_drafts_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.json");
        write_durable(&path, b"one").unwrap();
        write_durable(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        let draft = draft_of(&path);
        assert!(is_draft(&draft.file_name().unwrap().to_string_lossy()));
        fs::write(&draft, b"thr").unwrap();
        remove_drafts(dir.path()).unwrap();
        assert_eq!(names(dir.path()), ["vm.json"]);
        for other in [
            "vm.json",
            ".draft-0123456789ab",
            "notes.draft-one",
            "a.0123456789ab",
        ] {
            assert!(!is_draft(other), "{other}");
        }
    }

    #[test]
    fn a_directory_that_is_a_symlink_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let planted = dir.path().join("planted");
        std::os::unix::fs::symlink("/tmp", &planted).unwrap();
        make_private_directory(&planted).unwrap_err();
        let loose = dir.path().join("loose");
        fs::create_dir(&loose).unwrap();
        make_private_directory(&loose).unwrap();
        assert_eq!(
            fs::metadata(&loose).unwrap().permissions().mode() & 0o777,
            0o700
        );
    }

    #[test]
    fn a_file_grows_and_never_shrinks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        grow(&path, ByteSize::from_mib(1)).unwrap_err();
        fs::write(&path, "data").unwrap();
        for (mib, length) in [(2, 2 << 20), (1, 2 << 20)] {
            grow(&path, ByteSize::from_mib(mib)).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().len(), length);
        }
        assert!(fs::read(&path).unwrap().starts_with(b"data"));
    }

    #[test]
    fn removing_what_is_not_there_succeeds() {
        let dir = tempfile::tempdir().unwrap();
        remove_file(&dir.path().join("a")).unwrap();
        remove_directory(&dir.path().join("b")).unwrap();
    }

    #[test]
    fn what_is_written_into_a_directory_while_it_is_removed_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm");
        let both = std::sync::Barrier::new(2);
        for _ in 0..500 {
            fs::create_dir(&path).unwrap();
            fs::write(path.join("disk"), "").unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    both.wait();
                    for file in ["key", "known_hosts"] {
                        // The directory may be gone.
                        let _ = write_private(&path.join(file), b"x");
                    }
                });
                both.wait();
                remove_directory(&path).unwrap();
            });
            assert!(!path.exists());
        }
    }
}

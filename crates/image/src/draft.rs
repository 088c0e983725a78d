//! A directory in which an artifact is made, and which becomes the artifact by one rename.
//!
//! The maker holds a lock on its draft. Whoever finds a draft that nobody has locked knows
//! that its maker is dead, and removes it.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::tool::{self, MMDEBSTRAP};

const PREFIX: &str = ".banger-draft-";
/// How often a draft is made anew when a sweep takes it before it is locked.
const ATTEMPTS_MAX: usize = 5;
/// A directory in which everybody may make drafts.
pub(crate) const SHARED: &str = "/var/tmp";

/// A locked directory, removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Draft {
    path: PathBuf,
    lock: File,
}

impl Draft {
    /// Makes a draft in `parent`.
    pub(crate) fn new(parent: &Path) -> io::Result<Self> {
        for _ in 0..ATTEMPTS_MAX {
            let directory = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
            let lock = File::open(directory.path())?;
            // A sweep may come between making and locking: then this one is lost.
            let locked = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive);
            if locked.is_ok() && directory.path().exists() {
                return Ok(Self {
                    path: directory.keep(),
                    lock,
                });
            }
        }
        Err(io::Error::other("each new draft was swept away at once"))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the draft `to`. If someone else was faster, theirs stays and this one goes. Its files
    /// can be read by everybody then, whatever the umask: root's engines run as other users.
    pub(crate) fn publish(self, to: &Path) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_file() {
                let mode = metadata.permissions().mode() | 0o444;
                std::fs::set_permissions(entry.path(), Permissions::from_mode(mode))?;
            }
        }
        self.lock.sync_all()?;
        match std::fs::rename(&self.path, to) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => return Ok(()),
            Err(error) => return Err(error),
        }
        File::open(to.parent().unwrap_or(to))?.sync_all()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // It is gone if it was published.
        if self.path.exists() {
            remove(&self.path);
        }
    }
}

/// A name beside `directory` for what is on its way out: a sweep takes it if nobody else does.
pub(crate) fn beside(directory: &Path) -> PathBuf {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    directory.with_file_name(format!("{PREFIX}gone-{name}"))
}

/// Removes the drafts in `parent` whose makers are dead, and tells which could not be.
pub(crate) fn sweep(parent: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(parent)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) && is_abandoned(&entry.path()) {
            tracing::info!(path = %entry.path().display(), "removing a draft that was left behind");
            remove(&entry.path());
        }
    }
    Ok(())
}

/// Removes the directory `path` with all that is in it, also what mmdebstrap left there. A
/// failure is logged. Nothing is removed from file systems that are mounted below it.
pub(crate) fn remove(path: &Path) {
    if has_mounts(path) {
        tracing::warn!(path = %path.display(), "not removed: something is mounted below it");
        return;
    }
    let Err(first) = std::fs::remove_dir_all(path) else {
        return;
    };
    // What mmdebstrap made in a user namespace belongs to others than this user, who can
    // only remove it in such a namespace too.
    let removed = match first.kind() {
        io::ErrorKind::PermissionDenied => {
            remove_as_their_root(path).and_then(|()| std::fs::remove_dir_all(path))
        }
        _ => Err(first),
    };
    if let Err(error) = removed {
        tracing::warn!(path = %path.display(), %error, "could not remove a draft");
    }
}

fn remove_as_their_root(path: &Path) -> io::Result<()> {
    let remove = || {
        let mut command = MMDEBSTRAP.command()?;
        command.args(["--unshare-helper", "find"]).arg(path).args([
            "-mindepth",
            "1",
            "-mount",
            "-delete",
        ]);
        tool::run(&mut command)
    };
    remove().map(drop).map_err(io::Error::other)
}

/// Whether something is mounted at or below `path`: what is removed there might be another
/// file system's. The fifth field of a line is the mount point, with `\040` for a space
/// (`proc_pid_mountinfo(5)`).
fn has_mounts(path: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let Ok(path) = path.canonicalize() else {
        return false;
    };
    mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .any(|point| Path::new(&point.replace("\\040", " ")).starts_with(&path))
}

/// Whether `path` is a directory of this user's that nobody has locked. In a shared directory
/// others may have put anything under such a name, a fifo that blocks whoever opens it included.
fn is_abandoned(path: &Path) -> bool {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(directory) = rustix::fs::open(path, flags, Mode::empty()) else {
        return false;
    };
    let own = rustix::process::geteuid().as_raw();
    rustix::fs::fstat(&directory).is_ok_and(|status| status.st_uid == own)
        && rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_drafts_of_dead_makers_are_swept() {
        let parent = tempfile::tempdir().unwrap();
        let alive = Draft::new(parent.path()).unwrap();
        std::fs::write(alive.path().join("file"), "x").unwrap();
        let dead = parent.path().join(".banger-draft-dead");
        std::fs::create_dir_all(dead.join("below")).unwrap();
        let fifo = parent.path().join(".banger-draft-fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o666),
            0,
        )
        .unwrap();
        let artifact = parent.path().join("artifact");
        std::fs::create_dir(&artifact).unwrap();

        sweep(parent.path()).unwrap();
        assert!(alive.path().join("file").exists());
        assert!(!dead.exists());
        assert!(fifo.exists());
        assert!(artifact.exists());
    }

    #[test]
    fn what_is_published_can_be_read_by_everybody() {
        let parent = tempfile::tempdir().unwrap();
        let draft = Draft::new(parent.path()).unwrap();
        // As a umask of 077 leaves them.
        for (name, mode) in [("rootfs.ext4", 0o600), ("firecracker", 0o755)] {
            let path = draft.path().join(name);
            std::fs::write(&path, "x").unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        }
        let to = parent.path().join("artifact");
        draft.publish(&to).unwrap();
        let mode = |name: &str| to.join(name).metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode("rootfs.ext4"), 0o644);
        assert_eq!(mode("firecracker"), 0o755);
    }

    #[test]
    fn a_draft_is_published_whole_or_removed() {
        let parent = tempfile::tempdir().unwrap();
        let to = parent.path().join("artifact");
        let draft = Draft::new(parent.path()).unwrap();
        std::fs::write(draft.path().join("file"), "first").unwrap();
        draft.publish(&to).unwrap();

        let second = Draft::new(parent.path()).unwrap();
        std::fs::write(second.path().join("file"), "second").unwrap();
        second.publish(&to).unwrap();

        drop(Draft::new(parent.path()).unwrap());
        assert_eq!(std::fs::read_to_string(to.join("file")).unwrap(), "first");
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 1);
    }
}

//! How the shared image and programs come into a home, and what a home holds.

use std::fmt;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::fs::{chown, lchown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::inotify;

use crate::invocation::becomes_readable;
use crate::user::User;

/// Makes `to` hold what `from` holds, sharing the files: they are only ever replaced, never
/// written to. Copies where the file system does not let it share.
pub fn share_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("the home can be written to");
    for entry in fs::read_dir(from).unwrap_or_else(|error| panic!("{}: {error}", from.display())) {
        let entry = entry.expect("the directory can be read");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("it has a type").is_dir() {
            share_tree(&entry.path(), &target);
        } else if fs::hard_link(entry.path(), &target).is_err() {
            copy_sparse(&entry.path(), &target);
        }
    }
}

/// Copies a directory with everything in it, holes included.
pub fn copy_tree(from: &Path, to: &Path) {
    copy_sparse(from, to);
}

fn copy_sparse(from: &Path, to: &Path) {
    let status = Command::new("cp")
        .args(["--archive", "--sparse=always", "--reflink=auto"])
        .args([from, to])
        .status()
        .expect("cp can be started");
    assert!(status.success(), "cp {} failed: {status}", from.display());
}

/// Gives everything in `directory` to `user`.
pub fn give_tree(directory: &Path, user: &User) {
    chown(directory, Some(user.uid), Some(user.gid)).expect("root gives files away");
    for path in list(directory) {
        lchown(&path, Some(user.uid), Some(user.gid)).expect("root gives files away");
    }
}

/// Waits until there is nothing in `directory`, or no such directory.
#[track_caller]
pub fn wait_until_empty(directory: &Path, limit: Duration) {
    wait_in(directory, limit, "still there", || {
        let left = list(directory);
        (!left.is_empty()).then_some(left)
    });
}

/// Waits until the file holds these words.
#[track_caller]
pub fn wait_for_words(file: &Path, words: &str, limit: Duration) {
    let directory = file.parent().expect("a file is in a directory");
    wait_in(directory, limit, "not there yet", || {
        let text = fs::read(file).unwrap_or_default();
        (!String::from_utf8_lossy(&text).contains(words)).then_some(words)
    });
}

/// Waits until nothing is `missing`, and looks whenever something in `directory` changes.
#[track_caller]
pub fn wait_in<T: fmt::Debug>(
    directory: &Path,
    limit: Duration,
    what: &str,
    mut missing: impl FnMut() -> Option<T>,
) {
    let deadline = Instant::now() + limit;
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC).expect("inotify is to be had");
    let events = inotify::WatchFlags::CREATE
        | inotify::WatchFlags::MODIFY
        | inotify::WatchFlags::MOVE
        | inotify::WatchFlags::DELETE
        | inotify::WatchFlags::DELETE_SELF;
    // The watch comes first, so that no change falls between the look and the wait.
    let watched = inotify::add_watch(&watch, directory, events).is_ok();
    while let Some(missing) = missing() {
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(
            watched && becomes_readable(&watch, left),
            "{what} after {limit:?}: {missing:#?}"
        );
        let mut buffer = [MaybeUninit::uninit(); 4096];
        inotify::Reader::new(&watch, &mut buffer)
            .next()
            .expect("it is readable");
    }
}

/// Every file and directory below `directory`; none if it is not there.
pub fn list(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => panic!("{}: {error}", directory.display()),
        };
        for entry in entries {
            let entry = entry.expect("the directory can be read");
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

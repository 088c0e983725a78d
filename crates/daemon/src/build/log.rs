//! What builds print, in files that outlive them: the newest few, each with a bound.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use banger_proto::id::OperationId;

/// Most bytes of one log.
const SIZE_MAX: u64 = 16 << 20;
/// How many logs are kept, this one included.
const KEPT: usize = 20;
/// Their directory, among the logs.
const DIRECTORY: &str = "builds";

/// The log of one build.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    file: Mutex<(File, u64)>,
}

impl Log {
    /// Begins the log of `operation` below `logs`, and removes the oldest others.
    pub(super) async fn create(logs: PathBuf, operation: &OperationId) -> io::Result<Self> {
        let directory = logs.join(DIRECTORY);
        let path = directory.join(format!("{operation}.log"));
        crate::blocking(move || {
            fs::create_dir_all(&directory)?;
            make_room(&directory)?;
            let mut options = File::options();
            let file = options
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&path)?;
            Ok(Self {
                path,
                file: Mutex::new((file, 0)),
            })
        })
        .await
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds to it. What does not fit, or cannot be written, is left out: a build does not fail for
    /// its log.
    pub(super) fn write(&self, bytes: &[u8]) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if file.1 + bytes.len() as u64 <= SIZE_MAX && file.0.write_all(bytes).is_ok() {
            file.1 += bytes.len() as u64;
        }
    }

    /// Whether anything was printed.
    pub(super) fn holds_something(&self) -> bool {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).1 > 0
    }
}

/// Removes the oldest logs, so that there is a place for one.
fn make_room(directory: &Path) -> io::Result<()> {
    let mut logs: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        logs.push((entry.metadata()?.modified()?, entry.path()));
    }
    logs.sort();
    let superfluous = (logs.len() + 1).saturating_sub(KEPT);
    for (_, path) in logs.into_iter().take(superfluous) {
        fs::remove_file(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_newest_logs_are_kept_and_each_has_a_bound() {
        let logs = tempfile::tempdir().unwrap();
        let mut last = None;
        for _ in 0..KEPT + 5 {
            let log = Log::create(logs.path().to_owned(), &OperationId::new())
                .await
                .unwrap();
            assert!(!log.holds_something());
            log.write(b"hello\n");
            last = Some(log);
        }
        let directory = logs.path().join(DIRECTORY);
        assert_eq!(fs::read_dir(directory).unwrap().count(), KEPT);
        let log = last.unwrap();
        assert!(log.holds_something());
        log.write(&vec![b'x'; SIZE_MAX as usize]);
        assert_eq!(fs::read(log.path()).unwrap(), b"hello\n");
    }
}

//! The holder's log: one JSON object a line, in a file of bounded size.

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::HolderError;
use crate::protocol::Failure;

/// Name of the file in the directory of logs.
pub(crate) const FILE: &str = "net.log";
/// A file of this size, in bytes, is put aside. One such file is kept.
const SIZE_MAX: u64 = 512 * 1024;

/// A log; clones write to the same file.
#[derive(Clone, Debug)]
pub(super) struct Log {
    file: Arc<Mutex<LogFile>>,
}

#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    file: File,
    size: u64,
}

impl Log {
    /// Opens the log in `directory`.
    pub(super) fn open(directory: &Path) -> Result<Self, HolderError> {
        let path = directory.join(FILE);
        match LogFile::open(path.clone()) {
            Ok(file) => Ok(Self {
                file: Arc::new(Mutex::new(file)),
            }),
            Err(source) => Err(HolderError::Log { path, source }),
        }
    }

    /// Something rare and meaningful.
    pub(super) fn info(&self, message: &str) {
        self.write("info", message, None);
    }

    /// Something odd that is being dealt with.
    pub(super) fn warn(&self, message: &str, cause: Option<&Failure>) {
        self.write("warn", message, cause);
    }

    /// The end.
    pub(super) fn error(&self, error: &(dyn Error + 'static)) {
        let failure = Failure::from(error);
        self.write("error", "the holder fails", Some(&failure));
    }

    fn write(&self, level: &str, message: &str, cause: Option<&Failure>) {
        let mut line = serde_json::json!({
            "timestamp": jiff::Timestamp::now(),
            "level": level,
            "message": message,
        });
        if let Some(cause) = cause {
            line["causes"] = cause.chain().collect();
        }
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // A full disk is no reason to take the network from running VMs.
        let _ = file.write_line(&line.to_string());
    }
}

impl LogFile {
    fn open(path: PathBuf) -> io::Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)?;
        let size = file.metadata()?.len();
        Ok(Self { path, file, size })
    }

    fn write_line(&mut self, line: &str) -> io::Result<()> {
        if self.size >= SIZE_MAX {
            fs::rename(&self.path, self.path.with_extension("log.1"))?;
            *self = Self::open(self.path.clone())?;
        }
        self.size += u64::try_from(line.len() + 1).expect("a line is short");
        self.file.write_all(format!("{line}\n").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_stays_bounded_and_keeps_the_newest_lines() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::open(directory.path()).unwrap();
        let filler = "x".repeat(4096);
        for number in 0..400 {
            log.info(&format!("{number} {filler}"));
        }
        let files: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(Result::unwrap)
            .collect();
        let size: u64 = files
            .iter()
            .map(|file| file.metadata().unwrap().len())
            .sum();
        assert_eq!(files.len(), 2);
        assert!(size < 2 * (SIZE_MAX + 8192), "{size}");
        let newest = fs::read_to_string(directory.path().join(FILE)).unwrap();
        assert!(newest.lines().last().unwrap().contains("\"399 x"));
    }
}

//! Where the agent's log goes: standard error, or a bounded file in the guest.

use std::fs::{File, OpenOptions, rename};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tracing::Level;

/// Size at which the log file is put aside; one old file is kept.
const LIMIT: u64 = 1024 * 1024;

/// Logs to standard error.
pub fn to_stderr() {
    tracing_subscriber::fmt()
        .with_max_level(Level::INFO)
        .with_writer(io::stderr)
        .with_ansi(false)
        // It would say so on standard error, and panic where that fails too.
        .log_internal_errors(false)
        .init();
}

/// Logs to a file of about a MiB, whose predecessor is kept as `<name>.1`.
///
/// # Errors
/// The file cannot be opened.
pub fn to_file(path: &Path) -> io::Result<()> {
    let file = Bounded::open(path)?;
    tracing_subscriber::fmt()
        .with_max_level(Level::INFO)
        .with_writer(Mutex::new(file))
        .with_ansi(false)
        // It would say so on standard error, and panic where that fails too.
        .log_internal_errors(false)
        .init();
    Ok(())
}

struct Bounded {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Bounded {
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self {
            path: path.to_owned(),
            length: file.metadata()?.len(),
            file,
        })
    }

    fn rotate(&mut self) -> io::Result<()> {
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        rename(&self.path, old)?;
        *self = Self::open(&self.path)?;
        Ok(())
    }
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.length > LIMIT {
            self.rotate()?;
        }
        let count = self.file.write(bytes)?;
        self.length += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_file_is_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.log");
        let mut log = Bounded::open(&path).unwrap();
        let line = vec![b'x'; 100_000];
        for _ in 0..40 {
            log.write_all(&line).unwrap();
        }
        let sizes: Vec<u64> = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .collect();
        assert_eq!(sizes.len(), 2);
        assert!(
            sizes.iter().all(|&size| size <= LIMIT + 100_000),
            "{sizes:?}"
        );
    }
}

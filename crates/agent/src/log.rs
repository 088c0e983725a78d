//! Where the agent's log goes: standard error, or a bounded file in the guest. Its newest part
//! is also kept in memory, from where the host reads it, whatever the guest's files are like.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions, rename};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::Level;

/// Size at which the log file is put aside; one old file is kept.
const LIMIT: u64 = 1024 * 1024;

/// How many bytes are kept in memory.
const RECENT_LIMIT: usize = 256 * 1024;

/// The newest lines.
static RECENT: Mutex<VecDeque<u8>> = Mutex::new(VecDeque::new());

/// The newest part of the log, in whole lines.
pub fn recent() -> Vec<u8> {
    lock_recent().iter().copied().collect()
}

/// Logs to standard error.
pub fn to_stderr() {
    tracing_subscriber::fmt()
        .with_max_level(Level::INFO)
        .with_writer(|| Remembering(io::stderr()))
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
        .with_writer(Mutex::new(Remembering(file)))
        .with_ansi(false)
        // It would say so on standard error, and panic where that fails too.
        .log_internal_errors(false)
        .init();
    Ok(())
}

/// Keeps what it writes in memory as well. Each write is a line.
struct Remembering<W>(W);

impl<W: Write> Write for Remembering<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        remember(&mut lock_recent(), line);
        self.0.write_all(line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn remember(recent: &mut VecDeque<u8>, line: &[u8]) {
    recent.extend(line);
    while recent.len() > RECENT_LIMIT {
        let end = recent.iter().position(|byte| *byte == b'\n');
        recent.drain(..=end.unwrap_or(recent.len() - 1));
    }
}

fn lock_recent() -> MutexGuard<'static, VecDeque<u8>> {
    RECENT.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn what_is_kept_is_bounded_and_begins_with_a_whole_line() {
        let mut recent = VecDeque::new();
        for number in 0..20_000 {
            remember(
                &mut recent,
                format!("line {number}: something happened\n").as_bytes(),
            );
        }
        assert!(recent.len() <= RECENT_LIMIT);
        let text = String::from_utf8(recent.into()).unwrap();
        assert!(text.starts_with("line 1") && text.ends_with("line 19999: something happened\n"));
        remember(&mut VecDeque::new(), &vec![b'x'; RECENT_LIMIT + 1]);
    }

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

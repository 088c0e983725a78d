//! The daemon's log: one JSON object a line, in a file that is set aside when it is full.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;

use crate::files::{self, FileError};

/// Bytes after which the file is set aside; one earlier file is kept.
const SIZE_MAX: u64 = 8 << 20;

/// Writes everything of at least this level to `path` from now on.
///
/// # Errors
/// The file cannot be opened.
pub fn init(path: &Path, level: &str) -> Result<(), FileError> {
    if let Some(directory) = path.parent() {
        files::make_private_directory(directory)?;
    }
    let file = Rotating::open(path, SIZE_MAX).map_err(FileError::new("open the log", path))?;
    // The level is for banger's own crates; libraries speak up when something is odd.
    let filter = EnvFilter::new(format!(
        "warn,banger_daemon={level},banger_engine={level},banger_image={level},banger_net={level}"
    ));
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_env_filter(filter)
        .with_writer(Mutex::new(file))
        .try_init()
        .expect("the log is set up once");
    Ok(())
}

/// A file that begins anew when it is full.
#[derive(Debug)]
struct Rotating {
    path: PathBuf,
    file: File,
    length: u64,
    limit: u64,
}

impl Rotating {
    fn open(path: &Path, limit: u64) -> io::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)?;
        Ok(Self {
            length: file.metadata()?.len(),
            path: path.to_owned(),
            file,
            limit,
        })
    }

    fn rotate(&mut self) -> io::Result<()> {
        let mut aside = self.path.as_os_str().to_owned();
        aside.push(".1");
        fs::rename(&self.path, aside)?;
        *self = Self::open(&self.path, self.limit)?;
        Ok(())
    }
}

impl Write for Rotating {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.length >= self.limit {
            // A log that cannot be set aside grows on: better than none.
            let _ = self.rotate();
        }
        let written = self.file.write(line)?;
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_is_set_aside_and_lines_stay_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Rotating::open(&path, 10).unwrap();
        for line in ["first\n", "second\n", "third\n"] {
            log.write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(
            fs::read_to_string(dir.path().join("log.1")).unwrap(),
            "first\nsecond\n"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "third\n");
        assert_eq!(Rotating::open(&path, 10).unwrap().length, 6);
    }
}

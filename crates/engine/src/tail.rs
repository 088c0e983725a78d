//! The last lines of a log, fit to be shown: what explains a machine's end.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// Most bytes that are looked at.
const WINDOW: u64 = 16 * 1024;

/// The last `count` lines of a log that are not blank, without control characters. Empty
/// when the log cannot be read: whoever shows it has a worse thing to tell.
pub fn tail(path: &Path, count: usize) -> Vec<String> {
    last_bytes(path)
        .map(|bytes| banger_process::last_lines(&bytes, count))
        .unwrap_or_default()
}

fn last_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(WINDOW)))?;
    let mut bytes = Vec::new();
    file.take(WINDOW).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_not_there_has_no_lines() {
        assert!(tail(Path::new("/nonexistent/log"), 3).is_empty());
    }

    #[test]
    fn of_a_long_log_the_end_is_shown() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        std::fs::write(&log, "rubbish\n".repeat(10_000) + "first\nlast\n").unwrap();
        assert_eq!(tail(&log, 2), ["first", "last"]);
    }
}

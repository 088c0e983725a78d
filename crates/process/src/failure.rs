//! What is told of a process that failed: always the same three things.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

/// Longest line that is shown, in characters.
const WIDTH: usize = 400;
/// Lines of standard error that are shown.
const LINES: usize = 10;

/// A process failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessFailure {
    /// The program's name.
    pub command: String,
    /// How it ended, such as `exit status 1`.
    pub status: String,
    /// The last lines that it printed to standard error.
    pub stderr: Vec<String>,
}

impl ProcessFailure {
    /// That `program` ended so, after it had said this.
    pub fn new(program: impl AsRef<OsStr>, ended: ExitStatus, stderr: &[u8]) -> Self {
        let program = Path::new(program.as_ref());
        let name = program.file_name().unwrap_or(program.as_os_str());
        Self {
            command: name.to_string_lossy().into_owned(),
            status: status(ended),
            stderr: last_lines(stderr, LINES),
        }
    }
}

impl fmt::Display for ProcessFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` ended with {}", self.command, self.status)?;
        match self.stderr.is_empty() {
            true => f.write_str(" and printed nothing"),
            false => write!(f, ": {}", self.stderr.join("; ")),
        }
    }
}

impl std::error::Error for ProcessFailure {}

/// How a process ended, in words: `exit status 1`, `signal 9`.
pub fn status(ended: ExitStatus) -> String {
    match (ended.code(), ended.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => ended.to_string(),
    }
}

/// The last `count` lines that are not blank, fit to be shown: without control characters.
pub fn last_lines(bytes: &[u8], count: usize) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let mut lines: Vec<String> = text
        .lines()
        .rev()
        .map(printable)
        .filter(|line| !line.trim().is_empty())
        .take(count)
        .collect();
    lines.reverse();
    lines
}

/// The line without terminal control: sequences that begin with ESC `[`, and single bytes.
fn printable(line: &str) -> String {
    let mut shown = String::new();
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' => {
                if characters.as_str().starts_with('[') {
                    characters.next();
                    // ECMA-48, section 5.4: a final byte of 0x40 to 0x7e ends the sequence.
                    characters.find(|character| ('\u{40}'..='\u{7e}').contains(character));
                }
            }
            '\t' => shown.push(' '),
            character if character.is_control() => {}
            character => shown.push(character),
        }
    }
    shown
        .chars()
        .take(WIDTH)
        .collect::<String>()
        .trim_end()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_last_lines_come_without_terminal_control() {
        let log = b"first\nsecond\r\n\x1b[1;31mred\x1b[0m\n\n  \nlast\x07";
        assert_eq!(last_lines(log, 3), ["second", "red", "last"]);
    }

    proptest! {
        #[test]
        fn any_bytes_become_printable_lines(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for line in last_lines(&bytes, 5) {
                prop_assert!(!line.contains(|c: char| c.is_control()));
            }
        }
    }
}

//! The last lines of a log, fit to be shown: what explains a machine's end.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// Most bytes that are looked at.
const WINDOW: u64 = 16 * 1024;
/// Longest line that is shown, in characters.
const WIDTH: usize = 400;

/// The last `count` lines of a log that are not blank, without control characters. Empty
/// when the log cannot be read: whoever shows it has a worse thing to tell.
pub fn tail(path: &Path, count: usize) -> Vec<String> {
    last_bytes(path)
        .map(|bytes| lines(&bytes, count))
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

fn lines(bytes: &[u8], count: usize) -> Vec<String> {
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
        assert_eq!(lines(log, 3), ["second", "red", "last"]);
    }

    #[test]
    fn a_log_that_is_not_there_has_no_lines() {
        assert!(tail(Path::new("/nonexistent/log"), 3).is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_become_printable_lines(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for line in lines(&bytes, 5) {
                prop_assert!(!line.contains(|c: char| c.is_control()));
            }
        }
    }
}

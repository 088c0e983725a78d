//! Tips for mistakes that a parser of arguments cannot know.

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::args::Cli;

/// Commands that run something in a guest, which stands behind `--`.
const RUNNERS: [&str; 3] = ["run", "exec", "ssh"];

/// Adds to clap's error what the user probably meant.
pub(crate) fn with_tip(mut error: clap::Error, words: &[String]) -> clap::Error {
    let unexpected = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(unexpected)) if error.kind() == ErrorKind::UnknownArgument => {
            unexpected.clone()
        }
        _ => return error,
    };
    if let Some(meant) = with_dashes(words, &unexpected) {
        let tip = format!("a command for the guest stands behind `--`: `{meant}`");
        let tip = ContextValue::StyledStrs(vec![tip.into()]);
        error.insert(ContextKind::Suggested, tip);
    }
    error
}

/// The line with `--` before the guest's command, if that makes it one that is understood.
fn with_dashes(words: &[String], unexpected: &str) -> Option<String> {
    let [_, group, command, ..] = words else {
        return None;
    };
    if unexpected.starts_with('-')
        || group != "vm"
        || !RUNNERS.contains(&command.as_str())
        || words.iter().any(|w| w == "--")
    {
        return None;
    }
    let places = (3..words.len()).filter(|place| words[*place] == unexpected);
    let lines = places.map(|place| {
        let mut line = words.to_vec();
        line.insert(place, "--".to_owned());
        line
    });
    let mut understood = lines.filter(|line| Cli::try_parse_from(line).is_ok());
    let line = understood.next()?;
    let typed: Vec<String> = line[1..].iter().map(|word| quoted(word)).collect();
    Some(format!("banger {}", typed.join(" ")))
}

/// One word of a shell's line.
fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./:=,+@%".contains(letter);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tip(line: &[&str]) -> Option<String> {
        let words: Vec<String> = line.iter().map(|word| (*word).to_owned()).collect();
        let error = with_tip(Cli::try_parse_from(&words).unwrap_err(), &words).to_string();
        let tip = error.split_once("tip: ")?.1.lines().next()?;
        Some(tip.to_owned())
    }

    #[test]
    fn forgotten_dashes_are_missed() {
        for (line, meant) in [
            (
                &["banger", "vm", "run", "make", "test"][..],
                "banger vm run -- make test",
            ),
            (
                &["banger", "vm", "run", "--rm", "ls", "-l", "a b"],
                "banger vm run --rm -- ls -l 'a b'",
            ),
            (
                &["banger", "vm", "exec", "box", "make"],
                "banger vm exec box -- make",
            ),
            (
                &["banger", "vm", "exec", "make", "make"],
                "banger vm exec make -- make",
            ),
            (
                &["banger", "vm", "ssh", "box", "uptime"],
                "banger vm ssh box -- uptime",
            ),
        ] {
            let meant = format!("a command for the guest stands behind `--`: `{meant}`");
            assert_eq!(tip(line), Some(meant), "{line:?}");
        }
    }

    #[test]
    fn other_mistakes_get_no_such_tip() {
        for line in [
            &["banger", "vm", "stop"][..],
            &["banger", "vm", "run", "--no-such-flag"],
            &["banger", "vm", "show", "a", "b"],
        ] {
            let tip = tip(line).unwrap_or_default();
            assert!(!tip.contains("stands behind"), "{line:?}: {tip}");
        }
    }
}

//! Debian control files (deb822): paragraphs of `Field: value`, with continuation lines.

use std::cmp::Ordering;
use std::io::{self, BufRead};

/// One paragraph. Field names compare without case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Paragraph(Vec<(String, String)>);

impl Paragraph {
    /// The value of a field; continuation lines are joined by `\n`, without their indent.
    pub(crate) fn get(&self, field: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(field))
            .map(|(_, value)| value.as_str())
    }

    fn add_line(&mut self, line: &str) {
        if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = self.0.last_mut() {
                value.push('\n');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            self.0
                .push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
}

/// Reads paragraphs one at a time, so that an index of any size needs little memory.
/// Comment lines, and lines that are neither field nor continuation, are skipped.
pub(crate) struct Paragraphs<R> {
    lines: R,
}

impl<R: BufRead> Paragraphs<R> {
    pub(crate) fn new(lines: R) -> Self {
        Self { lines }
    }
}

impl<R: BufRead> Iterator for Paragraphs<R> {
    type Item = io::Result<Paragraph>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut paragraph = Paragraph::default();
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            match self.lines.read_until(b'\n', &mut bytes) {
                Ok(0) => return (!paragraph.0.is_empty()).then_some(Ok(paragraph)),
                Ok(_) => {}
                Err(error) => return Some(Err(error)),
            }
            let line = String::from_utf8_lossy(&bytes);
            let line = line.trim_end();
            match line {
                "" if paragraph.0.is_empty() => {}
                "" => return Some(Ok(paragraph)),
                _ if line.starts_with('#') => {}
                _ => paragraph.add_line(line),
            }
        }
    }
}

/// All paragraphs of a text.
pub(crate) fn paragraphs(text: &str) -> Vec<Paragraph> {
    Paragraphs::new(text.as_bytes())
        .filter_map(Result::ok)
        .collect()
}

/// Orders two Debian versions (`deb-version(7)`): epoch, upstream, revision.
pub(crate) fn compare_versions(a: &str, b: &str) -> Ordering {
    let (epoch_a, upstream_a, revision_a) = split_version(a);
    let (epoch_b, upstream_b, revision_b) = split_version(b);
    epoch_a
        .cmp(&epoch_b)
        .then_with(|| compare_part(upstream_a, upstream_b))
        .then_with(|| compare_part(revision_a, revision_b))
}

fn split_version(version: &str) -> (u64, &str, &str) {
    let (epoch, rest) = version.split_once(':').unwrap_or(("0", version));
    let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, "0"));
    (epoch.parse().unwrap_or(0), upstream, revision)
}

/// Compares runs of other characters and runs of digits in turn.
fn compare_part(mut a: &str, mut b: &str) -> Ordering {
    while !a.is_empty() || !b.is_empty() {
        let (text_a, rest_a) = split_where(a, |c| c.is_ascii_digit());
        let (text_b, rest_b) = split_where(b, |c| c.is_ascii_digit());
        let (number_a, rest_a) = split_where(rest_a, |c| !c.is_ascii_digit());
        let (number_b, rest_b) = split_where(rest_b, |c| !c.is_ascii_digit());
        let order = compare_text(text_a, text_b).then_with(|| compare_number(number_a, number_b));
        if order != Ordering::Equal {
            return order;
        }
        (a, b) = (rest_a, rest_b);
    }
    Ordering::Equal
}

fn split_where(text: &str, end: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(end).unwrap_or(text.len()))
}

/// `~` comes before the end, letters before anything else.
fn compare_text(a: &str, b: &str) -> Ordering {
    let rank = |c: Option<char>| match c {
        Some('~') => -1,
        None => 0,
        Some(c) if c.is_ascii_alphabetic() => c as i64,
        Some(c) => c as i64 + 256,
    };
    let (mut a, mut b) = (a.chars(), b.chars());
    loop {
        match (a.next(), b.next()) {
            (None, None) => return Ordering::Equal,
            (a, b) if rank(a) != rank(b) => return rank(a).cmp(&rank(b)),
            _ => {}
        }
    }
}

fn compare_number(a: &str, b: &str) -> Ordering {
    let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_paragraph_has_fields_and_continuation_lines() {
        let text = "# comment\n\nPackage: a\nDepends: b,\n c\n\nPackage: d\nrubbish\n";
        let all = paragraphs(text);
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].get("package"), Some("a"));
        assert_eq!(all[0].get("Depends"), Some("b,\nc"));
        assert_eq!(all[1].get("Package"), Some("d"));
        assert_eq!(all[1].get("Depends"), None);
    }

    #[test]
    fn versions_are_ordered_as_dpkg_does() {
        for (small, large) in [
            ("1.0~rc1", "1.0"),
            ("1.0", "1.0a"),
            ("1.0a", "1.0+b"),
            ("6.12.9-1", "6.12.10-1"),
            ("6.12.117-1~deb12u1", "6.12.117-1"),
            ("9", "1:0"),
            ("1.0-1", "1.0-1+b1"),
        ] {
            assert_eq!(
                compare_versions(small, large),
                Ordering::Less,
                "{small} {large}"
            );
            assert_eq!(
                compare_versions(large, small),
                Ordering::Greater,
                "{small} {large}"
            );
        }
        assert_eq!(compare_versions("1.0", "1.00"), Ordering::Equal);
    }

    proptest! {
        #[test]
        fn rubbish_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..500), a in ".{0,20}", b in ".{0,20}") {
            let _ = Paragraphs::new(&bytes[..]).count();
            prop_assert_eq!(compare_versions(&a, &b), compare_versions(&b, &a).reverse());
        }
    }
}

//! What nextest's JUnit file says: which tests passed, failed, or said that they skip.
//!
//! A Rust test cannot report that it was skipped. Ours print a line `skipped: REASON` and
//! return, and are counted here for what they are.

use anyhow::{Context, Result};
use roxmltree::{Document, Node};

use crate::summary::{Skipped, Tests};

const MARK: &str = "skipped: ";

/// Counts the tests in `xml`.
///
/// # Errors
/// It is not well-formed.
pub fn parse(xml: &str) -> Result<Tests> {
    let document = Document::parse(xml).context("the JUnit file is not well-formed")?;
    let mut tests = Tests::default();
    for case in elements(document.root(), "testcase") {
        let suite = case.attribute("classname").unwrap_or_default();
        let name = format!("{suite} {}", case.attribute("name").unwrap_or_default());
        let bad = ["failure", "error"]
            .iter()
            .any(|tag| elements(case, tag).next().is_some());
        match (bad, reason(case)) {
            (true, _) => tests.failed.push(name),
            (false, Some(reason)) => tests.skipped.push(Skipped { name, reason }),
            (false, None) => tests.passed += 1,
        }
    }
    Ok(tests)
}

fn elements<'a>(node: Node<'a, 'a>, tag: &'a str) -> impl Iterator<Item = Node<'a, 'a>> {
    node.descendants()
        .filter(move |node| node.has_tag_name(tag))
}

/// The reason that a test gave for not running.
fn reason(case: Node<'_, '_>) -> Option<String> {
    case.descendants()
        .filter(|node| node.has_tag_name("system-out") || node.has_tag_name("system-err"))
        .filter_map(|node| node.text())
        .flat_map(str::lines)
        .find_map(|line| line.strip_prefix(MARK))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_says_skipped_is_not_counted_as_passed() {
        let xml = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run" tests="3" failures="1" errors="0">
  <testsuite name="banger-net" tests="3" disabled="0" errors="0" failures="1">
    <testcase name="plans" classname="banger-net" time="0.006"/>
    <testcase name="attaches" classname="banger-net" time="0.006">
      <system-out>running 1 test</system-out>
      <system-err>skipped: there is no pasta &amp; no way out
more</system-err>
    </testcase>
    <testcase name="detaches" classname="banger-net" time="0.006">
      <failure type="test failure">no</failure>
      <system-err>skipped: never mind</system-err>
    </testcase>
  </testsuite>
</testsuites>"#;
        assert_eq!(
            parse(xml).unwrap(),
            Tests {
                passed: 1,
                failed: vec!["banger-net detaches".to_owned()],
                skipped: vec![Skipped {
                    name: "banger-net attaches".to_owned(),
                    reason: "there is no pasta & no way out".to_owned(),
                }],
            }
        );
    }
}

//! What nextest's JUnit file says: which tests passed, failed, passed at a second try only, or
//! said that they skip.
//!
//! A Rust test cannot report that it was skipped. Ours print a line `skipped: REASON` and
//! return, and are counted here for what they are.

use anyhow::{Context, Result};
use roxmltree::{Document, Node};

use crate::summary::{Named, Tests};

const MARK: &str = "skipped: ";
/// Lines of a failure that the summary repeats.
const SHOWN: usize = 8;

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
        let failure = |tags: &[&str]| {
            let tried = case.children().find(|node| {
                let tag = node.tag_name().name();
                tags.contains(&tag)
            });
            tried.map(|_| why(case))
        };
        let failed = failure(&["failure", "error"]);
        let first = failure(&["flakyFailure", "flakyError"]);
        match (failed, first, skip(case)) {
            (Some(reason), _, _) => tests.failed.push(Named { name, reason }),
            (None, Some(reason), _) => tests.flaky.push(Named { name, reason }),
            (None, None, Some(reason)) => tests.skipped.push(Named { name, reason }),
            (None, None, None) => tests.passed += 1,
        }
    }
    Ok(tests)
}

fn elements<'a>(node: Node<'a, 'a>, tag: &'a str) -> impl Iterator<Item = Node<'a, 'a>> {
    node.descendants()
        .filter(move |node| node.has_tag_name(tag))
}

/// What a test wrote, each of its tries by itself.
fn outputs<'a>(case: Node<'a, 'a>) -> impl Iterator<Item = &'a str> {
    case.descendants()
        .filter(|node| node.has_tag_name("system-out") || node.has_tag_name("system-err"))
        .filter_map(|node| node.text())
}

/// The reason that a test gave for not running.
fn skip(case: Node<'_, '_>) -> Option<String> {
    outputs(case)
        .flat_map(str::lines)
        .find_map(|line| line.strip_prefix(MARK))
        .map(str::to_owned)
}

/// What a failed test said of it: its first panic, or that it took too long.
fn why(case: Node<'_, '_>) -> String {
    let panic = outputs(case).find_map(|output| {
        let mut lines = output.lines().skip_while(|line| !is_panic(line)).peekable();
        lines.peek()?;
        Some(lines.take(SHOWN).collect::<Vec<_>>().join("\n"))
    });
    panic.unwrap_or_else(|| "it did not panic: it was killed, or took too long".to_owned())
}

fn is_panic(line: &str) -> bool {
    line.contains(" panicked at ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str, reason: &str) -> Named {
        Named {
            name: name.to_owned(),
            reason: reason.to_owned(),
        }
    }

    #[test]
    fn a_test_is_counted_for_what_it_is() {
        let xml = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run" tests="5" failures="1" errors="0">
  <testsuite name="banger-net" tests="5" disabled="0" errors="0" failures="1">
    <testcase name="plans" classname="banger-net" time="0.006"/>
    <testcase name="attaches" classname="banger-net" time="0.006">
      <system-out>running 1 test</system-out>
      <system-err>skipped: there is no pasta &amp; no way out
more</system-err>
    </testcase>
    <testcase name="detaches" classname="banger-net" time="0.006">
      <failure type="test failure">no</failure>
      <rerunFailure type="test failure"><system-err>log
thread 'x' panicked at y.rs:1:2:
no way</system-err></rerunFailure>
      <system-err>skipped: never mind</system-err>
    </testcase>
    <testcase name="sweeps" classname="banger-net" time="0.006">
      <flakyFailure type="test failure"><system-err>thread 'x' panicked at z.rs:1:2:
a tap was left</system-err></flakyFailure>
    </testcase>
    <testcase name="hangs" classname="banger-net" time="0.006">
      <failure type="test timeout"/>
    </testcase>
  </testsuite>
</testsuites>"#;
        assert_eq!(
            parse(xml).unwrap(),
            Tests {
                passed: 1,
                failed: vec![
                    named(
                        "banger-net detaches",
                        "thread 'x' panicked at y.rs:1:2:\nno way"
                    ),
                    named(
                        "banger-net hangs",
                        "it did not panic: it was killed, or took too long"
                    ),
                ],
                flaky: vec![named(
                    "banger-net sweeps",
                    "thread 'x' panicked at z.rs:1:2:\na tap was left"
                )],
                skipped: vec![named(
                    "banger-net attaches",
                    "there is no pasta & no way out"
                )],
            }
        );
    }
}

//! What a test run comes to: counts, and the names behind everything that did not pass.

use std::fmt;
use std::time::Duration;

use anyhow::Error;

/// Collects the outcomes of all stages.
#[derive(Default)]
pub struct Summary {
    lines: Vec<String>,
    passed: usize,
    failed: usize,
    flaky: usize,
    skipped: usize,
}

/// The tests of one stage.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tests {
    /// Number of tests that passed.
    pub passed: usize,
    /// Those that did not.
    pub failed: Vec<Named>,
    /// Those that passed at a second try: something is wrong with them or with what they test,
    /// and the run says so without failing for it.
    pub flaky: Vec<Named>,
    /// Those that did not run.
    pub skipped: Vec<Named>,
}

/// A test that did not just pass.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// Why, in one line or several.
    pub reason: String,
}

/// How a stage ended.
pub enum Outcome {
    /// What it checks holds.
    Passed,
    /// It could not be checked here, for this reason.
    Skipped(String),
    /// It ran these tests.
    Tests(Tests),
}

impl Tests {
    /// Adds those of another run.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.flaky.extend(other.flaky);
        self.skipped.extend(other.skipped);
    }
}

impl Summary {
    /// Adds a stage's end.
    pub fn add(&mut self, stage: &str, took: Duration, outcome: Result<Outcome, Error>) {
        let seconds = took.as_secs_f64();
        let line = match outcome {
            Ok(Outcome::Passed) => {
                self.passed += 1;
                format!("passed   {stage} ({seconds:.0} s)")
            }
            Ok(Outcome::Skipped(reason)) => {
                self.skipped += 1;
                format!("skipped  {stage}: {reason}")
            }
            Ok(Outcome::Tests(tests)) => self.add_tests(stage, seconds, tests),
            Err(error) => {
                self.failed += 1;
                format!("failed   {stage} ({seconds:.0} s): {error:#}")
            }
        };
        self.lines.push(line);
    }

    /// Whether nothing failed.
    pub fn is_good(&self) -> bool {
        self.failed == 0
    }

    fn add_tests(&mut self, stage: &str, seconds: f64, mut tests: Tests) -> String {
        self.passed += tests.passed;
        self.failed += tests.failed.len();
        self.flaky += tests.flaky.len();
        self.skipped += tests.skipped.len();
        let verdict = match tests.failed.is_empty() {
            true => "passed",
            false => "failed",
        };
        let mut text = format!(
            "{verdict}   {stage} ({seconds:.0} s): {}",
            counts(
                tests.passed,
                tests.failed.len(),
                tests.flaky.len(),
                tests.skipped.len(),
            )
        );
        tests.skipped.sort();
        for (verdict, tests) in [
            ("failed ", &tests.failed),
            ("flaky  ", &tests.flaky),
            ("skipped", &tests.skipped),
        ] {
            for Named { name, reason } in tests {
                let reason = reason.replace('\n', "\n                  ");
                text.push_str(&format!("\n         {verdict}  {name}: {reason}"));
            }
        }
        text
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nsummary")?;
        for line in &self.lines {
            writeln!(f, "{line}")?;
        }
        let counts = counts(self.passed, self.failed, self.flaky, self.skipped);
        writeln!(f, "{counts}")
    }
}

fn counts(passed: usize, failed: usize, flaky: usize, skipped: usize) -> String {
    let flaky = match flaky {
        0 => String::new(),
        tests => format!(" {tests} flaky,"),
    };
    format!("{passed} passed, {failed} failed,{flaky} {skipped} skipped")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_counts_stages_and_tests() {
        let mut summary = Summary::default();
        summary.add("format", Duration::from_secs(1), Ok(Outcome::Passed));
        summary.add(
            "advisories",
            Duration::ZERO,
            Ok(Outcome::Skipped("no database".to_owned())),
        );
        summary.add(
            "unit tests",
            Duration::from_secs(2),
            Ok(Outcome::Tests(Tests {
                passed: 7,
                failed: vec![Named {
                    name: "a::b".to_owned(),
                    reason: "panicked\nno".to_owned(),
                }],
                flaky: vec![Named {
                    name: "a::d".to_owned(),
                    reason: "once".to_owned(),
                }],
                skipped: vec![Named {
                    name: "a::c".to_owned(),
                    reason: "no pasta".to_owned(),
                }],
            })),
        );
        summary.add("clippy", Duration::ZERO, Err(anyhow::anyhow!("no")));
        assert!(!summary.is_good());
        assert_eq!(
            summary.to_string(),
            "\nsummary\n\
             passed   format (1 s)\n\
             skipped  advisories: no database\n\
             failed   unit tests (2 s): 7 passed, 1 failed, 1 flaky, 1 skipped\n         \
             failed   a::b: panicked\n                  no\n         \
             flaky    a::d: once\n         \
             skipped  a::c: no pasta\n\
             failed   clippy (0 s): no\n\
             8 passed, 2 failed, 1 flaky, 2 skipped\n"
        );
    }
}

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
    skipped: usize,
}

/// The tests of one stage.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tests {
    /// Number of tests that passed.
    pub passed: usize,
    /// Names of those that did not.
    pub failed: Vec<String>,
    /// Those that did not run, with their reasons.
    pub skipped: Vec<Skipped>,
}

/// A test that did not run.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Skipped {
    /// Its name.
    pub name: String,
    /// Why.
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
        self.skipped += tests.skipped.len();
        let verdict = match tests.failed.is_empty() {
            true => "passed",
            false => "failed",
        };
        let mut text = format!(
            "{verdict}   {stage} ({seconds:.0} s): {} passed, {} failed, {} skipped",
            tests.passed,
            tests.failed.len(),
            tests.skipped.len(),
        );
        for name in &tests.failed {
            text.push_str(&format!("\n         failed   {name}"));
        }
        tests.skipped.sort();
        for Skipped { name, reason } in &tests.skipped {
            text.push_str(&format!("\n         skipped  {name}: {reason}"));
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
        writeln!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
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
                failed: vec!["a::b".to_owned()],
                skipped: vec![Skipped {
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
             failed   unit tests (2 s): 7 passed, 1 failed, 1 skipped\n         \
             failed   a::b\n         \
             skipped  a::c: no pasta\n\
             failed   clippy (0 s): no\n\
             8 passed, 2 failed, 2 skipped\n"
        );
    }
}

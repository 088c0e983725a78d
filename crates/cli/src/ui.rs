//! All that banger says to its user, on standard error.

use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;

use banger_proto::error::ApiError;

use crate::failure::{Failure, Outcome};
use crate::render::error::error_text;
use crate::render::style::Style;

/// Where talk goes, and how it may look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ui {
    /// Standard error is a terminal: progress may move.
    pub(crate) live: bool,
    /// How talk may look.
    pub(crate) style: Style,
    /// How data on standard output may look.
    pub(crate) data_style: Style,
}

impl Ui {
    /// Colours only on terminals, and not where `NO_COLOR` (<https://no-color.org>) is set or
    /// the terminal is dumb.
    pub(crate) fn from_env() -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let style = |terminal: bool| match terminal && !dumb && !set("NO_COLOR") {
            true => Style::Colour,
            false => Style::Plain,
        };
        let live = io::stderr().is_terminal();
        Self {
            live: live && !dumb,
            style: style(live),
            data_style: style(io::stdout().is_terminal()),
        }
    }

    /// Says something of use.
    pub(crate) fn note(&self, text: &str) {
        self.say(text);
    }

    /// Whether there is a terminal to ask on.
    pub(crate) fn can_ask(&self) -> bool {
        io::stdin().is_terminal() && io::stderr().is_terminal()
    }

    /// Asks, and waits for the answer. A signal ends the process meanwhile.
    pub(crate) fn confirm(&self, question: &str) -> Result<bool, Failure> {
        let mut stderr = io::stderr();
        let asked = write!(stderr, "{question} [y/N] ").and_then(|()| stderr.flush());
        asked.map_err(|error| Failure::system("could not ask", &error))?;
        let mut answer = String::new();
        let read = io::stdin().lock().read_line(&mut answer);
        read.map_err(|error| Failure::system("could not read the answer", &error))?;
        let answer = answer.trim().to_ascii_lowercase();
        Ok(matches!(answer.as_str(), "y" | "yes"))
    }

    /// Says that something is odd but works.
    pub(crate) fn warn(&self, text: &str) {
        self.say(&format!("{} {text}", self.style.yellow("warning:")));
    }

    /// Says that something did not work.
    pub(crate) fn error(&self, error: &ApiError) {
        self.say(error_text(error, self.style).trim_end());
    }

    /// Says what there is to say of the end, and gives the exit status: that of the outcome, or
    /// `otherwise` for a failure that has none of its own.
    pub(crate) fn conclude(&self, outcome: Outcome, otherwise: u8) -> ExitCode {
        let status = match outcome {
            Ok(status) => status,
            Err(failure) => {
                if let Some(error) = &failure.error {
                    self.error(error);
                }
                failure.status.unwrap_or(otherwise)
            }
        };
        ExitCode::from(status)
    }

    fn say(&self, text: &str) {
        // A closed standard error leaves nobody to tell, and is no reason to stop.
        let _ = writeln!(io::stderr().lock(), "{text}");
    }
}

//! `banger doctor`: asks the daemon's program, which needs no running daemon for it.

use std::io;
use std::path::Path;
use std::time::Duration;

use banger_proto::doctor::{CheckStatus, Report};
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::exit;
use clap::Args;
use tokio::process::Command;
use tokio::time::timeout;

use crate::args::Json;
use crate::failure::Outcome;
use crate::output::{print, print_json};
use crate::render::doctor::report_text;
use crate::settings::Settings;

/// How long all checks may take together.
const LIMIT: Duration = Duration::from_secs(60);

const EXAMPLES: &str = "\
Examples:
  banger doctor
  banger doctor --json
  banger doctor --leaks

The exit status is 1 if a check failed, or if --leaks found something that nobody owns; warnings
do not count.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Doctor {
    /// List everything of banger's on this host, with its owner: processes, files, network
    #[arg(long)]
    leaks: bool,
    #[command(flatten)]
    json: Json,
}

impl Doctor {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        if self.leaks {
            return leaks(&settings.daemon_program, self.json.json).await;
        }
        let report = report(&settings.daemon_program).await?;
        match self.json.json {
            true => print_json(&report)?,
            false => print(&report_text(&report, settings.ui.data_style))?,
        }
        match report.worst() {
            CheckStatus::Fail => Ok(exit::FAILURE),
            CheckStatus::Pass | CheckStatus::Warn => Ok(0),
        }
    }
}

/// The daemon's program knows the marks of everything, and prints the list itself.
async fn leaks(program: &Path, json: bool) -> Outcome {
    let words: &[&str] = match json {
        true => &["doctor", "--leaks", "--json"],
        false => &["doctor", "--leaks"],
    };
    let mut command = Command::from(banger_process::command(program));
    command.args(words).kill_on_drop(true);
    match timeout(LIMIT, command.status()).await {
        Err(_) => Err(too_long(program).into()),
        Ok(Err(error)) => Err(not_started(program, &error).into()),
        Ok(Ok(status)) => Ok(status
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .unwrap_or(exit::FAILURE)),
    }
}

async fn report(program: &Path) -> Result<Report, ApiError> {
    let mut command = Command::from(banger_process::command(program));
    command.args(["doctor", "--json"]).kill_on_drop(true);
    let output = match timeout(LIMIT, command.output()).await {
        Err(_) => return Err(too_long(program)),
        Ok(Err(error)) => return Err(not_started(program, &error)),
        Ok(Ok(output)) => output,
    };
    // It says what failed by the report, and by its exit status too.
    serde_json::from_slice(&output.stdout).map_err(|_| {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let words = match stderr.trim() {
            "" => format!("it printed no report ({})", output.status),
            words => words.to_owned(),
        };
        failed(program, ErrorKind::Failed, &words)
    })
}

fn failed(program: &Path, kind: ErrorKind, why: &str) -> ApiError {
    ApiError {
        causes: vec![why.to_owned()],
        ..ApiError::new(
            kind,
            format!("could not run `{} doctor`", program.display()),
        )
    }
}

fn too_long(program: &Path) -> ApiError {
    let why = format!("it took longer than {} s", LIMIT.as_secs());
    failed(program, ErrorKind::Timeout, &why)
}

fn not_started(program: &Path, error: &io::Error) -> ApiError {
    failed(program, ErrorKind::Precondition, &error.to_string())
        .with_hint("install `bangerd` beside `banger`, or name it in BANGER_DAEMON_BIN")
}

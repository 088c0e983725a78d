//! `banger doctor`: asks the daemon's program, which needs no running daemon for it.

use std::path::Path;
use std::process::Stdio;
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

The exit status is 1 if a check failed; warnings do not count.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Doctor {
    #[command(flatten)]
    json: Json,
}

impl Doctor {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
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

async fn report(program: &Path) -> Result<Report, ApiError> {
    let failed = |kind, why: &str| ApiError {
        causes: vec![why.to_owned()],
        ..ApiError::new(
            kind,
            format!("could not run `{} doctor`", program.display()),
        )
    };
    let running = Command::new(program)
        .args(["doctor", "--json"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = match timeout(LIMIT, running).await {
        Err(_) => {
            return Err(failed(
                ErrorKind::Timeout,
                &format!("it took longer than {} s", LIMIT.as_secs()),
            ));
        }
        Ok(Err(error)) => {
            return Err(failed(ErrorKind::Precondition, &error.to_string())
                .with_hint("install `bangerd` beside `banger`, or name it in BANGER_DAEMON_BIN"));
        }
        Ok(Ok(output)) => output,
    };
    // It says what failed by the report, and by its exit status too.
    serde_json::from_slice(&output.stdout).map_err(|_| {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let words = match stderr.trim() {
            "" => format!("it printed no report ({})", output.status),
            words => words.to_owned(),
        };
        failed(ErrorKind::Failed, &words)
    })
}

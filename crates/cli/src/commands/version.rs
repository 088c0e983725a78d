//! `banger version`

use std::time::Duration;

use banger_proto::VERSION;
use clap::Args;
use serde::Serialize;
use tokio::time::timeout;

use crate::args::Json;
use crate::failure::Outcome;
use crate::output::{print, print_json};
use crate::settings::Settings;

/// How long a running daemon has to say its version.
const LIMIT: Duration = Duration::from_secs(1);

const EXAMPLES: &str = "\
Examples:
  banger version
  banger version --json";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Version {
    #[command(flatten)]
    json: Json,
}

#[derive(Debug, Serialize)]
struct Versions {
    /// This program's.
    banger: &'static str,
    /// The running daemon's; `null` if none runs.
    daemon: Option<banger_proto::api::Version>,
}

impl Version {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let client = timeout(LIMIT, settings.connect_if_running()).await;
        // A daemon that does not answer has no version to show; `daemon status` says why.
        let client = client.ok().and_then(Result::ok).flatten();
        let daemon = client.map(|client| client.daemon_version().clone());
        if self.json.json {
            print_json(&Versions {
                banger: VERSION,
                daemon,
            })?;
            return Ok(0);
        }
        print(&format!("banger {VERSION}\n"))?;
        if let Some(daemon) = daemon {
            print(&format!("bangerd {}\n", daemon.version))?;
        }
        Ok(0)
    }
}

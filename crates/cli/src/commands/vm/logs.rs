//! `banger vm logs`

use banger_proto::api::LogKind;
use clap::Args;
use clap_complete::ArgValueCandidates;

use crate::complete;
use crate::failure::Outcome;
use crate::near;
use crate::output;
use crate::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  banger vm logs calm-otter
  banger vm logs -f calm-otter
  banger vm logs --tail 20 --engine calm-otter
  banger vm logs --boot calm-otter
  banger vm logs --boot -f calm-otter

The agent's log (--agent) cannot be followed.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Logs {
    /// The VM: its name, its id, or the first 4 or more digits of its id
    #[arg(value_parser = crate::args::vm_selector, add = ArgValueCandidates::new(complete::vm_names))]
    vm: String,
    /// Go on printing what comes
    #[arg(long, short)]
    follow: bool,
    /// Print only this many of the last lines, before what comes
    #[arg(long, short = 'n', value_name = "N")]
    tail: Option<u64>,
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, Args)]
#[group(multiple = false)]
struct Which {
    /// What the guest's kernel and init print (the default)
    #[arg(long)]
    console: bool,
    /// Stages of the last start, with their times
    #[arg(long)]
    boot: bool,
    /// What the engine's process prints
    #[arg(long)]
    engine: bool,
    /// What the guest's agent logs, with the ids of the requests that it serves
    #[arg(long)]
    agent: bool,
}

impl Logs {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let Which {
            boot,
            engine,
            agent,
            console: _,
        } = self.which;
        let kind = match (boot, engine, agent) {
            (true, _, _) => LogKind::Boot,
            (_, true, _) => LogKind::Engine,
            (_, _, true) => LogKind::Agent,
            (false, false, false) => LogKind::Console,
        };
        let client = settings.connect().await?;
        let log = match self.tail {
            Some(lines) => client.logs_tail(&self.vm, kind, self.follow, lines).await,
            None => client.logs(&self.vm, kind, self.follow).await,
        };
        let mut log = match log {
            Ok(log) => log,
            Err(error) => return Err(near::explain(&client, &self.vm, error).await),
        };
        while let Some(bytes) = log.next().await? {
            output::write(&bytes)?;
        }
        Ok(0)
    }
}

//! `banger vm health`, also `banger vm ping`

use banger_proto::exit;
use clap::Args;
use clap_complete::ArgValueCandidates;

use super::look;
use crate::args::Json;
use crate::complete;
use crate::failure::Outcome;
use crate::output::{print, print_json};
use crate::render::stats::health_table;
use crate::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  banger vm health
  banger vm health calm-otter
  banger vm ping calm-otter devbox --json

The exit status is 1 if one of them does not run or its agent does not answer.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Health {
    /// The VMs: names, ids, or the first 4 or more digits of ids [default: all that run]
    #[arg(value_name = "VM", value_parser = crate::args::vm_selector, add = ArgValueCandidates::new(complete::vm_names))]
    vms: Vec<String>,
    #[command(flatten)]
    json: Json,
}

impl Health {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let client = settings.connect().await?;
        let vms = match self.vms.is_empty() {
            true => look::running(&client).await?,
            false => self.vms,
        };
        let look = async |vm: &str| client.vm_health(vm).await;
        let (found, all) = look::at_each(settings, &client, &vms, look).await;
        let all_well = all && found.iter().all(|health| health.healthy);
        match self.json.json {
            true => print_json(&found)?,
            false if found.is_empty() && all_well => settings.ui.note("no VM runs"),
            false if found.is_empty() => {}
            false => print(&health_table(&found))?,
        }
        match all_well {
            true => Ok(0),
            false => Ok(exit::FAILURE),
        }
    }
}

//! `banger vm health`, also `banger vm ping`

use banger_proto::exit;
use clap::Args;
use clap_complete::ArgValueCandidates;
use futures_util::future::join_all;

use crate::args::Json;
use crate::complete;
use crate::failure::Outcome;
use crate::near;
use crate::output::{print, print_json};
use crate::render::stats::health_table;
use crate::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  banger vm health calm-otter
  banger vm ping calm-otter devbox --json

The exit status is 1 if one of them does not run or its agent does not answer.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Health {
    /// The VMs: names, ids, or beginnings of ids
    #[arg(required = true, value_name = "VM", add = ArgValueCandidates::new(complete::vm_names))]
    vms: Vec<String>,
    #[command(flatten)]
    json: Json,
}

impl Health {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let client = settings.connect().await?;
        let looks = self
            .vms
            .iter()
            .map(async |vm| match client.vm_health(vm).await {
                Ok(health) => Ok(health),
                Err(error) => Err(near::explained(&client, vm, error).await),
            });
        let mut found = Vec::new();
        let mut all_well = true;
        for look in join_all(looks).await {
            match look {
                Ok(health) => {
                    all_well &= health.healthy;
                    found.push(health);
                }
                Err(error) => {
                    all_well = false;
                    settings.ui.error(&error);
                }
            }
        }
        match self.json.json {
            true => print_json(&found)?,
            false if found.is_empty() => {}
            false => print(&health_table(&found))?,
        }
        match all_well {
            true => Ok(0),
            false => Ok(exit::FAILURE),
        }
    }
}

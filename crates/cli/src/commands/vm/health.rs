//! `banger vm health`, also `banger vm ping`

use banger_client::Client;
use banger_proto::api::VmState;
use banger_proto::exit;
use clap::Args;
use clap_complete::ArgValueCandidates;
use futures_util::future::join_all;

use crate::args::Json;
use crate::complete;
use crate::failure::{Failure, Outcome};
use crate::near;
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
            true => running(&client).await?,
            false => self.vms,
        };
        let looks = vms.iter().map(async |vm| match client.vm_health(vm).await {
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

/// The VMs that run.
pub(super) async fn running(client: &Client) -> Result<Vec<String>, Failure> {
    let vms = client.vms().await?.into_iter();
    let running = vms.filter(|vm| vm.state == VmState::Running);
    Ok(running.map(|vm| vm.id.to_string()).collect())
}

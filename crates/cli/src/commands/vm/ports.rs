//! `banger vm ports`

use banger_proto::api::Port;
use banger_proto::exit;
use clap::Args;
use clap_complete::ArgValueCandidates;

use super::look;
use crate::args::Json;
use crate::complete;
use crate::failure::Outcome;
use crate::output::{print, print_json};
use crate::render::ports::{notes, ports_table};
use crate::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  banger vm ports
  banger vm ports calm-otter
  banger vm ports calm-otter devbox --json

Every TCP port that listens in a guest, also on the guest's own 127.0.0.1, is reached at ENDPOINT
while it listens. URL is what a browser opens, of ports that answer as web servers do.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Ports {
    /// The VMs: names, ids, or the first 4 or more digits of ids [default: all that run]
    #[arg(value_name = "VM", value_parser = crate::args::vm_selector, add = ArgValueCandidates::new(complete::vm_names))]
    vms: Vec<String>,
    /// Do not ask the ports whether they are web servers
    #[arg(long)]
    no_probe: bool,
    #[command(flatten)]
    json: Json,
}

impl Ports {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let client = settings.connect().await?;
        let vms = match self.vms.is_empty() {
            true => look::running(&client).await?,
            false => self.vms,
        };
        let probe = !self.no_probe;
        let look = async |vm: &str| client.vm_ports(vm, probe).await;
        let (found, all) = look::at_each(settings, &client, &vms, look).await;
        let found: Vec<Port> = found.into_iter().flatten().collect();
        match self.json.json {
            true => print_json(&found)?,
            false if vms.is_empty() => settings.ui.note("no VM runs"),
            false if found.is_empty() && all => settings.ui.note("nothing listens"),
            false if found.is_empty() => {}
            false => {
                print(&ports_table(&found))?;
                for note in notes(&found) {
                    settings.ui.note(&note);
                }
            }
        }
        match all {
            true => Ok(0),
            false => Ok(exit::FAILURE),
        }
    }
}

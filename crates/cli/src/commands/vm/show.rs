//! `banger vm show`

use std::time::Duration;

use banger_client::Client;
use banger_proto::agent::Health;
use banger_proto::api::{Vm, VmState};
use clap::Args;
use clap_complete::ArgValueCandidates;
use jiff::Timestamp;
use tokio::time::timeout;

use crate::args::Json;
use crate::complete;
use crate::failure::Outcome;
use crate::near;
use crate::output::{print, print_json};
use crate::render::vm::vm_text;
use crate::settings::Settings;

/// How long the guest may take to tell of itself before the rest is shown without that.
const GUEST_LIMIT: Duration = Duration::from_secs(2);

const EXAMPLES: &str = "\
Examples:
  banger vm show calm-otter
  banger vm show calm-otter --json";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Show {
    /// The VM: its name, its id, or the beginning of its id
    #[arg(add = ArgValueCandidates::new(complete::vm_names))]
    vm: String,
    #[command(flatten)]
    json: Json,
}

impl Show {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let client = settings.connect().await?;
        let vm = match client.vm(&self.vm).await {
            Ok(vm) => vm,
            Err(error) => return Err(near::explain(&client, &self.vm, error).await),
        };
        match self.json.json {
            true => print_json(&vm)?,
            false => {
                let guest = guest(&client, &vm).await;
                let style = settings.ui.data_style;
                print(&vm_text(&vm, guest.as_ref(), Timestamp::now(), style))?;
            }
        }
        Ok(0)
    }
}

/// What the agent of a running VM tells, if it does.
async fn guest(client: &Client, vm: &Vm) -> Option<Health> {
    if vm.state != VmState::Running {
        return None;
    }
    let asked = timeout(GUEST_LIMIT, client.vm_health(vm.id.as_str())).await;
    asked.ok()?.ok()?.agent
}

//! `banger vm show`

use clap::Args;
use clap_complete::ArgValueCandidates;
use jiff::Timestamp;

use crate::args::Json;
use crate::complete;
use crate::failure::Outcome;
use crate::near;
use crate::output::{print, print_json};
use crate::render::vm::vm_text;
use crate::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  banger vm show calm-otter
  banger vm show calm-otter --json";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Show {
    /// The VM: its name, its id, or the first 4 or more digits of its id
    #[arg(value_parser = crate::args::vm_selector, add = ArgValueCandidates::new(complete::vm_names))]
    vm: String,
    #[command(flatten)]
    json: Json,
}

impl Show {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let client = settings.connect().await?;
        let vm = match client.vm_with_guest(&self.vm).await {
            Ok(vm) => vm,
            Err(error) => return Err(near::explain(&client, &self.vm, error).await),
        };
        match self.json.json {
            true => print_json(&vm)?,
            false => print(&vm_text(&vm, Timestamp::now(), settings.ui.data_style))?,
        }
        Ok(0)
    }
}

//! `banger vm rename`

use banger_proto::api::SetVm;
use banger_proto::name::VmName;
use clap::Args;
use clap_complete::ArgValueCandidates;

use crate::args::{Json, Quiet};
use crate::complete;
use crate::failure::Outcome;
use crate::follow;
use crate::near;
use crate::output::print_json;
use crate::progress::{Detail, Display, Verbosity};
use crate::settings::Settings;
use crate::signals::Signals;

const EXAMPLES: &str = "\
Examples:
  banger vm rename calm-otter devbox

Its id stays. A running guest gets the new host name at once.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Rename {
    /// The VM: its name, its id, or the first 4 or more digits of its id
    #[arg(value_parser = crate::args::vm_selector, add = ArgValueCandidates::new(complete::vm_names))]
    vm: String,
    /// Its new name: a DNS label
    new_name: VmName,
    #[command(flatten)]
    json: Json,
    #[command(flatten)]
    quiet: Quiet,
}

impl Rename {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let mut signals = Signals::listen()?;
        let client = signals.or(settings.connect()).await?;
        let change = SetVm {
            name: Some(self.new_name.clone()),
            ..SetVm::default()
        };
        let operation = match client.set_vm(&self.vm, &change).await {
            Ok(operation) => operation,
            Err(error) => return Err(near::explain(&client, &self.vm, error).await),
        };
        let display = Display::new(settings.ui, Verbosity::from_quiet(self.quiet.quiet));
        let progress = display.operation(&format!("renaming VM `{}`", self.vm), Detail::Stages);
        let operation = signals
            .or(follow::to_end(&client, &operation, progress))
            .await?;
        display.note(&format!("VM `{}` is now `{}`", self.vm, self.new_name));
        if self.json.json {
            print_json(&operation)?;
        }
        Ok(0)
    }
}

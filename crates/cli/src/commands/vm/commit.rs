//! `banger vm commit`

use banger_proto::api::CommitVm;
use banger_proto::name::ArtifactName;
use clap::Args;
use clap_complete::ArgValueCandidates;

use crate::args::{Json, Quiet};
use crate::complete;
use crate::failure::Outcome;
use crate::follow;
use crate::output::print_json;
use crate::progress::{Detail, Display, Verbosity};
use crate::settings::Settings;
use crate::signals::Signals;

const EXAMPLES: &str = "\
Examples:
  banger vm stop box
  banger vm commit box devbox
  banger vm run --image devbox
  banger vm commit box devbox --replace

The VM must be stopped, and stays as it is. The image holds its whole system and its /root, but
not /tmp, /var/tmp, the machine's id and its ssh host keys.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Commit {
    /// The VM: its name, its id, or the first 4 or more digits of its id
    #[arg(add = ArgValueCandidates::new(complete::vm_names))]
    vm: String,
    /// What the image is to be called
    #[arg(value_name = "IMAGE")]
    name: ArtifactName,
    /// Supersede an image of this name; VMs that were made of it keep it
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    json: Json,
    #[command(flatten)]
    quiet: Quiet,
}

impl Commit {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let mut signals = Signals::listen()?;
        let client = signals.or(settings.connect()).await?;
        let commit = CommitVm {
            name: self.name.clone(),
            replace: self.replace,
        };
        let operation = client.commit_vm(&self.vm, &commit).await?;
        let display = Display::new(settings.ui, Verbosity::from_quiet(self.quiet.quiet));
        let title = format!("making image `{}` of VM `{}`", self.name, self.vm);
        let progress = display.operation(&title, Detail::Stages);
        let operation = follow::or_call_off(&client, &operation, progress, &mut signals).await?;
        display.note(&format!("image `{}` is made", self.name));
        if self.json.json {
            print_json(&operation)?;
        }
        Ok(0)
    }
}

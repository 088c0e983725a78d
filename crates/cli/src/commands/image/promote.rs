//! `banger image promote`

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
  banger image promote base

Copies the files of a registered image into banger's own store. Its id stays, so that VMs go on
with it; the files that it was registered with may go.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Promote {
    /// The image: its name, its id, or the beginning of its id
    #[arg(add = ArgValueCandidates::new(complete::image_names))]
    image: String,
    #[command(flatten)]
    json: Json,
    #[command(flatten)]
    quiet: Quiet,
}

impl Promote {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let mut signals = Signals::listen()?;
        let client = signals.or(settings.connect()).await?;
        let operation = client.promote_image(&self.image).await?;
        let display = Display::new(settings.ui, Verbosity::from_quiet(self.quiet.quiet));
        let title = format!("promoting image `{}`", self.image);
        let progress = display.operation(&title, Detail::Stages);
        let operation = follow::or_call_off(&client, &operation, progress, &mut signals).await?;
        display.note(&format!("image `{}` is banger's own now", self.image));
        if self.json.json {
            print_json(&operation)?;
        }
        Ok(0)
    }
}

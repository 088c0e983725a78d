//! `banger image rename`

use banger_proto::name::ArtifactName;
use clap::Args;
use clap_complete::ArgValueCandidates;

use crate::args::{Json, Quiet};
use crate::complete;
use crate::failure::Outcome;
use crate::output::print_json;
use crate::progress::{Display, Verbosity};
use crate::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  banger image rename base devbox

Its id stays, and VMs that have booted it go on with it.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Rename {
    /// The image: its name, its id, or the beginning of its id
    #[arg(add = ArgValueCandidates::new(complete::image_names))]
    image: String,
    /// Its new name
    new_name: ArtifactName,
    #[command(flatten)]
    json: Json,
    #[command(flatten)]
    quiet: Quiet,
}

impl Rename {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let client = settings.connect().await?;
        let image = client.rename_image(&self.image, &self.new_name).await?;
        match self.json.json {
            true => print_json(&image)?,
            false => Display::new(settings.ui, Verbosity::from_quiet(self.quiet.quiet))
                .note(&format!("image `{}` is now `{}`", self.image, image.name)),
        }
        Ok(0)
    }
}

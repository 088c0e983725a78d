//! `banger image delete`

use clap::Args;
use clap_complete::ArgValueCandidates;

use crate::args::Quiet;
use crate::complete;
use crate::failure::Outcome;
use crate::progress::{Display, Verbosity};
use crate::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  banger image delete devbox
  banger image delete base devbox

An image that a VM uses stays. Of a registered image only the record goes, never the files.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Delete {
    /// The images: their names, their ids, or the beginnings of their ids
    #[arg(required = true, value_name = "IMAGE", add = ArgValueCandidates::new(complete::image_names))]
    images: Vec<String>,
    #[command(flatten)]
    quiet: Quiet,
}

impl Delete {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let client = settings.connect().await?;
        let display = Display::new(settings.ui, Verbosity::from_quiet(self.quiet.quiet));
        for image in &self.images {
            client.delete_image(image).await?;
            display.note(&format!("image `{image}` is deleted"));
        }
        Ok(0)
    }
}

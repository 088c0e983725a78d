//! `banger image show`

use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::name::ArtifactName;
use clap::Args;
use clap_complete::ArgValueCandidates;
use jiff::Timestamp;

use crate::args::Json;
use crate::complete;
use crate::failure::Outcome;
use crate::output::{print, print_json};
use crate::render::lists::image_text;
use crate::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  banger image show debian-bookworm
  banger image show alpine-3.20 --json";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Show {
    /// The image's name
    #[arg(add = ArgValueCandidates::new(complete::image_names))]
    image: ArtifactName,
    #[command(flatten)]
    json: Json,
}

impl Show {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let images = settings.connect().await?.images().await?;
        // Of two with the name, the newer one counts.
        let image = images.into_iter().rfind(|image| image.name == self.image);
        let image = image.ok_or_else(|| {
            let message = format!("there is no image `{}` here", self.image);
            ApiError::new(ErrorKind::NotFound, message)
                .with_hint("see `banger image list`, or get it with `banger image pull`")
        })?;
        match self.json.json {
            true => print_json(&image)?,
            false => print(&image_text(&image, Timestamp::now()))?,
        }
        Ok(0)
    }
}

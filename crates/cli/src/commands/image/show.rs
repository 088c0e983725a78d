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
use crate::render::catalog::catalog_image_text;
use crate::render::lists::image_text;
use crate::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  banger image show debian-bookworm
  banger image show alpine-3.20 --json

Of an image of the catalog that is not here it shows where that may come from.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Show {
    /// The image's name
    #[arg(add = ArgValueCandidates::new(complete::all_images))]
    image: ArtifactName,
    #[command(flatten)]
    json: Json,
}

impl Show {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let client = settings.connect().await?;
        let images = client.images().await?;
        // Of two with the name, the newer one counts.
        if let Some(image) = images.into_iter().rfind(|image| image.name == self.image) {
            match self.json.json {
                true => print_json(&image)?,
                false => print(&image_text(&image, Timestamp::now()))?,
            }
            return Ok(0);
        }
        let images = client.catalog(false).await?.images;
        let image = images.into_iter().find(|image| image.name == self.image);
        let image = image.ok_or_else(|| {
            let message = format!(
                "there is no image `{}` here, nor in the catalog",
                self.image
            );
            ApiError::new(ErrorKind::NotFound, message)
                .with_hint("see `banger image list`, or get it with `banger image pull`")
        })?;
        match self.json.json {
            true => print_json(&image)?,
            false => print(&catalog_image_text(&image))?,
        }
        Ok(0)
    }
}

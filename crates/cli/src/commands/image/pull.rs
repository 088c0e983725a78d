//! `banger image pull`

use std::time::Instant;

use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::name::ArtifactName;
use clap::Args;
use clap_complete::ArgValueCandidates;

use crate::args::{Json, Quiet};
use crate::complete;
use crate::failure::Outcome;
use crate::follow;
use crate::output::print_json;
use crate::progress::{Detail, Display, Verbosity};
use crate::render::time::took;
use crate::settings::Settings;
use crate::signals::Signals;

const EXAMPLES: &str = "\
Examples:
  banger image pull debian-bookworm
  banger image pull debian-bookworm-slim --json";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Pull {
    /// The image's name in the catalog
    #[arg(add = ArgValueCandidates::new(complete::image_names))]
    image: ArtifactName,
    #[command(flatten)]
    json: Json,
    #[command(flatten)]
    quiet: Quiet,
}

impl Pull {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let mut signals = Signals::listen()?;
        let client = signals.or(settings.connect()).await?;
        let display = Display::new(settings.ui, Verbosity::from_quiet(self.quiet.quiet));
        let began = Instant::now();
        let operation = client.pull_image(&self.image).await?;
        let progress =
            display.operation(&format!("getting image `{}`", self.image), Detail::Stages);
        follow::or_call_off(&client, &operation, progress, &mut signals).await?;
        display.note(&format!(
            "image `{}` is here after {}",
            self.image,
            took(began.elapsed())
        ));
        if self.json.json {
            let images = client.images().await?;
            let image = images.into_iter().find(|image| image.name == self.image);
            print_json(&image.ok_or_else(|| {
                let message = format!("image `{}` was pulled and is not in the list", self.image);
                ApiError::new(ErrorKind::NotFound, message)
            })?)?;
        }
        Ok(0)
    }
}

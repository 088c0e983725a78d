//! `banger image prune`

use banger_proto::error::{ApiError, ErrorKind};
use clap::Args;
use jiff::Timestamp;

use crate::args::{Json, Quiet};
use crate::failure::Outcome;
use crate::output::{print, print_json};
use crate::progress::{Display, Verbosity};
use crate::render::lists::image_table;
use crate::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  banger image prune --dry-run
  banger image prune --yes

Deletes the images that no VM uses, and the records of registered ones whose files are gone.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Prune {
    /// Delete them
    #[arg(
        long,
        short,
        visible_alias = "force",
        required_unless_present = "dry_run"
    )]
    yes: bool,
    /// Only list what would be deleted
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    json: Json,
    #[command(flatten)]
    quiet: Quiet,
}

impl Prune {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        if self.yes == self.dry_run {
            let message = "`--yes` deletes, and `--dry-run` does not: choose one";
            return Err(ApiError::new(ErrorKind::Invalid, message).into());
        }
        let client = settings.connect().await?;
        let images = client.prune_images(self.dry_run).await?;
        if self.json.json {
            print_json(&images)?;
            return Ok(0);
        }
        let display = Display::new(settings.ui, Verbosity::from_quiet(self.quiet.quiet));
        match (images.len(), self.dry_run) {
            (0, _) => display.note("there is nothing to prune"),
            (_, true) => print(&image_table(&images, Timestamp::now()))?,
            (_, false) => {
                for image in &images {
                    display.note(&format!("image `{}` is deleted", image.name));
                }
            }
        }
        Ok(0)
    }
}

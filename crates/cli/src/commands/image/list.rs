//! `banger image list`

use clap::Args;
use jiff::Timestamp;

use crate::failure::Outcome;
use crate::output::{print, print_json};
use crate::render::lists::image_table;
use crate::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  banger image list
  banger image list --json";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct List {
    /// Print the API's objects as JSON
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Print only names
    #[arg(long, short)]
    quiet: bool,
}

impl List {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let images = settings.connect().await?.images().await?;
        if self.json {
            print_json(&images)?;
        } else if self.quiet {
            let names: String = images
                .iter()
                .map(|image| format!("{}\n", image.name))
                .collect();
            print(&names)?;
        } else {
            print(&image_table(&images, Timestamp::now()))?;
        }
        Ok(0)
    }
}

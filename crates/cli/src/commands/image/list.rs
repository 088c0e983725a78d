//! `banger image list`

use banger_client::Client;
use clap::Args;
use jiff::Timestamp;

use crate::failure::Outcome;
use crate::output::{print, print_json};
use crate::render::catalog::catalog_image_table;
use crate::render::lists::image_table;
use crate::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  banger image list
  banger image list --available
  banger image list --json";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct List {
    /// List what the catalog has, and ask for the newest one where the config names one
    #[arg(long)]
    available: bool,
    /// Print the API's objects as JSON
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Print only names
    #[arg(long, short)]
    quiet: bool,
}

impl List {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let client = settings.connect().await?;
        if self.available {
            return self.available(&client, settings).await;
        }
        let images = client.images().await?;
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

    async fn available(&self, client: &Client, settings: &Settings) -> Outcome {
        let catalog = client.catalog(true).await?;
        catalog
            .warning
            .iter()
            .for_each(|text| settings.ui.warn(text));
        if self.json {
            print_json(&catalog.images)?;
        } else if self.quiet {
            let names = catalog
                .images
                .iter()
                .map(|image| format!("{}\n", image.name));
            print(&names.collect::<String>())?;
        } else {
            print(&catalog_image_table(&catalog.images))?;
        }
        Ok(0)
    }
}

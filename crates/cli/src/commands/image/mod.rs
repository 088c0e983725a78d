//! `banger image`

mod list;
mod pull;

use clap::Subcommand;

use crate::failure::Outcome;
use crate::settings::Settings;

#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// List the images that are here
    #[command(visible_alias = "ls")]
    List(list::List),
    /// Get an image of the catalog, and the kernel that it boots with
    Pull(pull::Pull),
}

impl Image {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        match self {
            Self::List(command) => command.run(settings).await,
            Self::Pull(command) => command.run(settings).await,
        }
    }
}

//! `banger image`

mod list;
mod pull;
mod show;

use clap::Subcommand;

use crate::failure::Outcome;
use crate::settings::Settings;

#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// List the images that are here
    #[command(visible_alias = "ls")]
    List(list::List),
    /// Get an image, and the kernel that it boots with
    Pull(pull::Pull),
    /// Show an image: where it comes from, and how its maker wants it run
    Show(show::Show),
}

impl Image {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        match self {
            Self::List(command) => command.run(settings).await,
            Self::Pull(command) => command.run(settings).await,
            Self::Show(command) => command.run(settings).await,
        }
    }
}

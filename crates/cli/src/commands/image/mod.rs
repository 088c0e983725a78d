//! `banger image`

mod build;
mod cache;
mod delete;
mod export;
mod import;
mod list;
mod promote;
mod prune;
mod pull;
mod register;
mod rename;
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
    /// Build an image of another one, or of a Dockerfile
    Build(build::Build),
    /// Record an image whose file stays where it is
    Register(register::Register),
    /// Copy a registered image's files into banger's own store
    Promote(promote::Promote),
    /// Give an image another name
    Rename(rename::Rename),
    /// Delete images that no VM uses
    #[command(visible_alias = "rm")]
    Delete(delete::Delete),
    /// Delete all images that no VM uses
    Prune(prune::Prune),
    /// What is kept to be quicker the next time
    #[command(subcommand)]
    Cache(cache::Cache),
    /// Write an image as one file, to be carried elsewhere
    Export(export::Export),
    /// Make an image of such a file
    Import(import::Import),
}

impl Image {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        match self {
            Self::List(command) => command.run(settings).await,
            Self::Pull(command) => command.run(settings).await,
            Self::Build(command) => command.run(settings).await,
            Self::Show(command) => command.run(settings).await,
            Self::Register(command) => command.run(settings).await,
            Self::Promote(command) => command.run(settings).await,
            Self::Rename(command) => command.run(settings).await,
            Self::Delete(command) => command.run(settings).await,
            Self::Prune(command) => command.run(settings).await,
            Self::Cache(command) => command.run(settings).await,
            Self::Export(command) => command.run(settings).await,
            Self::Import(command) => command.run(settings).await,
        }
    }
}

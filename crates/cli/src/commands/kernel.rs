//! `banger kernel`

use clap::{Args, Subcommand};
use jiff::Timestamp;

use crate::args::Json;
use crate::failure::Outcome;
use crate::output::{print, print_json};
use crate::render::lists::kernel_table;
use crate::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  banger kernel list
  banger kernel list --json";

#[derive(Debug, Subcommand)]
pub(crate) enum Kernel {
    /// List the kernels that are here
    #[command(visible_alias = "ls")]
    List(List),
}

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct List {
    #[command(flatten)]
    json: Json,
}

impl Kernel {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let Self::List(list) = self;
        let kernels = settings.connect().await?.kernels().await?;
        match list.json.json {
            true => print_json(&kernels)?,
            false => print(&kernel_table(&kernels, Timestamp::now()))?,
        }
        Ok(0)
    }
}

//! `banger engine list`

use clap::Args;

use crate::args::Json;
use crate::failure::Outcome;
use crate::output::{print, print_json};
use crate::render::engine::{choice, engine_table};
use crate::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  banger engine list
  banger engine list --json";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct List {
    #[command(flatten)]
    json: Json,
}

impl List {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let engines = settings.connect().await?.engines().await?;
        if self.json.json {
            print_json(&engines)?;
            return Ok(0);
        }
        print(&engine_table(&engines))?;
        if let Some(choice) = choice(&engines) {
            settings.ui.note(&choice);
        }
        Ok(0)
    }
}

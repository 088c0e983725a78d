//! `banger engine show`

use clap::Args;
use jiff::Timestamp;

use crate::args::{EngineArg, Json};
use crate::failure::Outcome;
use crate::output::{print, print_json};
use crate::render::engine::engine_text;
use crate::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  banger engine show firecracker
  banger engine show qemu --json";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Show {
    /// The engine
    engine: EngineArg,
    #[command(flatten)]
    json: Json,
}

impl Show {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let client = settings.connect().await?;
        let engine = client.engine(self.engine.into()).await?;
        match self.json.json {
            true => print_json(&engine)?,
            false => print(&engine_text(
                &engine,
                Timestamp::now(),
                settings.ui.data_style,
            ))?,
        }
        Ok(0)
    }
}

//! `banger engine uninstall`

use banger_proto::api::EngineKind;
use clap::Args;

use crate::args::{EngineArg, Quiet};
use crate::failure::Outcome;
use crate::follow;
use crate::progress::{Detail, Display, Verbosity};
use crate::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  banger engine uninstall firecracker

VMs that run on it must be stopped first. VMs that were made with it keep everything, and start
again once it is installed again.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Uninstall {
    /// The engine
    engine: EngineArg,
    #[command(flatten)]
    quiet: Quiet,
}

impl Uninstall {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let engine = EngineKind::from(self.engine);
        let client = settings.connect().await?;
        let display = Display::new(settings.ui, Verbosity::from_quiet(self.quiet.quiet));
        let operation = client.uninstall_engine(engine).await?;
        let progress = display.operation(&format!("removing {engine}"), Detail::Stages);
        follow::to_end(&client, &operation, progress).await?;
        display.note(&format!("{engine} is removed"));
        Ok(0)
    }
}

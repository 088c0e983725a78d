//! `banger vm start`

use clap::Args;

use super::each::{Each, Words};
use crate::failure::Outcome;
use crate::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  banger vm start calm-otter
  banger vm start calm-otter devbox --quiet";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Start {
    #[command(flatten)]
    each: Each,
}

impl Start {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let words = Words {
            going_on: "starting",
            done: "running",
        };
        self.each
            .run(settings, words, async |client, vm| {
                client.start_vm(vm).await
            })
            .await
    }
}

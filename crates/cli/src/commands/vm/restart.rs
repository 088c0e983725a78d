//! `banger vm restart`

use clap::Args;

use super::each::{Each, Words};
use crate::failure::Outcome;
use crate::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  banger vm restart calm-otter
  banger vm restart calm-otter devbox

The guest is shut down cleanly and started again; a VM that is down is started.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Restart {
    #[command(flatten)]
    each: Each,
}

impl Restart {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let words = Words {
            going_on: "restarting",
            done: "running again",
        };
        self.each
            .run(settings, words, async |client, vm| {
                client.restart_vm(vm).await
            })
            .await
    }
}

//! `banger vm stop`

use clap::Args;

use super::each::{Each, Words};
use crate::failure::Outcome;
use crate::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  banger vm stop calm-otter
  banger vm stop calm-otter devbox

The guest is asked to shut down, and ended if it takes too long.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Stop {
    #[command(flatten)]
    each: Each,
}

impl Stop {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let words = Words {
            going_on: "stopping",
            done: "stopped",
        };
        self.each
            .run(settings, words, async |client, vm| client.stop_vm(vm).await)
            .await
    }
}

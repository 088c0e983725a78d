//! `banger vm pause`

use clap::Args;

use super::each::{Each, Words};
use crate::failure::Outcome;
use crate::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  banger vm pause calm-otter
  banger vm pause calm-otter devbox

Its CPUs are held and its memory is kept; nothing in it notices. `banger vm resume` lets it
go on.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Pause {
    #[command(flatten)]
    each: Each,
}

impl Pause {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let words = Words {
            going_on: "pausing",
            done: "paused",
        };
        self.each
            .run(settings, words, async |client, vm| {
                client.pause_vm(vm).await
            })
            .await
    }
}

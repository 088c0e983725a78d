//! `banger vm resume`

use clap::Args;

use super::each::{Each, Words};
use crate::failure::Outcome;
use crate::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  banger vm resume calm-otter
  banger vm resume calm-otter devbox

It goes on where it was, with the right time on its clock.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Resume {
    #[command(flatten)]
    each: Each,
}

impl Resume {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let words = Words {
            going_on: "resuming",
            done: "running",
        };
        self.each
            .run(settings, words, async |client, vm| {
                client.resume_vm(vm).await
            })
            .await
    }
}

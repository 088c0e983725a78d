//! `banger vm delete`

use clap::Args;

use super::each::{Each, Words};
use crate::failure::Outcome;
use crate::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  banger vm delete calm-otter
  banger vm delete calm-otter devbox

A running VM is ended at once; what was on its disks is gone.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Delete {
    #[command(flatten)]
    each: Each,
}

impl Delete {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let words = Words {
            going_on: "deleting",
            done: "deleted",
        };
        self.each
            .run(settings, words, async |client, vm| {
                client.delete_vm(vm).await
            })
            .await
    }
}

//! `banger vm delete`

use clap::Args;

use super::each::{Each, Words};
use crate::failure::Outcome;
use crate::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  banger vm delete calm-otter
  banger vm delete calm-otter devbox
  banger vm delete --force stuck-newt

A running VM is ended at once, whatever it does; what was on its disks is gone. Where something
cannot be removed the VM stays, failed, and the delete says what it was. With --force banger then
goes on trying every minute until nothing is left, also after the daemon was restarted. A guest
that cannot be ended keeps its disks until it can.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Delete {
    /// Try again every minute until nothing is left of it
    #[arg(long, short)]
    force: bool,
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
            .run(settings, words, async |client, vm| match self.force {
                true => client.delete_vm_until_gone(vm).await,
                false => client.delete_vm(vm).await,
            })
            .await
    }
}

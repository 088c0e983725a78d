//! `banger vm kill`

use banger_proto::api::KillVm;
use clap::Args;

use super::each::{Each, Words};
use crate::args::signal;
use crate::failure::Outcome;
use crate::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  banger vm kill calm-otter
  banger vm kill --signal TERM calm-otter devbox

As if its power were cut: what the guest has not written to its disks is lost, and its disks
stay. `banger vm stop` shuts it down cleanly.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Kill {
    /// Send the engine's process this signal first, and kill it if it does not end by it
    #[arg(long, short, value_name = "SIGNAL", value_parser = signal, allow_hyphen_values = true)]
    signal: Option<i32>,
    #[command(flatten)]
    each: Each,
}

impl Kill {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let words = Words {
            going_on: "killing",
            done: "stopped",
        };
        let kill = KillVm {
            signal: self.signal,
        };
        self.each
            .run(settings, words, async |client, vm| {
                client.kill_vm(vm, &kill).await
            })
            .await
    }
}

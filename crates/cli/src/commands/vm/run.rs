//! `banger vm run`

use banger_client::Client;
use banger_proto::api::VmState;
use clap::Args;

use super::create::{VmArgs, create, vm_of};
use super::exec::request;
use crate::args::{ExecArgs, Quiet};
use crate::failure::Outcome;
use crate::progress::{Display, Verbosity};
use crate::session::Session;
use crate::settings::Settings;
use crate::signals::Signals;

const EXAMPLES: &str = "\
Examples:
  banger vm run                                   a shell in a fresh VM, which is kept
  banger vm run --name devbox --memory 8G         the same, with a name and more memory
  banger vm run --rm -- uname -a                  one command, and nothing left behind
  banger vm run --rm --timeout 10m -- make test   at most ten minutes, else status 124
  banger vm run --rm -- sha256sum < disk.img      input and output are passed as they are

The VM stays when the command ends, unless --rm is given; then it is deleted however banger
ends. In a shell, Ctrl-C goes to the guest. Otherwise the first Ctrl-C goes to the guest's
command, and a second one gives it up.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Run {
    #[command(flatten)]
    vm: VmArgs,
    /// Delete the VM at the end, also after Ctrl-C or if banger is killed
    #[arg(long)]
    rm: bool,
    #[command(flatten)]
    quiet: Quiet,
    #[command(flatten)]
    exec: ExecArgs,
}

impl Run {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let mut signals = Signals::listen()?;
        let request = request(&self.exec);
        let client = signals.or(settings.connect()).await?;
        // Held to the end of this process, whatever that is: the daemon deletes the VM then.
        let lease = match self.rm {
            true => Some(signals.or(client.lease()).await?),
            false => None,
        };
        let display = Display::new(settings.ui, Verbosity::from_quiet(self.quiet.quiet));
        let id = lease.as_ref().map(|lease| lease.id().clone());
        let operation =
            create(&client, &self.vm.request(false, id), &display, &mut signals).await?;
        let vm = vm_of(&operation);
        let session = Session {
            vm: &vm,
            request,
            limit: self.exec.timeout,
        };
        let outcome = session.run(&client, &mut signals).await;
        if !self.rm {
            remind(&client, &vm, &display).await;
        }
        outcome
    }
}

/// Says how to come back to a VM that is kept.
async fn remind(client: &Client, vm: &str, display: &Display) {
    // Without an answer it was deleted meanwhile, or the daemon is gone and the outcome says so.
    if let Ok(kept) = client.vm(vm).await {
        display.note(&reminder(kept.name.as_str(), kept.state));
    }
}

fn reminder(vm: &str, state: VmState) -> String {
    let (fact, way_back) = match state {
        VmState::Running => ("goes on running".to_owned(), ("stop:     ", "stop")),
        state => (format!("is kept ({state})"), ("start:    ", "start")),
    };
    format!(
        "VM `{vm}` {fact}\n  come back: banger vm exec {vm}\n  {} banger vm {} {vm}\n  delete:    banger vm delete {vm}",
        way_back.0, way_back.1
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_vm_says_how_to_come_back_stop_and_delete() {
        insta::assert_snapshot!(reminder("calm-otter", VmState::Running), @r"
        VM `calm-otter` goes on running
          come back: banger vm exec calm-otter
          stop:      banger vm stop calm-otter
          delete:    banger vm delete calm-otter
        ");
        insta::assert_snapshot!(reminder("calm-otter", VmState::Stopped), @r"
        VM `calm-otter` is kept (stopped)
          come back: banger vm exec calm-otter
          start:     banger vm start calm-otter
          delete:    banger vm delete calm-otter
        ");
    }
}

//! `banger vm list` and `banger vm ps`

use banger_client::Client;
use banger_proto::api::{Vm, VmState};
use clap::Args;
use jiff::Timestamp;

use crate::failure::{Failure, Outcome};
use crate::filter::Filters;
use crate::output::{print, print_json};
use crate::render::vm::vm_table;
use crate::settings::Settings;

const LIST_EXAMPLES: &str = "\
Examples:
  banger vm list
  banger vm list --json
  banger vm list --filter state=stopped --filter state=failed
  banger vm list --quiet --filter label=team=a --filter 'name=test-*'";

const PS_EXAMPLES: &str = "\
Examples:
  banger vm ps
  banger vm ps --filter image=debian-trixie
  banger vm ps --all --json";

#[derive(Debug, Args)]
#[command(after_help = LIST_EXAMPLES)]
pub(crate) struct List {
    /// List all VMs, as this command always does
    #[arg(long, short)]
    all: bool,
    #[command(flatten)]
    form: Form,
}

#[derive(Debug, Args)]
#[command(after_help = PS_EXAMPLES)]
pub(crate) struct Ps {
    /// List also VMs that do not run
    #[arg(long, short)]
    all: bool,
    #[command(flatten)]
    form: Form,
}

/// Which VMs are printed, and what of each.
#[derive(Debug, Args)]
struct Form {
    #[command(flatten)]
    filters: Filters,
    /// Print the API's objects as JSON
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Print only names
    #[arg(long, short)]
    quiet: bool,
}

impl List {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let client = settings.connect().await?;
        self.form.print(client.vms().await?)?;
        self.form.warn(settings, &client).await
    }
}

impl Ps {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let client = settings.connect().await?;
        let mut vms = client.vms().await?;
        vms.retain(|vm| self.all || !is_down(vm.state));
        self.form.print(vms)?;
        self.form.warn(settings, &client).await
    }
}

/// Whether nothing of a VM runs.
pub(super) fn is_down(state: VmState) -> bool {
    match state {
        VmState::Created | VmState::Stopped | VmState::Failed => true,
        VmState::Starting | VmState::Running | VmState::Paused | VmState::Stopping => false,
    }
}

impl Form {
    fn print(&self, mut vms: Vec<Vm>) -> Result<(), Failure> {
        vms.retain(|vm| self.filters.match_vm(vm));
        if self.json {
            print_json(&vms)?;
        } else if self.quiet {
            let names: String = vms.iter().map(|vm| format!("{}\n", vm.name)).collect();
            print(&names)?;
        } else {
            print(&vm_table(&vms, Timestamp::now()))?;
        }
        Ok(())
    }

    /// Says in one line that the daemon has warnings, such as of a database that was damaged: VMs
    /// may be missing from the list.
    async fn warn(&self, settings: &Settings, client: &Client) -> Outcome {
        let warnings = client.daemon_status().await?.warnings;
        match (&warnings[..], self.quiet) {
            ([], _) | (_, true) => {}
            ([only], false) => settings.ui.warn(only),
            ([first, others @ ..], false) => settings.ui.warn(&format!(
                "{first} (and {} more: `banger daemon status` lists them)",
                others.len()
            )),
        }
        Ok(0)
    }
}

//! `banger vm list` and `banger vm ps`

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
        self.form.print(vms(settings).await?)
    }
}

impl Ps {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let mut vms = vms(settings).await?;
        vms.retain(|vm| self.all || !is_down(vm.state));
        self.form.print(vms)
    }
}

/// Whether nothing of a VM runs.
pub(super) fn is_down(state: VmState) -> bool {
    match state {
        VmState::Created | VmState::Stopped | VmState::Failed => true,
        VmState::Starting | VmState::Running | VmState::Paused | VmState::Stopping => false,
    }
}

async fn vms(settings: &Settings) -> Result<Vec<Vm>, Failure> {
    Ok(settings.connect().await?.vms().await?)
}

impl Form {
    fn print(&self, mut vms: Vec<Vm>) -> Outcome {
        vms.retain(|vm| self.filters.match_vm(vm));
        if self.json {
            print_json(&vms)?;
        } else if self.quiet {
            let names: String = vms.iter().map(|vm| format!("{}\n", vm.name)).collect();
            print(&names)?;
        } else {
            print(&vm_table(&vms, Timestamp::now()))?;
        }
        Ok(0)
    }
}

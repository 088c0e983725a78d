//! `banger vm prune`

use std::collections::HashMap;

use banger_client::{Client, ClientError};
use banger_proto::api::{Operation, Vm};
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::id::VmId;
use clap::Args;
use jiff::Timestamp;

use super::each::{Each, Words};
use super::list::is_down;
use crate::args::{Json, Quiet};
use crate::failure::{Failure, Outcome};
use crate::filter::Filters;
use crate::output::{print, print_json};
use crate::render::vm::vm_table;
use crate::settings::Settings;
use crate::signals::Signals;
use crate::ui::Ui;

const EXAMPLES: &str = "\
Examples:
  banger vm prune --dry-run
  banger vm prune --filter label=team=a --filter 'name=test-*'
  banger vm prune --yes

Deletes the VMs that are created, stopped or failed, with their disks. It asks first; without
a terminal it needs --yes.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Prune {
    #[command(flatten)]
    filters: Filters,
    /// Do not ask
    #[arg(long, short, visible_alias = "force")]
    yes: bool,
    /// Only list what would be deleted
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    json: Json,
    #[command(flatten)]
    quiet: Quiet,
}

impl Prune {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let mut signals = Signals::listen()?;
        let client = signals.or(settings.connect()).await?;
        let mut vms = client.vms().await?;
        vms.retain(|vm| is_down(vm.state) && self.filters.match_vm(vm));
        if self.dry_run || vms.is_empty() {
            return self.show(settings, &vms);
        }
        if !self.yes {
            drop(signals);
            if !confirmed(&vms, settings.ui)? {
                settings.ui.note("nothing is deleted");
                return Ok(0);
            }
            signals = Signals::listen()?;
        }
        // By now a name may be another VM's.
        let ids: HashMap<&str, &VmId> = vms.iter().map(|vm| (vm.name.as_str(), &vm.id)).collect();
        let each = Each {
            vms: vms.iter().map(|vm| vm.name.to_string()).collect(),
            json: self.json,
            quiet: self.quiet,
        };
        let words = Words {
            going_on: "deleting",
            done: "deleted",
        };
        each.run_with(
            settings,
            &client,
            &mut signals,
            words,
            async |client, vm| delete_leftover(client, vm, ids[vm]).await,
        )
        .await
    }

    fn show(&self, settings: &Settings, vms: &[Vm]) -> Outcome {
        match (self.json.json, vms) {
            (true, _) => print_json(vms)?,
            (false, []) => settings.ui.note("there is nothing to prune"),
            (false, _) => print(&vm_table(vms, Timestamp::now()))?,
        }
        Ok(0)
    }
}

/// Looks again before it deletes: somebody may have started or deleted it while the user
/// thought.
async fn delete_leftover(client: &Client, vm: &str, id: &VmId) -> Result<Operation, ClientError> {
    let conflict = |words| Err(ClientError::Api(ApiError::new(ErrorKind::Conflict, words)));
    match client.vm(id.as_str()).await {
        Ok(now) if is_down(now.state) => client.delete_vm(id.as_str()).await,
        Ok(now) => conflict(format!("VM `{vm}` is {} by now, so it stays", now.state)),
        Err(ClientError::Api(error)) if error.kind == ErrorKind::NotFound => {
            conflict(format!("VM `{vm}` is deleted already"))
        }
        Err(error) => Err(error),
    }
}

fn counted(vms: &[Vm]) -> String {
    match vms.len() {
        1 => "1 VM".to_owned(),
        count => format!("{count} VMs"),
    }
}

/// Shows what would go, and asks.
fn confirmed(vms: &[Vm], ui: Ui) -> Result<bool, Failure> {
    if !ui.can_ask() {
        let error = ApiError::new(
            ErrorKind::Precondition,
            format!(
                "there is no terminal to ask on whether {} may be deleted",
                counted(vms)
            ),
        );
        return Err(error
            .with_hint("`--yes` deletes without asking, `--dry-run` lists what would go")
            .into());
    }
    ui.confirm(&format!(
        "{}delete {} with all that is on disk?",
        vm_table(vms, Timestamp::now()),
        counted(vms)
    ))
}

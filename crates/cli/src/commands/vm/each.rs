//! What commands that take several VMs share: each VM is an operation of its own, all go on at
//! once, and those that can be done are done.

use banger_client::{Client, ClientError};
use banger_proto::api::Operation;
use banger_proto::exit;
use clap::Args;
use clap_complete::ArgValueCandidates;
use futures_util::future::join_all;

use crate::args::{Json, Quiet};
use crate::complete;
use crate::failure::{Failure, Outcome};
use crate::follow;
use crate::near;
use crate::output::print_json;
use crate::progress::{Detail, Display, Verbosity};
use crate::settings::Settings;
use crate::signals::Signals;

/// Which VMs, and how it is told.
#[derive(Debug, Args)]
pub(super) struct Each {
    /// The VMs: names, ids, or the first 4 or more digits of ids
    #[arg(required = true, value_name = "VM", value_parser = crate::args::vm_selector, add = ArgValueCandidates::new(complete::vm_names))]
    pub(super) vms: Vec<String>,
    #[command(flatten)]
    pub(super) json: Json,
    #[command(flatten)]
    pub(super) quiet: Quiet,
}

/// The words for what is done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words {
    /// `stopping`
    pub(super) going_on: &'static str,
    /// `stopped`
    pub(super) done: &'static str,
}

impl Each {
    /// Asks `begin` for an operation on each VM and follows them all. Those that can be done
    /// are done; what cannot is said, and makes the command fail. A signal ends the command;
    /// what has begun goes on in the daemon.
    pub(super) async fn run<B>(self, settings: &Settings, words: Words, begin: B) -> Outcome
    where
        B: AsyncFn(&Client, &str) -> Result<Operation, ClientError>,
    {
        let mut signals = Signals::listen()?;
        let client = signals.or(settings.connect()).await?;
        self.run_with(settings, &client, &mut signals, words, begin)
            .await
    }

    /// As [`Each::run`], for who is connected.
    pub(super) async fn run_with<B>(
        mut self,
        settings: &Settings,
        client: &Client,
        signals: &mut Signals,
        words: Words,
        begin: B,
    ) -> Outcome
    where
        B: AsyncFn(&Client, &str) -> Result<Operation, ClientError>,
    {
        let mut seen = std::collections::HashSet::new();
        self.vms.retain(|vm| seen.insert(vm.clone()));
        let display = Display::new(settings.ui, Verbosity::from_quiet(self.quiet.quiet));
        let detail = match self.vms.len() {
            1 => Detail::Stages,
            _ => Detail::Title,
        };
        let each = self.vms.iter().map(async |vm| {
            let title = format!("{} VM `{vm}`", words.going_on);
            let result = match begin(client, vm).await {
                Ok(operation) => {
                    let progress = display.operation(&title, detail);
                    follow::to_end(client, &operation, progress).await
                }
                Err(error) => Err(near::explained(client, vm, error).await),
            };
            match &result {
                Ok(_) => display.note(&format!("VM `{vm}` is {}", words.done)),
                Err(error) => display.error(error),
            }
            result.ok()
        });
        let ended = tokio::select! {
            ended = join_all(each) => ended,
            signal = signals.next() => {
                display.note("the daemon goes on with it; `banger operation list` tells how far it is");
                return Ok(signal.status());
            }
        };
        let all = ended.iter().all(Option::is_some);
        if self.json.json {
            print_json(&ended.into_iter().flatten().collect::<Vec<_>>())?;
        }
        match all {
            true => Ok(0),
            false => Err(Failure::silent(exit::FAILURE)),
        }
    }
}

//! `banger vm wait`: follows the daemon's events, so that no state is missed however short it
//! is, and none is asked for again and again.

use std::collections::BTreeMap;
use std::time::Duration;

use banger_client::{Client, ClientError};
use banger_proto::api::{Happened, Vm, VmState};
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::exit;
use banger_proto::id::VmId;
use clap::{Args, ValueEnum};
use clap_complete::ArgValueCandidates;
use tokio::time::{sleep, timeout};

use crate::args::Quiet;
use crate::complete;
use crate::failure::{Failure, Outcome};
use crate::near;
use crate::render::time::took;
use crate::settings::Settings;
use crate::signals::Signals;

/// How often the agent of a running VM that does not answer is asked again. Health is nothing
/// that happens in the daemon, so there is no event to await.
const HEALTH_EVERY: Duration = Duration::from_secs(1);

const EXAMPLES: &str = "\
Examples:
  banger vm wait calm-otter
  banger vm wait calm-otter devbox --for stopped --timeout 5m
  banger vm wait calm-otter --for deleted

The exit status is 124 if it takes longer than --timeout, and 1 if a VM cannot get there any
more: it failed, or it was deleted.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Wait {
    /// The VMs: names, ids, or the first 4 or more digits of ids
    #[arg(required = true, value_name = "VM", value_parser = crate::args::vm_selector, add = ArgValueCandidates::new(complete::vm_names))]
    vms: Vec<String>,
    /// What to wait for; a healthy VM runs and its agent answers
    #[arg(long = "for", value_name = "STATE", value_enum, default_value_t = Wanted::Running)]
    wanted: Wanted,
    /// Wait at most this time (such as 30s, 5m, 1h)
    #[arg(long, value_name = "TIME", value_parser = crate::duration::parse)]
    timeout: Option<Duration>,
    #[command(flatten)]
    quiet: Quiet,
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Wanted {
    Running,
    Stopped,
    Paused,
    Failed,
    Deleted,
    Healthy,
}

impl Wanted {
    fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Paused => "paused",
            Self::Failed => "failed",
            Self::Deleted => "deleted",
            Self::Healthy => "healthy",
        }
    }

    /// Whether a VM in this state is there. A healthy one must also answer.
    fn is_reached(self, state: VmState) -> bool {
        match self {
            Self::Running | Self::Healthy => state == VmState::Running,
            Self::Stopped => state == VmState::Stopped,
            Self::Paused => state == VmState::Paused,
            Self::Failed => state == VmState::Failed,
            Self::Deleted => false,
        }
    }

    /// Whether a VM that failed cannot get there by itself.
    fn is_lost_by_failure(self) -> bool {
        match self {
            Self::Running | Self::Paused | Self::Healthy => true,
            Self::Stopped | Self::Failed | Self::Deleted => false,
        }
    }
}

impl Wait {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let mut signals = Signals::listen()?;
        let mut waiting = Waiting {
            settings,
            wanted: self.wanted,
            quiet: self.quiet.quiet,
            left: BTreeMap::new(),
            last_event: None,
        };
        let work = waiting.until_all_are_there(&self.vms);
        let result = match self.timeout {
            None => signals.or(work).await.map(Some),
            Some(limit) => {
                let bounded = async { Ok::<_, Failure>(timeout(limit, work).await.ok()) };
                match signals.or(bounded).await? {
                    Some(result) => result.map(Some),
                    None => Ok(None),
                }
            }
        };
        match result? {
            Some(()) => Ok(0),
            None => Err(waiting.timed_out(self.timeout.unwrap_or_default())),
        }
    }
}

/// VMs on their way.
struct Waiting<'a> {
    settings: &'a Settings,
    wanted: Wanted,
    quiet: bool,
    /// Those that are not there yet, with what they are called.
    left: BTreeMap<VmId, String>,
    /// The id of the last event that was seen.
    last_event: Option<String>,
}

impl Waiting<'_> {
    async fn until_all_are_there(&mut self, vms: &[String]) -> Result<(), Failure> {
        let client = self.settings.connect().await?;
        // What happens behind the newest event is not missed, however long the looks take.
        let mut past = client.daemon_events(false, None).await?;
        while let Some(event) = past.next().await? {
            self.last_event = Some(event.id);
        }
        for vm in vms {
            match client.vm(vm).await {
                Ok(vm) => {
                    self.left.insert(vm.id.clone(), vm.name.to_string());
                    self.look(&client, &vm).await?;
                }
                Err(ClientError::Api(error))
                    if error.kind == ErrorKind::NotFound && self.wanted == Wanted::Deleted =>
                {
                    self.note(&format!("there is no VM `{vm}`"));
                }
                Err(error) => return Err(near::explain(&client, vm, error).await),
            }
        }
        if !self.left.is_empty() {
            self.watch(&client).await?;
        }
        while !self.left.is_empty() {
            // The daemon ended; what happened meanwhile is asked of the next one.
            let client = self.settings.connect_to_next().await?;
            self.look_at_all(&client).await?;
            self.watch(&client).await?;
        }
        Ok(())
    }

    /// Takes events until all VMs are there, or the daemon ends.
    async fn watch(&mut self, client: &Client) -> Result<(), Failure> {
        let last = self.last_event.as_deref();
        let mut events = client.daemon_events(true, last).await?;
        while !self.left.is_empty() {
            let event = match events.next().await {
                Ok(Some(event)) => event,
                Ok(None) | Err(ClientError::Transport { .. }) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            self.last_event = Some(event.id);
            match event.what {
                Happened::VmState {
                    vm, state, failure, ..
                } if self.left.contains_key(&vm) => {
                    self.is_in(client, &vm, state, failure).await?;
                }
                Happened::VmDeleted { vm, .. } => self.is_deleted(&vm)?,
                Happened::Missed => self.look_at_all(client).await?,
                Happened::VmState { .. }
                | Happened::VmCreated { .. }
                | Happened::VmWarning { .. }
                | Happened::VmChanged { .. }
                | Happened::Operation { .. } => {}
            }
        }
        Ok(())
    }

    async fn look_at_all(&mut self, client: &Client) -> Result<(), Failure> {
        let ids: Vec<VmId> = self.left.keys().cloned().collect();
        for id in ids {
            match client.vm(id.as_str()).await {
                Ok(vm) => self.look(client, &vm).await?,
                Err(ClientError::Api(error)) if error.kind == ErrorKind::NotFound => {
                    self.is_deleted(&id)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn look(&mut self, client: &Client, vm: &Vm) -> Result<(), Failure> {
        self.is_in(client, &vm.id, vm.state, vm.failure.clone())
            .await
    }

    async fn is_in(
        &mut self,
        client: &Client,
        vm: &VmId,
        state: VmState,
        failure: Option<ApiError>,
    ) -> Result<(), Failure> {
        let name = self.left[vm].clone();
        if state == VmState::Failed && self.wanted.is_lost_by_failure() {
            return Err(lost(&name, self.wanted, failure).into());
        }
        if !self.wanted.is_reached(state) {
            return Ok(());
        }
        if self.wanted == Wanted::Healthy && !answers(client, vm).await? {
            return Ok(());
        }
        self.is_there(vm, &name);
        Ok(())
    }

    fn is_deleted(&mut self, vm: &VmId) -> Result<(), Failure> {
        match self.left.get(vm).cloned() {
            None => Ok(()),
            Some(name) if self.wanted == Wanted::Deleted => {
                self.is_there(vm, &name);
                Ok(())
            }
            Some(name) => {
                let message = format!(
                    "VM `{name}` was deleted before it was {}",
                    self.wanted.word()
                );
                Err(ApiError::new(ErrorKind::NotFound, message).into())
            }
        }
    }

    fn is_there(&mut self, vm: &VmId, name: &str) {
        self.left.remove(vm);
        self.note(&format!("VM `{name}` is {}", self.wanted.word()));
    }

    fn note(&self, text: &str) {
        if !self.quiet {
            self.settings.ui.note(text);
        }
    }

    fn timed_out(&self, limit: Duration) -> Failure {
        let names: Vec<String> = self.left.values().map(|name| format!("`{name}`")).collect();
        let vms = match names.len() {
            0 => "the daemon did not answer".to_owned(),
            1 => format!("VM {} is not {}", names[0], self.wanted.word()),
            _ => format!("VMs {} are not {}", names.join(", "), self.wanted.word()),
        };
        let error = ApiError::new(ErrorKind::Timeout, format!("{vms} after {}", took(limit)));
        Failure::with_status(
            error.with_hint("`banger vm list` shows the states"),
            exit::TIMEOUT,
        )
    }
}

/// Waits until a running VM's agent answers; false if it runs no more.
async fn answers(client: &Client, vm: &VmId) -> Result<bool, Failure> {
    loop {
        let health = client.vm_health(vm.as_str()).await?;
        if health.healthy || health.state != VmState::Running {
            return Ok(health.healthy);
        }
        sleep(HEALTH_EVERY).await;
    }
}

fn lost(name: &str, wanted: Wanted, failure: Option<ApiError>) -> ApiError {
    let message = format!("VM `{name}` failed, so it does not get {}", wanted.word());
    let mut error = ApiError::new(ErrorKind::Failed, message);
    if let Some(failure) = failure {
        error.causes.push(failure.message);
        error.causes.extend(failure.causes);
        error.hint = failure.hint;
    }
    match error.hint {
        Some(_) => error,
        None => error.with_hint(format!(
            "run `banger vm show {name}` and `banger vm logs {name}`"
        )),
    }
}

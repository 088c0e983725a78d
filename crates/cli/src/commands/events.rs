//! `banger events`

use banger_client::{Client, ClientError, DaemonEvents};
use banger_proto::api::{Event, Happened};
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::id::VmId;
use clap::Args;
use clap_complete::ArgValueCandidates;

use crate::args::Json;
use crate::complete;
use crate::failure::{Failure, Outcome};
use crate::output::{print, print_json_line};
use crate::render::event::event_line;
use crate::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  banger events
  banger events -f
  banger events -f --vm calm-otter --json

What is remembered is printed first, oldest first: the last thousand or so since the daemon
started. JSON is one object a line. Whoever comes back names the last event seen: --since-id.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Events {
    /// Go on printing what happens
    #[arg(long, short)]
    follow: bool,
    /// Only what happens to this VM: its name, its id, or the first 4 or more digits of its id
    #[arg(long, value_name = "VM", value_parser = crate::args::vm_selector, add = ArgValueCandidates::new(complete::vm_names))]
    vm: Option<String>,
    /// Only events behind the one with this id
    #[arg(long, value_name = "ID")]
    since_id: Option<String>,
    #[command(flatten)]
    json: Json,
}

impl Events {
    pub(crate) async fn run(mut self, settings: &Settings) -> Outcome {
        let client = settings.connect().await?;
        let only = match &self.vm {
            Some(vm) => Some(Only::find(&client, vm).await?),
            None => None,
        };
        let mut events = self.ask(&client).await?;
        loop {
            match events.next().await {
                Ok(Some(event)) => self.tell(event, only.as_ref())?,
                Ok(None) if !self.follow => return Ok(0),
                Ok(None) | Err(ClientError::Transport { .. }) => {
                    let client = settings.connect_to_next().await;
                    let client = client.map_err(|error| self.with_where_it_goes_on(error))?;
                    events = self.ask(&client).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn ask(&self, client: &Client) -> Result<DaemonEvents, Failure> {
        let last = self.since_id.as_deref();
        Ok(client.daemon_events(self.follow, last).await?)
    }

    fn with_where_it_goes_on(&self, error: ApiError) -> ApiError {
        match &self.since_id {
            Some(id) => error.with_hint(format!(
                "`banger events -f --since-id {id}` goes on from here"
            )),
            None => error,
        }
    }

    fn tell(&mut self, event: Event, only: Option<&Only>) -> Result<(), Failure> {
        if only.is_none_or(|only| only.is_meant(&event.what)) {
            match self.json.json {
                true => print_json_line(&event)?,
                false => print(&event_line(&event))?,
            }
        }
        self.since_id = Some(event.id);
        Ok(())
    }
}

/// The one VM whose events are wanted. It may be gone, and only its name or id be known.
#[derive(Debug)]
struct Only {
    id: Option<VmId>,
    typed: String,
}

impl Only {
    async fn find(client: &Client, typed: &str) -> Result<Self, Failure> {
        let id = match client.vm(typed).await {
            Ok(vm) => Some(vm.id),
            Err(ClientError::Api(error)) if error.kind == ErrorKind::NotFound => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Self {
            id,
            typed: typed.to_owned(),
        })
    }

    fn is_meant(&self, what: &Happened) -> bool {
        let (vm, name) = match what {
            Happened::VmCreated { vm, vm_name }
            | Happened::VmState { vm, vm_name, .. }
            | Happened::VmWarning { vm, vm_name, .. }
            | Happened::VmChanged { vm, vm_name }
            | Happened::VmDeleted { vm, vm_name, .. } => (Some(vm), Some(vm_name)),
            Happened::Operation { vm, vm_name, .. } => (vm.as_ref(), vm_name.as_ref()),
            // It may have been this VM's.
            Happened::Missed => return true,
        };
        match &self.id {
            Some(id) => vm == Some(id),
            None => {
                name.is_some_and(|name| name.as_str() == self.typed)
                    || vm.is_some_and(|vm| vm.as_str() == self.typed)
            }
        }
    }
}

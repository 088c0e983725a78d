//! `banger operation`

use banger_client::Client;
use banger_proto::api::{Operation as Work, OperationEvent, OperationState};
use banger_proto::error::{ApiError, ErrorKind};
use clap::{Args, Subcommand};
use clap_complete::ArgValueCandidates;
use jiff::Timestamp;

use crate::args::{Json, Quiet};
use crate::complete;
use crate::failure::{Failure, Outcome};
use crate::follow;
use crate::output::{print, print_json};
use crate::progress::{Detail, Display, Verbosity};
use crate::render::operation::{operation_table, operation_text, title};
use crate::settings::Settings;
use crate::signals::Signals;

const EXAMPLES: &str = "\
Examples:
  banger operation list
  banger operation show 3f9c2a71
  banger operation follow 3f9c2a71
  banger operation cancel 3f9c2a71
  banger operation logs 3f9c2a71

Creating, starting, stopping, changing and deleting VMs are operations, and so is getting an
image or an engine. They go on in the daemon when the command that began them is gone. An
operation is named by its id or the beginning of it. Those that ended are remembered for a while.";

#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(crate) enum Operation {
    /// List operations: those that go on, and those that ended not long ago
    #[command(visible_alias = "ls")]
    List(List),
    /// Show everything about an operation
    Show(Show),
    /// Follow an operation to its end; its failure is the command's
    Follow(Follow),
    /// Call an operation off, and wait until it has cleaned up
    Cancel(Cancel),
    /// Print what an operation's commands print, such as those of a build, until it ends
    Logs(Logs),
}

#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    json: Json,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The operation: its id, or the beginning of it
    #[arg(add = ArgValueCandidates::new(complete::operation_ids))]
    operation: String,
    #[command(flatten)]
    json: Json,
}

#[derive(Debug, Args)]
pub(crate) struct Follow {
    /// The operation: its id, or the beginning of it
    #[arg(add = ArgValueCandidates::new(complete::operation_ids))]
    operation: String,
    #[command(flatten)]
    json: Json,
    #[command(flatten)]
    quiet: Quiet,
}

#[derive(Debug, Args)]
pub(crate) struct Cancel {
    /// The operation: its id, or the beginning of it
    #[arg(add = ArgValueCandidates::new(complete::operation_ids))]
    operation: String,
    #[command(flatten)]
    json: Json,
    #[command(flatten)]
    quiet: Quiet,
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// The operation: its id, or the beginning of it
    #[arg(add = ArgValueCandidates::new(complete::operation_ids))]
    operation: String,
}

impl Operation {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let mut signals = Signals::listen()?;
        let client = signals.or(settings.connect()).await?;
        let work = async {
            match self {
                Self::List(command) => command.run(&client).await,
                Self::Show(command) => command.run(&client, settings).await,
                Self::Follow(command) => command.run(&client, settings).await,
                Self::Cancel(command) => command.run(&client, settings).await,
                Self::Logs(command) => command.run(&client).await,
            }
        };
        signals.or(work).await?;
        Ok(0)
    }
}

impl List {
    async fn run(self, client: &Client) -> Result<(), Failure> {
        let operations = client.operations().await?;
        match self.json.json {
            true => print_json(&operations),
            false => print(&operation_table(&operations, Timestamp::now())),
        }
    }
}

impl Show {
    async fn run(self, client: &Client, settings: &Settings) -> Result<(), Failure> {
        let operation = find(client, &self.operation).await?;
        match self.json.json {
            true => print_json(&operation),
            false => print(&operation_text(
                &operation,
                Timestamp::now(),
                settings.ui.data_style,
            )),
        }
    }
}

impl Follow {
    async fn run(self, client: &Client, settings: &Settings) -> Result<(), Failure> {
        let operation = find(client, &self.operation).await?;
        let display = Display::new(settings.ui, Verbosity::from_quiet(self.quiet.quiet));
        let progress = display.operation(&title(&operation), Detail::Stages);
        let operation = follow::to_end(client, &operation, progress).await?;
        display.note(&format!("{}: done", title(&operation)));
        match self.json.json {
            true => print_json(&operation),
            false => Ok(()),
        }
    }
}

impl Cancel {
    async fn run(self, client: &Client, settings: &Settings) -> Result<(), Failure> {
        let operation = find(client, &self.operation).await?;
        let title = title(&operation);
        if operation.state != OperationState::Running {
            let message = format!("`{title}` has ended, so it cannot be called off");
            return Err(ApiError::new(ErrorKind::Conflict, message).into());
        }
        let mut events = client.events(&operation.id).await?;
        client.cancel_operation(&operation.id).await?;
        let operation = events.end().await?;
        let display = Display::new(settings.ui, Verbosity::from_quiet(self.quiet.quiet));
        match (operation.state, &operation.error) {
            (OperationState::Succeeded, _) => {
                let message = format!("`{title}` was done before it could be called off");
                return Err(ApiError::new(ErrorKind::Conflict, message).into());
            }
            (_, Some(error)) if error.kind != ErrorKind::Cancelled => {
                return Err(error.clone().into());
            }
            _ => display.note(&format!("{title}: called off")),
        }
        match self.json.json {
            true => print_json(&operation),
            false => Ok(()),
        }
    }
}

impl Logs {
    async fn run(self, client: &Client) -> Result<(), Failure> {
        let operation = find(client, &self.operation).await?;
        let mut events = client.events(&operation.id).await?;
        loop {
            match events.next().await? {
                OperationEvent::Output { text } => print(&text)?,
                OperationEvent::Done(_) => return Ok(()),
                OperationEvent::Stage { .. }
                | OperationEvent::StageDone(_)
                | OperationEvent::Progress(_) => {}
            }
        }
    }
}

/// The operation with this id, or the only one whose id begins so.
async fn find(client: &Client, typed: &str) -> Result<Work, Failure> {
    if let Ok(id) = typed.parse() {
        return Ok(client.operation(&id).await?);
    }
    let mut operations = client.operations().await?;
    operations.retain(|operation| operation.id.as_str().starts_with(typed));
    match operations.len() {
        1 => Ok(operations.remove(0)),
        0 => Err(
            ApiError::new(ErrorKind::NotFound, format!("no operation `{typed}`"))
                .with_hint("`banger operation list` lists them")
                .into(),
        ),
        count => Err(ApiError::new(
            ErrorKind::Invalid,
            format!("`{typed}` begins the ids of {count} operations"),
        )
        .with_hint("write more of its digits")
        .into()),
    }
}

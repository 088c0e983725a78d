//! The slow things that are done to a VM beside the task that owns it.

use std::time::Duration;

use banger_engine::Machine;
use banger_proto::agent::Shutdown;
use banger_proto::error::{ApiError, ErrorKind};
use tokio::sync::watch;

use super::{RELINK_LIMIT, Status};
use crate::guest::{self, Guest};
use crate::host::Host;
use crate::store::VmRow;
use crate::vm::machine_end;
use crate::vm::stage::StageError;
use crate::vm::start::{self, Artifacts, Disks, Start, StartError, Started};
use crate::vm::take_down::{Extent, LeftOver, Tried, take_down};

/// How long a guest may take to shut down before its power is cut, with hardware
/// virtualisation.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(15);
/// What the guest itself is told, so that it ends in order before its power is cut.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);
/// The first and the longest pause between attempts at a new link, unless a new agent is seen.
const RELINK_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));
/// The longest attempt: an agent that has not answered by then has lost the question.
const RELINK_ATTEMPT_MAX: Duration = Duration::from_secs(10 * 60);

/// A start did not come about.
#[derive(Debug)]
pub(super) struct NotStarted {
    /// Why.
    pub(super) error: ApiError,
    /// What of it could not be released.
    pub(super) left_over: Option<LeftOver>,
}

/// Brings a VM up, or releases what `extent` names.
pub(super) async fn boot(start: Start, extent: Extent) -> Result<Box<Started>, Box<NotStarted>> {
    match start.boot().await {
        Ok(started) if !start.cancel.is_cancelled() => Ok(Box::new(started)),
        // Called off in its last moment.
        Ok(_) => Err(give_up(&start, extent, None).await),
        Err(error) => Err(give_up(&start, extent, Some(error)).await),
    }
}

/// Brings up a VM that has been there before. What an earlier failure left over would be in
/// the way.
pub(super) async fn boot_again(start: Start) -> Result<Box<Started>, Box<NotStarted>> {
    match release(&start.host, &start.row, Extent::Running).await {
        Ok(()) => boot(start, Extent::Running).await,
        Err(left_over) => Err(Box::new(NotStarted {
            error: left_over.to_api("start", Tried::Stop, &start.row.name),
            left_over: Some(left_over),
        })),
    }
}

/// Makes all that a VM needs before its first start, or releases it.
pub(super) async fn prepare(start: Start) -> Result<Artifacts, Box<NotStarted>> {
    match start.prepare().await {
        Ok(artifacts) if !start.cancel.is_cancelled() => Ok(artifacts),
        Ok(_) => Err(give_up(&start, Extent::Everything, None).await),
        Err(error) => Err(give_up(&start, Extent::Everything, Some(error)).await),
    }
}

/// Releases what `extent` names, by name.
///
/// # Errors
/// What is left over.
pub(super) async fn release(host: &Host, row: &VmRow, extent: Extent) -> Result<(), LeftOver> {
    let layout = host.layout(&row.id, row.slot);
    take_down(host, &layout, row.engine, extent).await
}

async fn give_up(start: &Start, extent: Extent, error: Option<StartError>) -> Box<NotStarted> {
    let mut api = describe(start, error);
    let released = release(&start.host, &start.row, extent).await;
    if let Err(left_over) = &released {
        left_over.explain(&mut api);
    }
    Box::new(NotStarted {
        error: api,
        left_over: released.err(),
    })
}

/// The error of a start, as the user gets it.
fn describe(start: &Start, error: Option<StartError>) -> ApiError {
    let name = &start.row.name;
    let verb = match start.disks {
        Disks::New => "create",
        Disks::Existing => "start",
    };
    let Some(error) = error.filter(|_| !start.cancel.is_cancelled()) else {
        return ApiError::new(
            ErrorKind::Cancelled,
            format!("{verb} of VM `{name}` was called off"),
        );
    };
    let message = format!("could not {verb} VM `{name}`");
    let mut api = ApiError::new(error.error.kind(), message).caused_by(&error);
    api.hint = error.error.hint();
    if let StageError::Connect(_) | StageError::Configure(_) = &error.error {
        api.hint = Some(match start.disks {
            Disks::Existing => format!("see how far the guest came: `banger vm logs {name}`"),
            Disks::New => "the VM is gone with its failed create; to look into it, create it with \
                           `--no-start`, then `banger vm start` and `banger vm logs` it"
                .to_owned(),
        });
    }
    if let StageError::Connect(connect) = &error.error {
        api.causes
            .extend(machine_end::last_words(connect.console()));
    }
    api
}

/// Asks the guest to go down and waits for its machine to end, both within limits.
pub(super) async fn shut_down(
    host: &Host,
    row: &VmRow,
    machine: &dyn Machine,
    guest: Option<Guest>,
) {
    let patience = host.engines.patience(row.engine);
    let orderly = async {
        let asked = match guest {
            Some(guest) => {
                let grace = SHUTDOWN_GRACE * patience;
                let grace_ms = u64::try_from(grace.as_millis()).expect("some seconds fit");
                let asked = guest.shutdown(Shutdown { grace_ms }).await;
                asked.map_err(|error| error.to_string())
            }
            // Without a link the power button is all there is.
            None => machine
                .power_button()
                .await
                .map_err(|error| error.to_string()),
        };
        match asked {
            Ok(()) => drop(machine.exited().await),
            Err(error) => tracing::warn!(error, "the guest takes no orders: its power is cut"),
        }
    };
    if tokio::time::timeout(SHUTDOWN_LIMIT * patience, orderly)
        .await
        .is_err()
    {
        tracing::warn!("the guest did not shut down in time: its power is cut");
    }
}

/// The link that is being made anew, unless that takes too long or the machine has ended.
pub(super) async fn soon_linked(
    machine: &dyn Machine,
    mut status: watch::Receiver<Status>,
) -> Option<Guest> {
    let linked = async {
        let linked = status.wait_for(|status| status.guest.is_some()).await;
        linked.ok()?.guest.clone()
    };
    tokio::select! {
        linked = tokio::time::timeout(RELINK_LIMIT, linked) => linked.ok()?,
        _ = machine.exited() => None,
    }
}

/// Goes on with a shutdown that the daemon before this one began.
pub(super) async fn resume_shut_down(host: &Host, row: &VmRow, machine: &dyn Machine) {
    let limit = SHUTDOWN_GRACE * host.engines.patience(row.engine);
    // The agent that shuts down already answers no more: then its machine ends.
    let guest = guest::connect(machine, limit).await;
    let guest = guest.inspect_err(|error| tracing::debug!(%error, "no link"));
    shut_down(host, row, machine, guest.ok()).await;
}

/// Links to the agent of a running machine, however long that takes: while the machine lives
/// there is hope. `None` when it has ended.
///
/// A guest whose agent says nothing costs next to nothing: attempts become long, and a new one
/// begins at once when the engine sees an agent come.
pub(super) async fn relink(host: &Host, row: &VmRow, machine: &dyn Machine) -> Option<Guest> {
    let artifacts = Artifacts::of_existing(host, row);
    let mut limit = RELINK_LIMIT * host.engines.patience(row.engine);
    let (mut pause, longest) = RELINK_PAUSE;
    let mut signs = machine.signs();
    loop {
        let came = signs.borrow_and_update().agent_came;
        let attempt = async {
            let guest = guest::connect(machine, limit).await?;
            start::configure(host, row, &artifacts, &guest).await?;
            Ok::<_, StageError>(guest)
        };
        match attempt.await {
            Ok(guest) => {
                tracing::info!("linked to the agent again");
                return Some(guest);
            }
            Err(error) => tracing::debug!(%error, "no link yet"),
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = longest.min(pause * 2),
            Ok(_) = signs.wait_for(|signs| signs.agent_came != came) => pause = RELINK_PAUSE.0,
            _ = machine.exited() => return None,
        }
        limit = RELINK_ATTEMPT_MAX.min(limit * 2);
    }
}

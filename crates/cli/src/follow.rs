//! Follows operations to their end.

use std::time::Duration;

use banger_client::{Client, ClientError, Events};
use banger_proto::api::{Operation, OperationEvent, OperationKind, OperationState};
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::id::OperationId;
use tokio::time::{Instant, sleep_until};

use crate::failure::Failure;
use crate::progress::Progress;
use crate::signals::{Signal, Signals};

/// How long an operation that was called off may take to clean up before we stop watching.
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(30);

/// Follows an operation to its end. A signal ends this process; the operation goes on.
///
/// # Errors
/// The operation failed, or the daemon went away.
pub(crate) async fn to_end(
    client: &Client,
    operation: &Operation,
    mut progress: Progress,
) -> Result<Operation, ApiError> {
    let mut events = client.events(&operation.id).await?;
    loop {
        let event = events.next().await?;
        progress.event(&event);
        if let OperationEvent::Done(operation) = event {
            return verdict(*operation);
        }
    }
}

/// That an operation was called off: by which signal, and until when its clean-up is waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CalledOff {
    signal: Signal,
    deadline: Instant,
}

impl CalledOff {
    /// Just now.
    pub(crate) fn by(signal: Signal) -> Self {
        Self {
            signal,
            deadline: Instant::now() + CLEAN_UP_LIMIT,
        }
    }
}

/// Follows an operation to its end. A signal calls it off, and its clean-up is waited for; a
/// second signal ends the waiting.
///
/// # Errors
/// The operation failed or was called off, or the daemon went away.
pub(crate) async fn or_call_off(
    client: &Client,
    operation: &Operation,
    progress: Progress,
    signals: &mut Signals,
) -> Result<Operation, Failure> {
    Following::begin(client, operation, progress)
        .await?
        .finish(signals)
        .await
}

/// As [`or_call_off`], of an operation that a signal has called off already.
pub(crate) async fn called_off(
    client: &Client,
    operation: &Operation,
    progress: Progress,
    signals: &mut Signals,
    by: CalledOff,
) -> Result<Operation, Failure> {
    let mut following = Following::begin(client, operation, progress).await?;
    following.call_off(by).await?;
    following.finish(signals).await
}

/// An operation that a signal may call off.
struct Following<'a> {
    client: &'a Client,
    id: OperationId,
    events: Events,
    progress: Progress,
    called_off: Option<CalledOff>,
}

impl<'a> Following<'a> {
    async fn begin(
        client: &'a Client,
        operation: &Operation,
        progress: Progress,
    ) -> Result<Self, Failure> {
        Ok(Self {
            client,
            id: operation.id.clone(),
            events: client.events(&operation.id).await?,
            progress,
            called_off: None,
        })
    }

    async fn finish(mut self, signals: &mut Signals) -> Result<Operation, Failure> {
        loop {
            tokio::select! {
                event = self.events.next() => {
                    let event = event?;
                    self.progress.event(&event);
                    if let OperationEvent::Done(operation) = event {
                        return self.concluded(*operation);
                    }
                }
                signal = signals.next() => match self.called_off {
                    Some(_) => return Err(Failure::silent(signal.status())),
                    None => self.call_off(CalledOff::by(signal)).await?,
                },
                () = passed(self.called_off.map(|called_off| called_off.deadline)) => {
                    let status = self.called_off.map(|called_off| called_off.signal.status());
                    return Err(Failure { status, ..clean_up_goes_on().into() });
                }
            }
        }
    }

    async fn call_off(&mut self, by: CalledOff) -> Result<(), Failure> {
        self.progress.note("called off, cleaning up");
        self.called_off = Some(by);
        match self.client.cancel_operation(&self.id).await {
            // It has just ended: the event says how.
            Err(ClientError::Api(error)) if error.kind == ErrorKind::Conflict => Ok(()),
            result => Ok(result?),
        }
    }

    fn concluded(self, operation: Operation) -> Result<Operation, Failure> {
        match self.called_off {
            None => Ok(verdict(operation)?),
            Some(called_off) => {
                if operation.state == OperationState::Cancelled {
                    self.progress.conclude(left_behind(operation.kind));
                }
                Err(ended_after(called_off.signal, operation))
            }
        }
    }
}

/// Waits until `deadline`; for ever without one.
async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// What there is after an operation was called off.
fn left_behind(kind: OperationKind) -> &'static str {
    match kind {
        OperationKind::CreateVm => "cancelled; nothing of the VM is left",
        OperationKind::StartVm | OperationKind::RestartVm => "cancelled; the VM keeps its disks",
        _ => "cancelled",
    }
}

fn verdict(operation: Operation) -> Result<Operation, ApiError> {
    match operation.state {
        OperationState::Failed | OperationState::Cancelled => {
            Err(operation.error.unwrap_or_else(|| {
                ApiError::new(
                    ErrorKind::Failed,
                    "the operation failed and did not say why",
                )
                .with_hint("run `banger daemon logs`")
            }))
        }
        OperationState::Running | OperationState::Succeeded => Ok(operation),
    }
}

/// How the command ends once a called-off operation has ended, which may have been just
/// before it heard of that.
fn ended_after(signal: Signal, operation: Operation) -> Failure {
    match (operation.state, operation.error) {
        (OperationState::Succeeded, _) => match operation.vm_name {
            Some(name) => Failure::with_status(
                ApiError::new(
                    ErrorKind::Cancelled,
                    format!("VM `{name}` was ready before it was called off"),
                )
                .with_hint(format!("`banger vm delete {name}` deletes it")),
                signal.status(),
            ),
            None => Failure::silent(signal.status()),
        },
        (_, Some(error)) if error.kind != ErrorKind::Cancelled => {
            Failure::with_status(error, signal.status())
        }
        _ => Failure::silent(signal.status()),
    }
}

fn clean_up_goes_on() -> ApiError {
    ApiError::new(
        ErrorKind::Timeout,
        format!(
            "the clean-up takes longer than {} s; the daemon goes on with it",
            CLEAN_UP_LIMIT.as_secs()
        ),
    )
    .with_hint("run `banger vm list`, and `banger daemon logs` if something is left over")
}

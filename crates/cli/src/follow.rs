//! Follows operations to their end.

use std::time::Duration;

use banger_client::{Client, ClientError};
use banger_proto::api::{Operation, OperationEvent, OperationState};
use banger_proto::error::{ApiError, ErrorKind};
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

/// Follows an operation to its end. A signal calls it off, and its clean-up is waited for; a
/// second signal ends the waiting.
///
/// # Errors
/// The operation failed or was called off, or the daemon went away.
pub(crate) async fn or_call_off(
    client: &Client,
    operation: &Operation,
    mut progress: Progress,
    signals: &mut Signals,
) -> Result<Operation, Failure> {
    let mut events = client.events(&operation.id).await?;
    let mut called_off: Option<(Signal, Instant)> = None;
    let done = loop {
        let deadline = called_off.map(|(_, deadline)| deadline);
        tokio::select! {
            event = events.next() => {
                let event = event?;
                progress.event(&event);
                if let OperationEvent::Done(operation) = event {
                    break *operation;
                }
            }
            signal = signals.next() => {
                if called_off.is_some() {
                    return Err(Failure::silent(signal.status()));
                }
                progress.note("called off, cleaning up");
                called_off = Some((signal, Instant::now() + CLEAN_UP_LIMIT));
                match client.cancel_operation(&operation.id).await {
                    // It has just ended: the event says how.
                    Err(ClientError::Api(error)) if error.kind == ErrorKind::Conflict => {}
                    result => result?,
                }
            }
            () = passed(deadline) => {
                let status = called_off.map(|(signal, _)| signal.status());
                return Err(Failure { status, ..clean_up_goes_on().into() });
            }
        }
    };
    drop(progress);
    match called_off {
        None => Ok(verdict(done)?),
        Some((signal, _)) => Err(ended_after(signal, done)),
    }
}

/// Waits until `deadline`; for ever without one.
async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn verdict(operation: Operation) -> Result<Operation, ApiError> {
    match operation.state {
        OperationState::Failed => Err(operation.error.unwrap_or_else(|| {
            ApiError::new(
                ErrorKind::Failed,
                "the operation failed and did not say why",
            )
            .with_hint("run `banger daemon logs`")
        })),
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

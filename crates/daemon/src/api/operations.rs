//! Operations: their state, their events, and calling them off.

use std::convert::Infallible;

use axum::extract::{Path, State};
use axum::response::Response;
use axum::response::sse::{Event, KeepAlive, Sse};
use banger_proto::api::Operation;
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::id::OperationId;
use futures_util::Stream;
use futures_util::stream::unfold;

use super::Api;
use super::exchange::{Failure, Json, accepted};
use crate::operations::CancelError;

pub async fn list(State(api): State<Api>) -> Json<Vec<Operation>> {
    Json(api.fleet.host().operations.list())
}

pub async fn show(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<Operation>, Failure> {
    let operation = parse(&id).and_then(|id| api.fleet.host().operations.get(&id));
    Ok(Json(operation.ok_or_else(|| unknown(&id))?))
}

pub async fn cancel(State(api): State<Api>, Path(id): Path<String>) -> Result<Response, Failure> {
    let parsed = parse(&id).ok_or_else(|| unknown(&id))?;
    match api.fleet.host().operations.cancel(&parsed) {
        Ok(operation) => Ok(accepted(operation)),
        Err(CancelError::Unknown) => Err(unknown(&id)),
        Err(error @ CancelError::GoesOn) => {
            let message = format!("could not call off operation `{id}`");
            Err(ApiError::new(ErrorKind::Conflict, message)
                .caused_by(&error)
                .into())
        }
    }
}

pub async fn events(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Failure> {
    let follower = parse(&id).and_then(|id| api.fleet.host().operations.follow(&id));
    let follower = follower.ok_or_else(|| unknown(&id))?;
    let events = unfold(follower, |mut follower| async {
        let event = follower.next().await?;
        let event = Event::default().json_data(event).expect("an event is JSON");
        Some((Ok(event), follower))
    });
    // A client behind a broken connection is noticed by the comments that keep it alive.
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

fn parse(id: &str) -> Option<OperationId> {
    id.parse().ok()
}

fn unknown(id: &str) -> Failure {
    ApiError::new(ErrorKind::NotFound, format!("there is no operation `{id}`"))
        .with_hint("operations are forgotten when the daemon ends, and old ones before")
        .into()
}

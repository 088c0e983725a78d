//! What happens in the daemon, as server-sent events
//! (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).

use std::convert::Infallible;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use banger_proto::api::LAST_EVENT_HEADER;
use banger_proto::error::{ApiError, ErrorKind};
use futures_util::Stream;
use futures_util::stream::unfold;
use serde::Deserialize;

use super::Api;
use super::exchange::Failure;

#[derive(Debug, Deserialize)]
pub struct Wanted {
    #[serde(default)]
    follow: bool,
}

pub async fn events(
    State(api): State<Api>,
    wanted: Result<Query<Wanted>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Failure> {
    let Query(wanted) = wanted.map_err(|error| {
        ApiError::new(ErrorKind::Invalid, "could not follow events").caused_by(&error)
    })?;
    let last = headers.get(LAST_EVENT_HEADER);
    // An id that is no text is none of ours, so that its sender has missed what there was.
    let last = last.map(|value| value.to_str().unwrap_or_default());
    let follower = api.fleet.host().events.follow(last);
    let follower = match wanted.follow {
        true => follower,
        false => follower.up_to_now(),
    };
    let events = unfold(follower, |mut follower| async {
        let event = follower.next().await?;
        let sent = Event::default().id(&event.id).json_data(&event);
        Some((Ok(sent.expect("an event is JSON")), follower))
    });
    // A client behind a broken connection is noticed by the comments that keep it alive.
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

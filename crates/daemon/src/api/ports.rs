//! Ports of guests.

use axum::Extension;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use banger_proto::api::Port;
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::id::RequestId;
use serde::Deserialize;

use super::Api;
use super::exchange::{Failure, Json};
use crate::fleet::refused;
use crate::reach::ports;
use crate::usage;
use crate::vm::lifecycle::Request;

#[derive(Debug, Deserialize)]
pub struct PortsQuery {
    /// Whether ports are asked if they are web servers.
    #[serde(default = "yes")]
    probe: bool,
}

fn yes() -> bool {
    true
}

pub async fn of_vm(
    State(api): State<Api>,
    Path(vm): Path<String>,
    Extension(id): Extension<RequestId>,
    wanted: Result<Query<PortsQuery>, QueryRejection>,
) -> Result<Json<Vec<Port>>, Failure> {
    let Query(PortsQuery { probe }) = wanted.map_err(|error| {
        let message = format!("could not list the ports of VM `{vm}`");
        ApiError::new(ErrorKind::Invalid, message).caused_by(&error)
    })?;
    let vm = api.fleet.find(&vm)?;
    let guest = vm.guest().await;
    let guest = guest.map_err(|error| refused(&vm, Request::Attach, &error))?;
    let guest = guest.for_request(&id);
    let listeners = guest.ports().await;
    let listeners = listeners.map_err(|error| usage::unanswered(&vm, &error))?;
    let mut found = ports::of(&api.fleet, &vm, listeners).await;
    if probe {
        ports::add_urls(&guest, &mut found).await;
    }
    Ok(Json(found))
}

//! VMs: requests go to the fleet, and answers come out of what the VMs' owners show.

use std::time::Duration;

use axum::Extension;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use banger_proto::api::{CreateVm, IDEMPOTENCY_HEADER, KillVm, SetVm, SshTarget, Vm, VmState};
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::id::RequestId;
use rustix::process::Signal;
use serde::Deserialize;
use tokio::time::timeout;

use super::Api;
use super::exchange::{Failure, Json, accepted};
use crate::usage;
use crate::vm::task::{Ask, Delete};

/// How long a guest may take to tell of itself before the rest is shown without that.
const GUEST_LIMIT: Duration = Duration::from_secs(2);

pub async fn list(State(api): State<Api>) -> Json<Vec<Vm>> {
    let vms = api.fleet.handles();
    Json(vms.iter().map(|vm| api.fleet.describe(vm)).collect())
}

#[derive(Debug, Deserialize)]
pub struct ShowQuery {
    /// With what the guest tells of itself.
    #[serde(default)]
    guest: bool,
}

pub async fn show(
    State(api): State<Api>,
    Path(vm): Path<String>,
    Extension(request_id): Extension<RequestId>,
    wanted: Result<Query<ShowQuery>, QueryRejection>,
) -> Result<Json<Vm>, Failure> {
    let Query(ShowQuery { guest }) = wanted.map_err(|error| {
        let message = format!("could not show VM `{vm}`");
        ApiError::new(ErrorKind::Invalid, message).caused_by(&error)
    })?;
    let vm = api.fleet.find(&vm)?;
    let mut shown = api.fleet.describe(&vm);
    if guest && shown.state == VmState::Running {
        let asked = timeout(GUEST_LIMIT, usage::health(&vm, &request_id)).await;
        shown.guest = asked.ok().and_then(|health| health.agent);
    }
    Ok(Json(shown))
}

pub async fn create(
    State(api): State<Api>,
    Extension(request_id): Extension<RequestId>,
    headers: HeaderMap,
    Json(request): Json<CreateVm>,
) -> Result<Response, Failure> {
    let key = headers
        .get(IDEMPOTENCY_HEADER)
        .and_then(|value| value.to_str().ok());
    let key = key.map(str::to_owned);
    // In a task of its own: a client that goes away must not leave a row without an owner.
    let creating =
        tokio::spawn(async move { api.fleet.create(request, key, Some(request_id)).await });
    let operation = creating.await.expect("creating a VM does not panic")?;
    Ok(accepted(operation))
}

pub async fn delete(
    api: State<Api>,
    vm: Path<String>,
    request_id: Extension<RequestId>,
    wanted: Result<Query<DeleteQuery>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(DeleteQuery { force }) = wanted.map_err(|error| {
        let message = format!("could not delete VM `{}`", *vm);
        ApiError::new(ErrorKind::Invalid, message).caused_by(&error)
    })?;
    let delete = match force {
        false => Delete::Once,
        true => Delete::UntilGone,
    };
    ask(api, vm, request_id, Ask::Delete(delete)).await
}

#[derive(Debug, Deserialize)]
pub struct DeleteQuery {
    /// Try again until nothing is left.
    #[serde(default)]
    force: bool,
}

pub async fn start(
    api: State<Api>,
    vm: Path<String>,
    request_id: Extension<RequestId>,
) -> Result<Response, Failure> {
    ask(api, vm, request_id, Ask::Start).await
}

pub async fn stop(
    api: State<Api>,
    vm: Path<String>,
    request_id: Extension<RequestId>,
) -> Result<Response, Failure> {
    ask(api, vm, request_id, Ask::Stop).await
}

pub async fn restart(
    api: State<Api>,
    vm: Path<String>,
    request_id: Extension<RequestId>,
) -> Result<Response, Failure> {
    ask(api, vm, request_id, Ask::Restart).await
}

pub async fn pause(
    api: State<Api>,
    vm: Path<String>,
    request_id: Extension<RequestId>,
) -> Result<Response, Failure> {
    ask(api, vm, request_id, Ask::Pause).await
}

pub async fn resume(
    api: State<Api>,
    vm: Path<String>,
    request_id: Extension<RequestId>,
) -> Result<Response, Failure> {
    ask(api, vm, request_id, Ask::Resume).await
}

pub async fn kill(
    api: State<Api>,
    vm: Path<String>,
    request_id: Extension<RequestId>,
    Json(request): Json<KillVm>,
) -> Result<Response, Failure> {
    let signal = match request.signal {
        None => Signal::KILL,
        Some(number) => Signal::from_named_raw(number).ok_or_else(|| {
            let mut error =
                ApiError::new(ErrorKind::Invalid, format!("could not kill VM `{}`", *vm));
            error
                .causes
                .push(format!("{number} is not the number of a signal"));
            error.with_hint("`kill -l` lists the signals with their numbers")
        })?,
    };
    ask(api, vm, request_id, Ask::Kill(signal)).await
}

pub async fn set(
    api: State<Api>,
    vm: Path<String>,
    request_id: Extension<RequestId>,
    Json(change): Json<SetVm>,
) -> Result<Response, Failure> {
    ask(api, vm, request_id, Ask::Set(Box::new(change))).await
}

async fn ask(
    State(api): State<Api>,
    Path(vm): Path<String>,
    Extension(request_id): Extension<RequestId>,
    ask: Ask,
) -> Result<Response, Failure> {
    Ok(accepted(api.fleet.ask(&vm, ask, Some(request_id)).await?))
}

pub async fn ssh_target(
    State(api): State<Api>,
    Path(vm): Path<String>,
) -> Result<Json<SshTarget>, Failure> {
    let vm = api.fleet.find(&vm)?;
    vm.touch();
    let host = api.fleet.host();
    Ok(Json(vm.look(|status| {
        let row = &status.row;
        SshTarget {
            name: row.name.clone(),
            user: "root".to_owned(),
            identity_file: host.user_key().display().to_string(),
            known_hosts_file: host
                .layout(&row.id, row.slot)
                .known_hosts
                .display()
                .to_string(),
        }
    })))
}

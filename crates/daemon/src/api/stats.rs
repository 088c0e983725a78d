//! What VMs use, and how they do.

use axum::Extension;
use axum::extract::{Path, State};
use banger_proto::api::{VmHealth, VmStats};
use banger_proto::id::RequestId;

use super::Api;
use super::exchange::{Failure, Json};
use crate::usage;

pub async fn of_vm(
    State(api): State<Api>,
    Path(vm): Path<String>,
    Extension(id): Extension<RequestId>,
) -> Result<Json<VmStats>, Failure> {
    let vm = api.fleet.find(&vm)?;
    Ok(Json(usage::of_vm(&api.fleet, &vm, &id).await))
}

pub async fn of_running(
    State(api): State<Api>,
    Extension(id): Extension<RequestId>,
) -> Json<Vec<VmStats>> {
    Json(usage::of_running(&api.fleet, &id).await)
}

pub async fn health(
    State(api): State<Api>,
    Path(vm): Path<String>,
    Extension(id): Extension<RequestId>,
) -> Result<Json<VmHealth>, Failure> {
    let vm = api.fleet.find(&vm)?;
    Ok(Json(usage::health(&vm, &id).await))
}

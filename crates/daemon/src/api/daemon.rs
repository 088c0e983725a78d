//! The daemon itself.

use axum::extract::State;
use axum::http::StatusCode;
use banger_proto::api::{DaemonStatus, Version};

use super::Api;
use super::exchange::Json;
use crate::vm::lifecycle::Phase;

pub async fn version() -> Json<Version> {
    Json(crate::version())
}

pub async fn status(State(api): State<Api>) -> Json<DaemonStatus> {
    let host = api.fleet.host();
    let handles = api.fleet.handles();
    let runs = |phase| phase == Phase::Running;
    let running = handles
        .iter()
        .filter(|vm| vm.look(|status| runs(status.row.phase)))
        .count();
    Json(DaemonStatus {
        version: banger_proto::VERSION.to_owned(),
        pid: std::process::id(),
        node: host.node.clone(),
        started_at: api.started.to_string(),
        socket: host.paths.socket().display().to_string(),
        state_dir: host.paths.state.display().to_string(),
        vms: u32::try_from(handles.len()).expect("there are fewer slots"),
        running: u32::try_from(running).expect("there are fewer slots"),
        warnings: host.warnings.all(),
    })
}

pub async fn stop(State(api): State<Api>) -> StatusCode {
    tracing::info!("asked to end");
    api.stop.cancel();
    StatusCode::ACCEPTED
}

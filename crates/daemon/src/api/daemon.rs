//! The daemon itself.

use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use banger_proto::api::{DaemonStatus, OperationKind, OperationState, Version};
use banger_proto::error::{ApiError, ErrorKind};
use futures_util::future::join_all;
use serde::Deserialize;
use tokio::time::timeout;

use super::Api;
use super::exchange::{Failure, Json};
use crate::vm::lifecycle::Phase;
use crate::vm::task::Handle;

/// How long what has just ended may look as if it went on: a client's end is seen a moment later.
const SETTLE: Duration = Duration::from_secs(1);

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
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    Json(DaemonStatus {
        version: banger_proto::VERSION.to_owned(),
        pid: std::process::id(),
        node: host.node.clone(),
        started_at: api.started.to_string(),
        socket: host.paths.socket().display().to_string(),
        state_dir: host.paths.state.display().to_string(),
        vms: u32::try_from(handles.len()).expect("there are fewer slots"),
        running: u32::try_from(running).expect("there are fewer slots"),
        operations: count(host.operations.running()),
        streams: count(handles.iter().map(Handle::streams).sum()),
        warnings: host.warnings.all(),
    })
}

#[derive(Debug, Deserialize)]
pub struct StopQuery {
    /// Not while the daemon's end would end something else.
    #[serde(default)]
    if_idle: bool,
}

pub async fn stop(
    State(api): State<Api>,
    wanted: Result<Query<StopQuery>, QueryRejection>,
) -> Result<StatusCode, Failure> {
    let Query(StopQuery { if_idle }) = wanted.map_err(|error| {
        ApiError::new(ErrorKind::Invalid, "could not stop the daemon").caused_by(&error)
    })?;
    if if_idle {
        let handles = api.fleet.handles();
        let unheld = join_all(handles.iter().map(Handle::unheld));
        // What goes on for longer is work.
        let _ = timeout(SETTLE, unheld).await;
    }
    let work = AtWork::of(&api);
    if if_idle && let Some(told) = work.in_words() {
        let mut error = ApiError::new(ErrorKind::Conflict, "the daemon is at work");
        error.causes.push(format!("its end would end {told}"));
        return Err(error
            .with_hint("wait until that is done, or `--force`; VMs go on running in any case")
            .into());
    }
    tracing::info!(
        operations = work.operations,
        streams = work.streams,
        "asked to end"
    );
    api.stop.cancel();
    Ok(StatusCode::ACCEPTED)
}

/// What ends with the daemon before it is done. Stops, deletes and the like are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AtWork {
    operations: u32,
    streams: u32,
    /// VMs that are deleted when their client, or the daemon, goes.
    leased: u32,
}

impl AtWork {
    fn of(api: &Api) -> Self {
        let handles = api.fleet.handles();
        let streams: usize = handles.iter().map(Handle::streams).sum();
        let leased = |vm: &&Handle| {
            vm.look(|status| status.row.lease.is_some() && status.row.phase != Phase::Deleting)
        };
        let running = api.fleet.host().operations.list().into_iter();
        let called_off = running.filter(|operation| {
            operation.state == OperationState::Running
                && match operation.kind {
                    OperationKind::CreateVm
                    | OperationKind::StartVm
                    | OperationKind::RestartVm
                    | OperationKind::PullImage
                    | OperationKind::PullKernel
                    | OperationKind::PromoteImage
                    | OperationKind::CommitVm
                    | OperationKind::BuildImage
                    | OperationKind::InstallEngine => true,
                    OperationKind::StopVm
                    | OperationKind::KillVm
                    | OperationKind::PauseVm
                    | OperationKind::ResumeVm
                    | OperationKind::SetVm
                    | OperationKind::DeleteVm
                    | OperationKind::UninstallEngine => false,
                }
        });
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Self {
            operations: count(called_off.count()),
            streams: count(streams),
            leased: count(handles.iter().filter(leased).count()),
        }
    }

    /// `None`: nothing does.
    fn in_words(self) -> Option<String> {
        let parts = [
            (self.operations, "operation", "operations"),
            (
                self.streams,
                "open stream (a command, a shell or a copy)",
                "open streams (commands, shells, copies)",
            ),
            (self.leased, "VM of `vm run --rm`", "VMs of `vm run --rm`"),
        ];
        let parts: Vec<String> = parts
            .into_iter()
            .filter(|(count, ..)| *count > 0)
            .map(|(count, one, many)| match count {
                1 => format!("1 {one}"),
                _ => format!("{count} {many}"),
            })
            .collect();
        let (last, before) = parts.split_last()?;
        Some(match before {
            [] => last.clone(),
            before => format!("{} and {last}", before.join(", ")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_with_the_daemon_is_counted() {
        let told = |operations, streams, leased| {
            let work = AtWork {
                operations,
                streams,
                leased,
            };
            work.in_words().unwrap_or_else(|| "nothing".to_owned())
        };
        let lines = [told(0, 0, 0), told(1, 0, 0), told(0, 1, 1), told(2, 3, 4)];
        insta::assert_snapshot!(lines.join("\n"), @"
        nothing
        1 operation
        1 open stream (a command, a shell or a copy) and 1 VM of `vm run --rm`
        2 operations, 3 open streams (commands, shells, copies) and 4 VMs of `vm run --rm`
        ");
    }
}

//! Objects of the daemon's HTTP API, version 1.
//!
//! | method and path                    | request                | answer                         |
//! |------------------------------------|------------------------|--------------------------------|
//! | `GET /v1/version`                  | -                      | [`Version`]                    |
//! | `GET /v1/daemon`                   | -                      | [`DaemonStatus`]               |
//! | `POST /v1/daemon/stop?if_idle=`    | -                      | 202; 409: it is at work        |
//! | `GET /v1/events?follow=`           | `Last-Event-ID`        | server-sent [`Event`]s         |
//! | `POST /v1/leases`                  | upgrade                | [`LeaseGrant`] line, then held |
//! | `POST /v1/vms`                     | [`CreateVm`]           | 202 [`Operation`]              |
//! | `GET /v1/vms`                      | -                      | [`Vm`] list                    |
//! | `GET /v1/vms/{vm}?guest=`          | -                      | [`Vm`]                         |
//! | `PATCH /v1/vms/{vm}`               | [`SetVm`]              | 202 [`Operation`]              |
//! | `DELETE /v1/vms/{vm}?force=`       | -                      | 202 [`Operation`]              |
//! | `POST /v1/vms/{vm}/start`          | -                      | 202 [`Operation`]              |
//! | `POST /v1/vms/{vm}/stop`           | -                      | 202 [`Operation`]              |
//! | `POST /v1/vms/{vm}/restart`        | -                      | 202 [`Operation`]              |
//! | `POST /v1/vms/{vm}/kill`           | [`KillVm`]             | 202 [`Operation`]              |
//! | `POST /v1/vms/{vm}/pause`          | -                      | 202 [`Operation`]              |
//! | `POST /v1/vms/{vm}/resume`         | -                      | 202 [`Operation`]              |
//! | `POST /v1/vms/{vm}/exec`           | upgrade                | [`crate::frame`] stream        |
//! | `POST /v1/vms/{vm}/ssh`            | upgrade                | bytes: an SSH connection       |
//! | `GET /v1/vms/{vm}/ssh-target`      | -                      | [`SshTarget`]                  |
//! | `GET /v1/vms/{vm}/logs?log=&follow=&tail=` | -              | text                           |
//! | `GET /v1/vms/{vm}/stats`           | -                      | [`VmStats`]                    |
//! | `GET /v1/vms/{vm}/health`          | -                      | [`VmHealth`]                   |
//! | `GET /v1/vms/{vm}/ports?probe=`    | -                      | [`Port`] list                  |
//! | `GET /v1/vms/{vm}/files?path=`     | -                      | tar stream of the guest's path |
//! | `PUT /v1/vms/{vm}/files?path=`     | tar stream             | 204; unpacked below the path   |
//! | `POST /v1/vms/{vm}/commit`         | [`CommitVm`]           | 202 [`Operation`]              |
//! | `GET /v1/stats`                    | -                      | [`VmStats`] list: what runs    |
//! | `GET /v1/images`                   | -                      | [`Image`] list                 |
//! | `POST /v1/images/{name}/pull`      | -                      | 202 [`Operation`]              |
//! | `POST /v1/bundles/image`           | [`PullBundle`]         | 202 [`Operation`]              |
//! | `POST /v1/images/build`            | [`BuildImage`]         | 202 [`Operation`]              |
//! | `POST /v1/images/register`         | [`RegisterImage`]      | [`Image`]                      |
//! | `POST /v1/images/import?name=&sha256=` | bundle             | 202 [`Operation`]              |
//! | `GET /v1/images/{image}/export`    | -                      | bundle                         |
//! | `POST /v1/images/{image}/promote`  | -                      | 202 [`Operation`]              |
//! | `POST /v1/images/{image}/rename`   | [`RenameImage`]        | [`Image`]                      |
//! | `DELETE /v1/images/{image}`        | -                      | 204                            |
//! | `POST /v1/images/prune?dry_run=`   | -                      | [`Image`] list: what went      |
//! | `POST /v1/kernels/{name}/import?sha256=` | bundle           | 202 [`Operation`]              |
//! | `POST /v1/kernels/{name}/pull`     | -                      | 202 [`Operation`]              |
//! | `POST /v1/bundles/kernel`          | [`PullBundle`]         | 202 [`Operation`]              |
//! | `POST /v1/cache/prune?dry_run=`    | -                      | [`CachePart`] list             |
//! | `GET /v1/catalog?ask=`             | -                      | [`Catalog`]                    |
//! | `DELETE /v1/kernels/{name}`        | -                      | 204                            |
//! | `GET /v1/kernels`                  | -                      | [`Kernel`] list                |
//! | `GET /v1/engines`                  | -                      | [`Engine`] list                |
//! | `GET /v1/engines/{engine}`         | -                      | [`Engine`]                     |
//! | `POST /v1/engines/{engine}/install` | [`InstallEngine`]     | 202 [`Operation`]              |
//! | `PUT /v1/engines/{engine}/install?sha256=` | a release, or its program | 202 [`Operation`]   |
//! | `DELETE /v1/engines/{engine}/install` | -                   | 202 [`Operation`]              |
//! | `GET /v1/operations`               | -                      | [`Operation`] list             |
//! | `GET /v1/operations/{id}`          | -                      | [`Operation`]                  |
//! | `GET /v1/operations/{id}/events`   | -                      | server-sent [`OperationEvent`]s |
//! | `DELETE /v1/operations/{id}`       | -                      | 202: it is being called off    |
//! | `GET /metrics`                     | -                      | text for Prometheus            |
//!
//! `{vm}` is a name, an id, or an unambiguous beginning of an id. An upgrade is HTTP/1.1's
//! `Upgrade: banger-stream`, answered with 101. Errors are [`crate::error::ApiError`].

mod artifact;
mod daemon;
mod engine;
mod event;
mod operation;
mod port;
mod stats;
mod vm;

pub use artifact::*;
pub use daemon::*;
pub use engine::*;
pub use event::*;
pub use operation::*;
pub use port::*;
pub use stats::*;
pub use vm::*;

/// The token of the `Upgrade` header.
pub const UPGRADE_TOKEN: &str = "banger-stream";
/// Header with a key under which a repeated create returns the first one's operation.
pub const IDEMPOTENCY_HEADER: &str = "idempotency-key";
/// Header with the id of the last event that a client has seen
/// (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).
pub const LAST_EVENT_HEADER: &str = "last-event-id";

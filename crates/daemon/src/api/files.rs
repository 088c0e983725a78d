//! Files of a guest as tar streams, out of it and into it. The daemon passes the bytes on and
//! opens nothing: what the paths mean, the agent decides ([`banger_proto::agent`]).

use std::io;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, BodyDataStream};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use banger_proto::agent::FILE_KIND_HEADER;
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::id::RequestId;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{poll_fn, unfold};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::Api;
use super::exchange::Failure;
use crate::fleet::refused;
use crate::guest::{FileStream, Guest, RequestError};
use crate::vm::lifecycle::Request;
use crate::vm::task::{Handle, Use};

/// How long a guest may neither take nor give a byte before the transfer is given up. A
/// client may take as long as it likes.
const STALL_LIMIT: Duration = Duration::from_secs(60);
/// How long the rest of an archive is read that the guest has refused: the client reads the
/// answer when it has sent all, and who hangs up earlier takes its chance to read it away.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// Pieces that wait for the guest.
const QUEUE: usize = 4;

#[derive(Debug, Deserialize)]
pub struct Wanted {
    path: String,
}

pub async fn read(
    State(api): State<Api>,
    Path(vm): Path<String>,
    Extension(id): Extension<RequestId>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Failure> {
    let transfer = Transfer::begin(&api, &vm, &id, wanted, "read").await?;
    let opened = transfer.guest.read_files(&transfer.path).await;
    let (kind, files) = opened.map_err(|error| transfer.failed(&error))?;
    let using = transfer.using;
    let files = unstalled(files).inspect(move |_| {
        // The VM is in use for as long as there is an archive to be read.
        let _ = &using;
    });
    let mut response = Body::from_stream(files).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/x-tar"),
    );
    // Absent with the agent of an older version.
    if let Some(kind) = kind.and_then(|kind| HeaderValue::from_str(&kind).ok()) {
        headers.insert(FILE_KIND_HEADER, kind);
    }
    Ok(response)
}

pub async fn write(
    State(api): State<Api>,
    Path(vm): Path<String>,
    Extension(id): Extension<RequestId>,
    wanted: Result<Query<Wanted>, QueryRejection>,
    body: Body,
) -> Result<StatusCode, Failure> {
    let mut body = body.into_data_stream();
    let written = async {
        let transfer = Transfer::begin(&api, &vm, &id, wanted, "write").await?;
        let sent = send(&transfer.guest, &transfer.path, &mut body).await;
        sent.map_err(|error| transfer.failed(&error))
    };
    let written: Result<(), ApiError> = written.await;
    if written.is_err() {
        let rest = async { while let Some(Ok(_)) = body.next().await {} };
        // Whatever is left behind the limit is cut off with the connection.
        let _ = timeout(DRAIN_LIMIT, rest).await;
    }
    written?;
    Ok(StatusCode::NO_CONTENT)
}

/// A transfer between a client and a guest.
struct Transfer {
    vm: Handle,
    guest: Guest,
    path: String,
    verb: &'static str,
    using: Use,
}

impl Transfer {
    async fn begin(
        api: &Api,
        vm: &str,
        id: &RequestId,
        wanted: Result<Query<Wanted>, QueryRejection>,
        verb: &'static str,
    ) -> Result<Self, ApiError> {
        let Query(Wanted { path }) = wanted.map_err(|error| {
            ApiError::new(ErrorKind::Invalid, format!("could not {verb} files")).caused_by(&error)
        })?;
        let vm = api.fleet.find(vm)?;
        let using = vm.hold();
        let guest = vm.guest().await;
        let guest = guest.map_err(|error| refused(&vm, Request::Attach, &error))?;
        Ok(Self {
            guest: guest.for_request(id),
            vm,
            path,
            verb,
            using,
        })
    }

    fn failed(&self, error: &RequestError) -> ApiError {
        let Self { vm, path, verb, .. } = self;
        let name = vm.name();
        let message = format!("could not {verb} `{path}` in VM `{name}`");
        let failed = ApiError::new(error.kind(), message).caused_by(error);
        match error {
            RequestError::Refused { status, .. } if *status == NO_SPACE => {
                failed.with_hint(format!(
                    "free some space in the VM, or give it more: `banger vm set {name} --disk-size`"
                ))
            }
            RequestError::Refused { .. } => failed,
            _ => failed.with_hint(format!("see `banger vm logs {name}`")),
        }
    }
}

/// The agent's status for a full disk.
const NO_SPACE: u16 = StatusCode::INSUFFICIENT_STORAGE.as_u16();

/// Has the guest unpack the archive in `body`.
async fn send(guest: &Guest, path: &str, body: &mut BodyDataStream) -> Result<(), RequestError> {
    let (sender, mut receiver) = mpsc::channel(QUEUE);
    let pieces = poll_fn(move |cx| receiver.poll_recv(cx));
    let mut writing = std::pin::pin!(guest.write_files(path, pieces));
    tokio::select! {
        biased;
        written = &mut writing => return written,
        fed = feed(body, sender) => fed?,
    }
    timeout(STALL_LIMIT, writing)
        .await
        .unwrap_or(Err(stalled()))
}

/// Passes an archive on to its end, or until nobody takes it any more.
async fn feed(
    body: &mut BodyDataStream,
    sender: mpsc::Sender<io::Result<Bytes>>,
) -> Result<(), RequestError> {
    while let Some(piece) = body.next().await {
        let sent = sender.send(piece.map_err(io::Error::other));
        match timeout(STALL_LIMIT, sent).await {
            Ok(Ok(())) => {}
            // Why, the answer tells.
            Ok(Err(_)) => return Ok(()),
            Err(_) => return Err(stalled()),
        }
    }
    Ok(())
}

/// The archive, which breaks off when the guest gives nothing for too long.
fn unstalled(
    files: FileStream,
) -> impl futures_util::Stream<Item = io::Result<Bytes>> + Send + 'static {
    unfold(Some(files), |files| async {
        let mut files = files?;
        match timeout(STALL_LIMIT, files.next()).await {
            Ok(piece) => Some((piece?, Some(files))),
            Err(_) => Some((Err(stalled().into()), None)),
        }
    })
}

fn stalled() -> RequestError {
    RequestError::Timeout {
        seconds: STALL_LIMIT.as_secs(),
    }
}

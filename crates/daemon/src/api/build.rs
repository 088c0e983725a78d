//! Images that are made of VMs: of one that is stopped, or of one that is made for it.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, State};
use axum::response::Response;
use banger_image::Taken;
use banger_proto::api::{BuildImage, CommitVm, OperationKind};
use banger_proto::error::ApiError;
use banger_proto::id::RequestId;
use tokio_util::sync::CancellationToken;

use super::Api;
use super::exchange::{Failure, Json, accepted};
use crate::build;
use crate::capture::{self, Errand};
use crate::operations::{Subject, Work};

pub async fn commit(
    State(api): State<Api>,
    Path(vm): Path<String>,
    Extension(request_id): Extension<RequestId>,
    Json(wanted): Json<CommitVm>,
) -> Result<Response, Failure> {
    let vm = api.fleet.find(&vm)?;
    let (id, name) = vm.look(|status| (status.row.id.clone(), status.row.name.clone()));
    let message = format!("could not make the image `{}` of VM `{name}`", wanted.name);
    let taken = match wanted.replace {
        true => Taken::Superseded,
        false => Taken::Keeps,
    };
    // What is known to fail is refused before anything is made.
    let (images, image) = (api.fleet.host().images.clone(), wanted.name.clone());
    let admitted = crate::blocking(move || images.admit_name(&image, taken)).await;
    admitted.map_err(|error| {
        let mut api = ApiError::new(error.kind(), &*message).caused_by(&error);
        api.hint = error.hint();
        api
    })?;
    let work = api.fleet.host().operations.begin(Subject {
        kind: OperationKind::CommitVm,
        vm: Some((id, name.clone())),
        request_id: Some(request_id.clone()),
        reason: None,
    });
    let operation = work.operation();
    let fleet = Arc::clone(&api.fleet);
    begin(&api, work, request_id, async move |errand| {
        let source = format!("VM `{name}`");
        let image = wanted.name;
        capture::capture(&fleet, &vm, image, taken, source, &errand, &message).await
    });
    Ok(accepted(operation))
}

pub async fn build(
    State(api): State<Api>,
    Extension(request_id): Extension<RequestId>,
    Json(wanted): Json<BuildImage>,
) -> Result<Response, Failure> {
    build::check(&wanted)?;
    let work = api.fleet.host().operations.begin(Subject {
        kind: OperationKind::BuildImage,
        vm: None,
        request_id: Some(request_id.clone()),
        reason: None,
    });
    let operation = work.operation();
    let (fleet, id) = (Arc::clone(&api.fleet), work.id());
    begin(&api, work, request_id, async move |errand| {
        build::build(&fleet, &id, wanted, &errand).await
    });
    Ok(accepted(operation))
}

/// Does the work of an operation beside the request, until it is called off or the daemon ends.
fn begin<F>(
    api: &Api,
    work: Work,
    request_id: RequestId,
    make: impl FnOnce(Errand) -> F + Send + 'static,
) where
    F: Future<Output = Result<(), ApiError>> + Send + 'static,
{
    let errand = Errand {
        report: work.reporter(),
        cancel: CancellationToken::new(),
        request_id: Some(request_id),
    };
    let (cancel, cancelled) = (errand.cancel.clone(), work.cancelled());
    api.fleet.host().pulls.begin(|ends| async move {
        let making = make(errand);
        tokio::pin!(making);
        let result = tokio::select! {
            result = &mut making => result,
            () = either(&cancelled, &ends) => {
                cancel.cancel();
                making.await
            }
        };
        work.end(result);
    });
}

async fn either(one: &CancellationToken, other: &CancellationToken) {
    tokio::select! {
        () = one.cancelled() => (),
        () = other.cancelled() => (),
    }
}

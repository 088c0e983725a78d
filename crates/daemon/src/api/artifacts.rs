//! Images and kernels.

use axum::Extension;
use axum::extract::{Path, State};
use axum::response::Response;
use banger_image::{ImageError, KernelError, Reporter, Store};
use banger_proto::api::{Image, Kernel, OperationKind};
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::id::RequestId;
use banger_proto::name::ArtifactName;

use super::Api;
use super::exchange::{Failure, Json, accepted};
use crate::operations::{StageReporter, Subject};

pub async fn images(State(api): State<Api>) -> Result<Json<Vec<Image>>, Failure> {
    let store = api.fleet.host().images.clone();
    let listed = crate::blocking(move || store.images()).await;
    let manifests = listed.map_err(|error| store_failure("list images", &error))?;
    Ok(Json(manifests.iter().map(Into::into).collect()))
}

pub async fn kernels(State(api): State<Api>) -> Result<Json<Vec<Kernel>>, Failure> {
    let store = api.fleet.host().images.clone();
    let listed = crate::blocking(move || store.kernels()).await;
    let manifests = listed.map_err(|error| store_failure("list kernels", &error))?;
    Ok(Json(manifests.iter().map(Into::into).collect()))
}

pub async fn pull(
    State(api): State<Api>,
    Path(name): Path<String>,
    Extension(request_id): Extension<RequestId>,
) -> Result<Response, Failure> {
    let name: ArtifactName = name.parse().map_err(|error| {
        ApiError::new(ErrorKind::Invalid, "could not pull the image").caused_by(&error)
    })?;
    let host = api.fleet.host();
    let work = host.operations.begin(Subject {
        kind: OperationKind::PullImage,
        vm: None,
        request_id: Some(request_id),
    });
    let operation = work.operation();
    let (store, report, cancelled) = (host.images.clone(), work.reporter(), work.cancelled());
    host.pulls.begin(|ends| async move {
        let called_off = || {
            let message = format!("getting the image `{name}` was called off");
            ApiError::new(ErrorKind::Cancelled, message)
        };
        let result = tokio::select! {
            result = get(&store, &name, &report) => result,
            () = cancelled.cancelled() => Err(called_off()),
            () = ends.cancelled() => {
                let mut error = called_off();
                error.causes.push("the daemon ends".to_owned());
                Err(error)
            }
        };
        work.end(result);
    });
    Ok(accepted(operation))
}

/// Gets an image and the kernel it boots with.
async fn get(store: &Store, name: &ArtifactName, report: &StageReporter) -> Result<(), ApiError> {
    let sink = report.clone();
    let progress = Reporter::new(move |progress| sink.progress(progress));
    let could_not = |kind| ApiError::new(kind, format!("could not get the image `{name}`"));
    let from_image = |error: ImageError| {
        let mut api = could_not(error.kind()).caused_by(&error);
        api.hint = error.hint();
        api
    };
    let from_kernel = |error: KernelError| {
        let mut api = could_not(error.kind()).caused_by(&error);
        api.hint = error.hint();
        api
    };
    let mark = report.stage("image");
    let image = store
        .ensure_image(name, &progress)
        .await
        .map_err(from_image)?;
    mark.done();
    let mark = report.stage("kernel");
    let kernel = store
        .ensure_kernel(&image.manifest.kernel, &progress)
        .await
        .map_err(from_kernel)?;
    store.initramfs(&kernel).await.map_err(from_kernel)?;
    mark.done();
    Ok(())
}

fn store_failure(what: &str, error: &banger_image::StoreError) -> ApiError {
    let mut api = ApiError::new(error.kind(), format!("could not {what}")).caused_by(error);
    api.hint = error.hint();
    api
}

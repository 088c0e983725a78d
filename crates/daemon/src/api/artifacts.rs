//! Images and kernels.

use axum::Extension;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use banger_image::{ImageError, KernelError, PullRequest, Reporter, Shape, Store, UploadError};
use banger_proto::api::{Image, Kernel, OperationKind, PullImage};
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::id::RequestId;
use banger_proto::name::ArtifactName;
use banger_proto::size::ByteSize;
use futures_util::StreamExt as _;
use serde::Deserialize;

use super::Api;
use super::exchange::{Failure, Json, accepted};
use super::shelf;
use crate::operations::{StageReporter, Subject};

pub async fn images(State(api): State<Api>) -> Result<Json<Vec<Image>>, Failure> {
    let store = api.fleet.host().images.clone();
    let listed = crate::blocking(move || {
        let manifests = store.images()?;
        Ok(manifests
            .iter()
            .map(|manifest| shelf::described(&store, manifest))
            .collect())
    });
    let images = listed.await;
    Ok(Json(
        images.map_err(|error| store_failure("list images", &error))?,
    ))
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
    let store = api.fleet.host().images.clone();
    let wanted = name.clone();
    let image = async move |progress: Reporter| store.ensure_image(&wanted, &progress).await;
    Ok(begin(&api, &name, request_id, image))
}

/// Gets an image of a registry.
pub async fn pull_reference(
    State(api): State<Api>,
    Extension(request_id): Extension<RequestId>,
    Json(pull): Json<PullImage>,
) -> Result<Response, Failure> {
    let name = pull
        .name
        .clone()
        .unwrap_or_else(|| pull.reference.suggested_name());
    let request = PullRequest {
        shape: shape(&api, name.clone(), pull.kernel, pull.size).await?,
        reference: pull.reference,
        insecure: pull.insecure,
        auth: pull.auth,
    };
    let store = api.fleet.host().images.clone();
    let image = async move |progress: Reporter| store.pull(&request, &progress).await;
    Ok(begin(&api, &name, request_id, image))
}

/// What an image in an archive is to be.
#[derive(Debug, Deserialize)]
pub struct ArchiveShape {
    name: ArtifactName,
    kernel: Option<ArtifactName>,
    size: Option<u64>,
}

/// Makes an image of the archive in the body, once all of it has come.
pub async fn take_archive(
    State(api): State<Api>,
    Extension(request_id): Extension<RequestId>,
    wanted: Result<Query<ArchiveShape>, QueryRejection>,
    body: Body,
) -> Result<Response, Failure> {
    let Query(wanted) = wanted.map_err(|error| {
        ApiError::new(ErrorKind::Invalid, "could not take the archive").caused_by(&error)
    })?;
    let name = wanted.name;
    let size = wanted.size.map(ByteSize::from_bytes);
    let shape = shape(&api, name.clone(), wanted.kernel, size).await?;
    let store = api.fleet.host().images.clone();
    let archive = receive(&store, body).await?;
    let image =
        async move |progress: Reporter| store.make_from_archive(archive, shape, &progress).await;
    Ok(begin(&api, &name, request_id, image))
}

/// Takes the file in the body. Whoever sends it may take as long as they like; what they sent is
/// gone when they go.
async fn receive(store: &Store, body: Body) -> Result<std::fs::File, ApiError> {
    let message = "could not keep the archive";
    let failed = |error: UploadError| {
        let mut api = ApiError::new(error.kind(), message).caused_by(&error);
        api.hint = error.hint();
        api
    };
    let mut upload = store.upload().await.map_err(failed)?;
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece =
            piece.map_err(|error| ApiError::new(ErrorKind::Failed, message).caused_by(&error))?;
        upload.write(&piece).await.map_err(failed)?;
    }
    upload.into_file().await.map_err(failed)
}

async fn shape(
    api: &Api,
    name: ArtifactName,
    kernel: Option<ArtifactName>,
    limit: Option<ByteSize>,
) -> Result<Shape, ApiError> {
    let store = api.fleet.host().images.clone();
    let kernel = kernel.unwrap_or_else(|| store.default_kernel());
    let wanted = kernel.clone();
    let known = crate::blocking(move || store.require_known_kernel(&wanted)).await;
    known.map_err(|error| {
        let mut api = could_not(&name, error.kind()).caused_by(&error);
        api.hint = error.hint();
        api
    })?;
    Ok(Shape {
        name,
        kernel,
        limit,
    })
}

/// Begins to get the image `name` by `image`, and the kernel it boots with.
fn begin<F>(
    api: &Api,
    name: &ArtifactName,
    request_id: RequestId,
    image: impl FnOnce(Reporter) -> F + Send + 'static,
) -> Response
where
    F: Future<Output = Result<banger_image::Image, ImageError>> + Send + 'static,
{
    let host = api.fleet.host();
    let work = host.operations.begin(Subject {
        kind: OperationKind::PullImage,
        vm: None,
        request_id: Some(request_id),
        reason: None,
    });
    let operation = work.operation();
    let (store, report, cancelled) = (host.images.clone(), work.reporter(), work.cancelled());
    let name = name.clone();
    host.pulls.begin(|ends| async move {
        let called_off = || {
            let message = format!("getting the image `{name}` was called off");
            ApiError::new(ErrorKind::Cancelled, message)
        };
        let result = tokio::select! {
            result = get(&store, &name, &report, image) => result,
            () = cancelled.cancelled() => Err(called_off()),
            () = ends.cancelled() => {
                let mut error = called_off();
                error.causes.push("the daemon ends".to_owned());
                Err(error)
            }
        };
        work.end(result);
    });
    accepted(operation)
}

/// Gets an image and the kernel it boots with.
async fn get<F>(
    store: &Store,
    name: &ArtifactName,
    report: &StageReporter,
    image: impl FnOnce(Reporter) -> F,
) -> Result<(), ApiError>
where
    F: Future<Output = Result<banger_image::Image, ImageError>>,
{
    let sink = report.clone();
    let progress = Reporter::new(move |progress| sink.progress(progress));
    let from_image = |error: ImageError| {
        let mut api = could_not(name, error.kind()).caused_by(&error);
        api.hint = error.hint();
        api
    };
    let from_kernel = |error: KernelError| {
        let mut api = could_not(name, error.kind()).caused_by(&error);
        api.hint = error.hint();
        api
    };
    let mark = report.stage("image");
    let image = image(progress.clone()).await.map_err(from_image)?;
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

fn could_not(name: &ArtifactName, kind: ErrorKind) -> ApiError {
    ApiError::new(kind, format!("could not get the image `{name}`"))
}

fn store_failure(what: &str, error: &banger_image::StoreError) -> ApiError {
    let mut api = ApiError::new(error.kind(), format!("could not {what}")).caused_by(error);
    api.hint = error.hint();
    api
}

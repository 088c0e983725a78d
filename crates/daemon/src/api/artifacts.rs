//! Images and kernels: what is here, and how more of them get here.

use std::fmt::Display;

use axum::Extension;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use banger_image::{
    BundlePull, ImageError, KernelError, PullRequest, Reporter, Shape, Store, UploadError,
};
use banger_proto::api::{Catalog, Image, Kernel, OperationKind, PullBundle, PullImage};
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
    let wanted = name.clone();
    Ok(begin_image(&api, &name, request_id, async move |pull| {
        let (image, warning) = pull.store.pull_image(&wanted, &pull.progress).await?;
        warning.into_iter().for_each(|text| pull.report.warn(text));
        Ok(image)
    }))
}

/// Gets an image that is a bundle on the web.
pub async fn pull_bundle(
    State(api): State<Api>,
    Extension(request_id): Extension<RequestId>,
    Json(bundle): Json<PullBundle>,
) -> Result<Response, Failure> {
    let shown = bundle.name.as_ref().map_or_else(
        || bundle.url.to_string(),
        |name: &ArtifactName| name.to_string(),
    );
    if let Some(kernel) = &bundle.kernel {
        require_kernel(&api, &shown, kernel).await?;
    }
    let bundle = bundle_pull(bundle);
    Ok(begin_image(&api, &shown, request_id, async move |pull| {
        pull.store.pull_image_bundle(&bundle, &pull.progress).await
    }))
}

/// Gets a kernel of the catalog.
pub async fn pull_kernel(
    State(api): State<Api>,
    Path(name): Path<String>,
    Extension(request_id): Extension<RequestId>,
) -> Result<Response, Failure> {
    let name: ArtifactName = name.parse().map_err(|error| {
        ApiError::new(ErrorKind::Invalid, "could not pull the kernel").caused_by(&error)
    })?;
    let wanted = name.clone();
    Ok(begin_kernel(&api, &name, request_id, async move |pull| {
        let (kernel, warning) = pull.store.pull_kernel(&wanted, &pull.progress).await?;
        warning.into_iter().for_each(|text| pull.report.warn(text));
        Ok(kernel)
    }))
}

/// Gets a kernel that is a bundle on the web.
pub async fn pull_kernel_bundle(
    State(api): State<Api>,
    Extension(request_id): Extension<RequestId>,
    Json(bundle): Json<PullBundle>,
) -> Result<Response, Failure> {
    let bundle = bundle_pull(bundle);
    let name = bundle.kernel_name();
    Ok(begin_kernel(&api, &name, request_id, async move |pull| {
        pull.store.pull_kernel_bundle(&bundle, &pull.progress).await
    }))
}

fn bundle_pull(bundle: PullBundle) -> BundlePull {
    BundlePull {
        url: bundle.url,
        sha256: bundle.digest,
        name: bundle.name,
        kernel: bundle.kernel,
    }
}

/// Whether the newest catalog is asked for.
#[derive(Debug, Deserialize)]
pub struct CatalogHow {
    #[serde(default)]
    ask: bool,
}

/// What can be had by its name alone.
pub async fn catalog(
    State(api): State<Api>,
    how: Result<Query<CatalogHow>, QueryRejection>,
) -> Result<Json<Catalog>, Failure> {
    let message = "could not show the catalog";
    let Query(how) =
        how.map_err(|error| ApiError::new(ErrorKind::Invalid, message).caused_by(&error))?;
    let store = api.fleet.host().images.clone();
    let mut warning = None;
    if how.ask {
        warning = store.ask_for_catalog().await.map_err(|error| {
            let mut api = ApiError::new(error.kind(), message).caused_by(&*error);
            api.hint = error.hint();
            api
        })?;
    }
    let described = crate::blocking(move || store.describe_catalog()).await;
    let described = described.map_err(|error| store_failure("show the catalog", &error))?;
    Ok(Json(Catalog {
        warning,
        ..described
    }))
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
    Ok(begin_image(&api, &name, request_id, async move |pull| {
        pull.store.pull(&request, &pull.progress).await
    }))
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
    Ok(begin_image(&api, &name, request_id, async move |pull| {
        let made = pull.store.make_from_archive(archive, shape, &pull.progress);
        made.await
    }))
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
    let kernel = kernel.unwrap_or_else(|| api.fleet.host().images.default_kernel());
    require_kernel(api, &name, &kernel).await?;
    Ok(Shape {
        name,
        kernel,
        limit,
    })
}

/// Refuses an image whose kernel nobody knows.
async fn require_kernel(
    api: &Api,
    image: &impl Display,
    kernel: &ArtifactName,
) -> Result<(), ApiError> {
    let (store, wanted) = (api.fleet.host().images.clone(), kernel.clone());
    let known = crate::blocking(move || store.require_known_kernel(&wanted)).await;
    known.map_err(|error| {
        let message = format!("could not get the image `{image}`");
        let mut api = ApiError::new(error.kind(), message).caused_by(&error);
        api.hint = error.hint();
        api
    })
}

/// What a pull works with.
struct Pull {
    store: Store,
    report: StageReporter,
    progress: Reporter,
}

/// Begins to get the image `name` by `image`, and the kernel it boots with.
fn begin_image<F>(
    api: &Api,
    name: &impl Display,
    request_id: RequestId,
    image: impl FnOnce(Pull) -> F + Send + 'static,
) -> Response
where
    F: Future<Output = Result<banger_image::Image, ImageError>> + Send + 'static,
{
    let what = format!("the image `{name}`");
    let kind = OperationKind::PullImage;
    begin(api, kind, what.clone(), request_id, async move |pull| {
        let could_not = |kind| ApiError::new(kind, format!("could not get {what}"));
        let (store, report, progress) = (
            pull.store.clone(),
            pull.report.clone(),
            pull.progress.clone(),
        );
        let mark = report.stage("image");
        let image = image(pull).await.map_err(|error| {
            let mut api = could_not(error.kind()).caused_by(&error);
            api.hint = error.hint();
            api
        })?;
        mark.done();
        let from_kernel = |error: KernelError| {
            let mut api = could_not(error.kind()).caused_by(&error);
            api.hint = error.hint();
            api
        };
        let mark = report.stage("kernel");
        let kernel = store
            .ensure_kernel(&image.manifest.kernel, &progress)
            .await
            .map_err(from_kernel)?;
        store.initramfs(&kernel).await.map_err(from_kernel)?;
        mark.done();
        Ok(())
    })
}

/// Begins to get the kernel `name` by `kernel`.
fn begin_kernel<F>(
    api: &Api,
    name: &ArtifactName,
    request_id: RequestId,
    kernel: impl FnOnce(Pull) -> F + Send + 'static,
) -> Response
where
    F: Future<Output = Result<banger_image::Kernel, KernelError>> + Send + 'static,
{
    let what = format!("the kernel `{name}`");
    let kind = OperationKind::PullKernel;
    begin(api, kind, what.clone(), request_id, async move |pull| {
        let failed = |error: KernelError| {
            let message = format!("could not get {what}");
            let mut api = ApiError::new(error.kind(), message).caused_by(&error);
            api.hint = error.hint();
            api
        };
        let (store, report) = (pull.store.clone(), pull.report.clone());
        let mark = report.stage("kernel");
        let kernel = kernel(pull).await.map_err(failed)?;
        store.initramfs(&kernel).await.map_err(failed)?;
        mark.done();
        Ok(())
    })
}

/// Begins an operation that gets `what`.
fn begin<F>(
    api: &Api,
    kind: OperationKind,
    what: String,
    request_id: RequestId,
    pull: impl FnOnce(Pull) -> F + Send + 'static,
) -> Response
where
    F: Future<Output = Result<(), ApiError>> + Send + 'static,
{
    let host = api.fleet.host();
    let work = host.operations.begin(Subject {
        kind,
        vm: None,
        request_id: Some(request_id),
        reason: None,
    });
    let operation = work.operation();
    let (store, report, cancelled) = (host.images.clone(), work.reporter(), work.cancelled());
    let sink = report.clone();
    let progress = Reporter::new(move |progress| sink.progress(progress));
    host.pulls.begin(|ends| async move {
        let called_off = || {
            let message = format!("getting {what} was called off");
            ApiError::new(ErrorKind::Cancelled, message)
        };
        let pull = pull(Pull {
            store,
            report,
            progress,
        });
        let result = tokio::select! {
            result = pull => result,
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

fn store_failure(what: &str, error: &banger_image::StoreError) -> ApiError {
    let mut api = ApiError::new(error.kind(), format!("could not {what}")).caused_by(error);
    api.hint = error.hint();
    api
}

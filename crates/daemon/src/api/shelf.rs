//! Images and kernels that are there: recorded, renamed, taken over, removed, carried away and
//! brought. What changes is one rename each, made on a thread that goes on when the client does
//! not.

use std::io::{self, Read, Write};

use axum::Extension;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use banger_image::{
    BundleSource, ChangeError, Elsewhere, ImportError, Manifest, Pruning, Registration, Reporter,
    Store,
};
use banger_proto::api::{CachePart, Image, Kernel, OperationKind, RegisterImage, RenameImage};
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::id::RequestId;
use banger_proto::name::{ArtifactName, VmName};
use bytes::{Buf as _, Bytes};
use futures_util::StreamExt as _;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Api;
use super::exchange::{Failure, Json, accepted};
use crate::fleet::Fleet;
use crate::operations::Subject;

/// Pieces that wait for whoever takes them.
const QUEUE: usize = 8;
/// Size of the pieces of an export.
const PIECE: usize = 128 << 10;
/// How much of a refused bundle is read: a client reads the answer when it has sent all.
const DRAIN_MAX: u64 = 64 << 20;

/// What the API says of an image: also why it cannot be booted now.
pub fn described(store: &Store, manifest: &Manifest) -> Image {
    let problem = store.problem(manifest).map(|error| {
        let mut said = error.to_string();
        if let Some(cause) = std::error::Error::source(&error) {
            said = format!("{said}: {cause}");
        }
        said
    });
    Image {
        problem,
        ..manifest.into()
    }
}

pub async fn register(
    State(api): State<Api>,
    Json(wanted): Json<RegisterImage>,
) -> Result<Json<Image>, Failure> {
    let message = format!("could not register the image `{}`", wanted.name);
    changing(&api, message, move |store, _| {
        let kernel = wanted.kernel.unwrap_or_else(|| store.default_kernel());
        let registration = Registration {
            name: wanted.name,
            files: Elsewhere {
                rootfs: wanted.rootfs.into(),
                work_seed: wanted.work_seed.map(Into::into),
            },
            kernel,
        };
        let manifest = store.register(registration)?;
        Ok(Json(described(store, &manifest)))
    })
    .await
}

pub async fn rename(
    State(api): State<Api>,
    Path(image): Path<String>,
    Json(wanted): Json<RenameImage>,
) -> Result<Json<Image>, Failure> {
    let message = format!("could not rename the image `{image}`");
    changing(&api, message, move |store, fleet| {
        let manifest = store.find_image(&image)?;
        let waiting = waiting_for(fleet, &manifest);
        let renamed = store.rename_image(&manifest.id, wanted.name, &waiting)?;
        Ok(Json(described(store, &renamed)))
    })
    .await
}

pub async fn delete(
    State(api): State<Api>,
    Path(image): Path<String>,
) -> Result<StatusCode, Failure> {
    let message = format!("could not delete the image `{image}`");
    changing(&api, message, move |store, fleet| {
        let manifest = store.find_image(&image)?;
        store.delete_image(&manifest, |manifest| users(fleet, manifest))?;
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}

#[derive(Debug, Deserialize)]
pub struct PruneHow {
    #[serde(default)]
    dry_run: bool,
}

pub async fn prune(
    State(api): State<Api>,
    how: Result<Query<PruneHow>, QueryRejection>,
) -> Result<Json<Vec<Image>>, Failure> {
    let message = "could not prune the images";
    let Query(how) = how.map_err(|error| malformed(message, &error))?;
    changing(&api, message.to_owned(), move |store, fleet| {
        let mut gone = Vec::new();
        for manifest in store.images()? {
            let image = described(store, &manifest);
            // A record costs nothing, and its files are not banger's to judge.
            if !image.managed && image.problem.is_none() {
                continue;
            }
            if !users(fleet, &manifest).is_empty() {
                continue;
            }
            if !how.dry_run {
                match store.delete_image(&manifest, |manifest| users(fleet, manifest)) {
                    Ok(()) => {}
                    Err(ChangeError::InUse { .. } | ChangeError::Going) => continue,
                    Err(error) => return Err(error),
                }
            }
            gone.push(image);
        }
        Ok(Json(gone))
    })
    .await
}

pub async fn prune_cache(
    State(api): State<Api>,
    how: Result<Query<PruneHow>, QueryRejection>,
) -> Result<Json<Vec<CachePart>>, Failure> {
    let message = "could not prune the cache";
    let Query(how) = how.map_err(|error| malformed(message, &error))?;
    let pruning = match how.dry_run {
        true => Pruning::Dry,
        false => Pruning::Real,
    };
    changing(&api, message.to_owned(), move |store, _| {
        Ok(Json(store.prune_cache(pruning)?))
    })
    .await
}

pub async fn delete_kernel(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<StatusCode, Failure> {
    let message = format!("could not delete the kernel `{name}`");
    let name: ArtifactName = name
        .parse()
        .map_err(|error| ApiError::new(ErrorKind::Invalid, &*message).caused_by(&error))?;
    changing(&api, message, move |store, fleet| {
        store.delete_kernel(&name, || {
            let handles = fleet.handles();
            let using = handles.iter().filter_map(|vm| {
                vm.look(|status| {
                    let row = &status.row;
                    let boots_it = row.kernel.as_ref() == Some(&name);
                    (boots_it && !row.phase.is_at_rest()).then(|| row.name.clone())
                })
            });
            using.collect()
        })?;
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}

pub async fn promote(
    State(api): State<Api>,
    Path(image): Path<String>,
    Extension(request_id): Extension<RequestId>,
) -> Result<Response, Failure> {
    let message = format!("could not promote the image `{image}`");
    let found = changing(&api, message.clone(), move |store, _| {
        store.find_image(&image)
    });
    let id = found.await?.id;
    let host = api.fleet.host();
    let work = host.operations.begin(Subject {
        kind: OperationKind::PromoteImage,
        vm: None,
        request_id: Some(request_id),
        reason: None,
    });
    let operation = work.operation();
    let (store, report, cancelled) = (host.images.clone(), work.reporter(), work.cancelled());
    host.pulls.begin(|ends| async move {
        let mark = report.stage("image");
        let sink = report.clone();
        let progress = Reporter::new(move |progress| sink.progress(progress));
        let called_off = CancellationToken::new();
        let copying = {
            let called_off = called_off.clone();
            crate::blocking(move || store.promote(&id, &progress, &called_off))
        };
        tokio::pin!(copying);
        let result = tokio::select! {
            result = &mut copying => result,
            () = async { tokio::select! { () = cancelled.cancelled() => (), () = ends.cancelled() => () } } => {
                called_off.cancel();
                copying.await
            }
        };
        if result.is_ok() {
            mark.done();
        }
        work.end(result.map(drop).map_err(|error| refused(message, &error)));
    });
    Ok(accepted(operation))
}

pub async fn export(
    State(api): State<Api>,
    Path(image): Path<String>,
) -> Result<Response, Failure> {
    let message = format!("could not export the image `{image}`");
    let found = changing(&api, message, move |store, _| {
        let id = store.find_image(&image)?.id;
        let found = store.image_by_id(&id)?;
        found.ok_or(ChangeError::Unknown {
            what: "image",
            name: image,
        })
    })
    .await?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    let store = api.fleet.host().images.clone();
    tokio::task::spawn_blocking(move || {
        let pieces = Pieces {
            sender: sender.clone(),
        };
        let into = io::BufWriter::with_capacity(PIECE, pieces);
        if let Err(error) = store.export(&found, into) {
            tracing::debug!(%error, "an export broke off");
            // The stream must not look whole.
            let _ = sender.blocking_send(Err(error));
        }
    });
    let pieces = futures_util::stream::unfold(receiver, async |mut receiver| {
        let piece: io::Result<Bytes> = receiver.recv().await?;
        Some((piece, receiver))
    });
    let mut response = Body::from_stream(pieces).into_response();
    let kind = header::HeaderValue::from_static("application/zstd");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

/// How a bundle is to be taken.
#[derive(Debug, Deserialize)]
pub struct ImportHow {
    name: Option<ArtifactName>,
    sha256: Option<String>,
}

pub async fn import(
    State(api): State<Api>,
    how: Result<Query<ImportHow>, QueryRejection>,
    body: Body,
) -> Result<Json<Image>, Failure> {
    let message = "could not import the image";
    let Query(how) = how.map_err(|error| malformed(message, &error))?;
    let store = api.fleet.host().images.clone();
    let image = receiving(message, how.sha256, body, move |source| {
        let image = store.import_image(source, how.name)?;
        Ok(described(&store, &image.manifest))
    })
    .await?;
    Ok(Json(image))
}

pub async fn import_kernel(
    State(api): State<Api>,
    Path(name): Path<String>,
    how: Result<Query<ImportHow>, QueryRejection>,
    body: Body,
) -> Result<Json<Kernel>, Failure> {
    let message = format!("could not import the kernel `{name}`");
    let Query(how) = how.map_err(|error| malformed(&message, &error))?;
    let name: ArtifactName = name
        .parse()
        .map_err(|error| ApiError::new(ErrorKind::Invalid, &*message).caused_by(&error))?;
    let store = api.fleet.host().images.clone();
    let kernel = receiving(&message, how.sha256, body, move |source| {
        let kernel = store.import_kernel(source, &name, "imported")?;
        Ok(Kernel::from(&kernel.manifest))
    })
    .await?;
    Ok(Json(kernel))
}

/// The VMs that need an image: those that have booted it, and those that will look for its name.
fn users(fleet: &Fleet, manifest: &Manifest) -> Vec<VmName> {
    vms_where(fleet, |row| match &row.image_id {
        Some(id) => *id == manifest.id,
        None => row.image == manifest.name,
    })
}

/// The VMs that will look for an image's name.
fn waiting_for(fleet: &Fleet, manifest: &Manifest) -> Vec<VmName> {
    vms_where(fleet, |row| {
        row.image_id.is_none() && row.image == manifest.name
    })
}

fn vms_where(fleet: &Fleet, is_it: impl Fn(&crate::store::VmRow) -> bool) -> Vec<VmName> {
    let handles = fleet.handles();
    let names = handles
        .iter()
        .filter_map(|vm| vm.look(|status| is_it(&status.row).then(|| status.row.name.clone())));
    names.collect()
}

/// Changes the store on a thread that may block; the change goes on if the client goes.
async fn changing<T: Send + 'static>(
    api: &Api,
    message: String,
    change: impl FnOnce(&Store, &Fleet) -> Result<T, ChangeError> + Send + 'static,
) -> Result<T, Failure> {
    let fleet = std::sync::Arc::clone(&api.fleet);
    let changed = crate::blocking(move || change(&fleet.host().images.clone(), &fleet)).await;
    changed.map_err(|error| refused(message, &error).into())
}

fn refused(message: String, error: &ChangeError) -> ApiError {
    let mut api = ApiError::new(error.kind(), message).caused_by(error);
    api.hint = error.hint();
    api
}

fn malformed(message: &str, error: &QueryRejection) -> ApiError {
    ApiError::new(ErrorKind::Invalid, message).caused_by(error)
}

/// Hands the bundle in `body` to `take`, which blocks. When the client goes, the bundle breaks
/// off, and what was begun of it is removed.
async fn receiving<T: Send + 'static>(
    message: &str,
    sha256: Option<String>,
    body: Body,
    take: impl FnOnce(BundleSource<Received>) -> Result<T, ImportError> + Send + 'static,
) -> Result<T, ApiError> {
    let sha256 = match sha256 {
        None => None,
        Some(text) => Some(banger_image::parse_hash(&text).ok_or_else(|| {
            let mut error = ApiError::new(ErrorKind::Invalid, message);
            error.causes.push(format!("`{text}` is not a SHA-256"));
            error.with_hint("write the 64 digits that `sha256sum` prints")
        })?),
    };
    let (sender, receiver) = mpsc::channel(QUEUE);
    let source = BundleSource {
        from: Received {
            receiver,
            piece: Bytes::new(),
            whole: false,
        },
        sha256,
        cancel: CancellationToken::new(),
        progress: Reporter::silent(),
        what: String::new(),
    };
    let taking = crate::blocking(move || take(source));
    let feeding = async {
        let mut body = body.into_data_stream();
        let mut refused = 0;
        while let Some(piece) = body.next().await {
            let broken = piece.is_err();
            let length = piece.as_ref().map_or(0, |piece| piece.len() as u64);
            if sender
                .send(Some(piece.map_err(io::Error::other)))
                .await
                .is_err()
            {
                refused += length;
            }
            if broken || refused > DRAIN_MAX {
                return;
            }
        }
        let _ = sender.send(None).await;
    };
    let (taken, ()) = tokio::join!(taking, feeding);
    taken.map_err(|error| {
        let mut api = ApiError::new(error.kind(), message).caused_by(&error);
        api.hint = error.hint();
        api
    })
}

/// A body on its way to a thread that blocks. It ends only where its sender said so.
pub struct Received {
    receiver: mpsc::Receiver<Option<io::Result<Bytes>>>,
    piece: Bytes,
    whole: bool,
}

impl Read for Received {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.whole {
            match self.receiver.blocking_recv() {
                Some(Some(piece)) => self.piece = piece?,
                Some(None) => self.whole = true,
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let length = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

/// A body on its way from a thread that blocks.
struct Pieces {
    sender: mpsc::Sender<io::Result<Bytes>>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = Bytes::copy_from_slice(bytes);
        let sent = self.sender.blocking_send(Ok(piece));
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

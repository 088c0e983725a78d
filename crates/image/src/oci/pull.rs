//! An image of a registry, fetched and made into one of ours at the same time.

use std::path::PathBuf;
use std::sync::Arc;

use banger_proto::id::ImageId;
use banger_proto::reference::Digest;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::cache::{BOUND, Cache};
use super::convert::{self, Origin, Unpublished};
use super::document::{self, Config, Descriptor, Document, Manifest};
use super::registry::Registry;
use super::{OciError, PullRequest, step};
use crate::disk;
use crate::download::{Arrival, DownloadError, Downloads, Patience};
use crate::hash::Expected;
use crate::progress::Reporter;

/// Layers that are fetched at the same time.
const PARALLEL: usize = 4;
/// Most indexes on the way to an image.
const DEEPEST: usize = 4;
/// How often layers are read from the beginning because the cache held wrong ones.
const ROUNDS: usize = 3;

/// What a reference leads to.
pub(crate) struct Resolved {
    /// What names the image in its registry: its manifest's digest.
    pub(crate) digest: Digest,
    manifest: Manifest,
    registry: Arc<Registry>,
}

/// Asks the registry which image `request` means.
pub(crate) async fn resolve(
    request: &PullRequest,
    cache: &Cache,
    patience: Patience,
) -> Result<Resolved, OciError> {
    let name = request.reference.to_string();
    let auth = request.auth.clone();
    let registry = Registry::connect(&request.reference, request.insecure, auth, patience).await?;
    let document_error = |source| OciError::Document {
        name: name.clone(),
        source,
    };
    // The digest that was asked for, and the type that was promised.
    let mut wanted = request.reference.digest().cloned();
    let mut promised = String::new();
    for _ in 0..DEEPEST {
        let known = match &wanted {
            Some(digest) => cache.read(digest).await,
            None => None,
        };
        let (bytes, said) = match known {
            Some(bytes) => (bytes, promised),
            None => {
                let target = wanted
                    .as_ref()
                    .map_or(request.reference.target(), Digest::as_str);
                let fetched = registry.manifest(target).await?;
                (fetched.bytes, fetched.media_type)
            }
        };
        let digest = require_digest(&bytes, wanted.as_ref())?;
        cache.keep(&digest, &bytes);
        match Document::read(&bytes, &said).map_err(document_error)? {
            Document::Manifest(manifest) => {
                return Ok(Resolved {
                    digest,
                    manifest,
                    registry: Arc::new(registry),
                });
            }
            Document::Index(index) => {
                let chosen = index.choose().map_err(document_error)?;
                wanted = Some(chosen.digest.clone());
                promised = chosen.media_type.clone();
            }
        }
    }
    Err(OciError::Loop { name })
}

/// Makes the image and publishes it below `images`.
pub(crate) async fn make(
    images: PathBuf,
    cache: Arc<Cache>,
    request: PullRequest,
    resolved: Resolved,
    progress: Reporter,
    cancel: CancellationToken,
) -> Result<ImageId, OciError> {
    let made = fetch_and_convert(images, &cache, &request, resolved, &progress, &cancel).await;
    let trimmed = tokio::task::spawn_blocking(move || cache.trim(BOUND)).await;
    if let Ok(Err(error)) = trimmed {
        tracing::warn!(%error, "could not trim the cache of layers");
    }
    made
}

async fn fetch_and_convert(
    images: PathBuf,
    cache: &Arc<Cache>,
    request: &PullRequest,
    resolved: Resolved,
    progress: &Reporter,
    cancel: &CancellationToken,
) -> Result<ImageId, OciError> {
    let Resolved {
        digest,
        manifest,
        registry,
    } = resolved;
    let config = tokio::select! {
        config = config(&manifest, &registry, cache, request) => config?,
        () = cancel.cancelled() => return Err(OciError::Cancelled),
    };
    let mut stored: u64 = 0;
    for layer in &manifest.layers {
        stored = stored.saturating_add(layer.size);
    }
    disk::require_room(&cache.directory().join(digest.hex()), stored)?;
    let origin = Arc::new(Origin {
        source: format!("{}, {digest}", request.reference),
        reference: Some(request.reference.to_string()),
        digest,
        config,
        stored,
    });
    let mut round = 1;
    loop {
        let called_off = cancel.child_token();
        let layers = fetch(&manifest.layers, &registry, cache, progress);
        let readers: Vec<_> = layers
            .of_each
            .iter()
            .map(|at| layers.arrivals[*at].reader())
            .collect();
        let conversion = {
            let (images, origin) = (images.clone(), Arc::clone(&origin));
            let (shape, progress) = (request.shape.clone(), progress.clone());
            let called_off = called_off.clone();
            let work = move || {
                let readers = readers.into_iter();
                convert::convert(&images, &origin, &shape, readers, &progress, &called_off)
            };
            tokio::task::spawn_blocking(work)
        };
        match both(layers, conversion, &called_off).await {
            Ok(image) => {
                let publish = move || image.publish(&images);
                return tokio::task::spawn_blocking(publish)
                    .await
                    .map_err(step("publish the image"))?;
            }
            Err(error) if !convert::started_anew(&error) => return Err(error),
            Err(_) if round == ROUNDS => return Err(OciError::Unsteady),
            Err(_) => round += 1,
        }
    }
}

/// Waits for the layers and for what is made of them; both have ended when this returns.
async fn both(
    layers: Layers,
    mut conversion: JoinHandle<Result<Unpublished, OciError>>,
    called_off: &CancellationToken,
) -> Result<Unpublished, OciError> {
    let Layers {
        mut tasks,
        arrivals,
        ..
    } = layers;
    // Each task has its own: when it goes, so must its layer's readers.
    drop(arrivals);
    let fetched = tokio::select! {
        fetched = all(&mut tasks) => fetched,
        converted = &mut conversion => {
            let converted = converted.map_err(step("convert the image"))?;
            match &converted {
                // It ended for want of a layer, and why that does not come is what matters.
                Err(error) if convert::is_broken_off(error) => all(&mut tasks).await?,
                // The next round finds all of them whole.
                Err(error) if convert::started_anew(error) => all(&mut tasks).await?,
                Err(_) => tasks.shutdown().await,
                // Another layer may still have to be hashed to its end.
                Ok(_) => all(&mut tasks).await?,
            }
            return converted;
        }
        () = called_off.cancelled() => Err(OciError::Cancelled),
    };
    if fetched.is_err() {
        called_off.cancel();
        tasks.shutdown().await;
    }
    let converted = conversion.await.map_err(step("convert the image"))?;
    fetched.and(converted)
}

async fn all(tasks: &mut JoinSet<Result<(), OciError>>) -> Result<(), OciError> {
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(step("fetch the layers"))??;
    }
    Ok(())
}

/// Layers on their way.
struct Layers {
    /// For each layer of the image, which arrival is its: an image may have a layer twice.
    of_each: Vec<usize>,
    arrivals: Vec<Arc<Arrival>>,
    tasks: JoinSet<Result<(), OciError>>,
}

/// Begins to fetch all layers, a few at a time and the lowest first.
fn fetch(
    layers: &[Descriptor],
    registry: &Arc<Registry>,
    cache: &Arc<Cache>,
    progress: &Reporter,
) -> Layers {
    let mut fetching = Layers {
        of_each: Vec::new(),
        arrivals: Vec::new(),
        tasks: JoinSet::new(),
    };
    let directory = cache.directory().to_owned();
    let downloads = Downloads::from_origin(registry.clone(), directory, registry.patience());
    let turns = Arc::new(Semaphore::new(PARALLEL));
    let mut digests: Vec<&Digest> = Vec::new();
    let count = layers.len();
    for (at, layer) in layers.iter().enumerate() {
        let known = digests.iter().position(|digest| **digest == layer.digest);
        fetching.of_each.push(known.unwrap_or(digests.len()));
        if known.is_some() {
            continue;
        }
        digests.push(&layer.digest);
        let arrival = Arc::new(Arrival::default());
        fetching.arrivals.push(Arc::clone(&arrival));
        let (cache, turns, digest) = (Arc::clone(cache), Arc::clone(&turns), layer.digest.clone());
        let (downloads, progress) = (downloads.clone(), progress.clone());
        let url = registry.blob_url(&digest);
        let expected = Expected {
            sha256: digest.bytes(),
            size: layer.size,
        };
        let what = format!("layer {} of {count}", at + 1);
        fetching.tasks.spawn(async move {
            let turn = turns.acquire_owned().await;
            let _turn = turn.expect("the semaphore is never closed");
            let _reserved = cache.reserve(&digest).await;
            let fetched = downloads
                .arriving_file(&url, &expected, &what, &progress, &arrival)
                .await;
            fetched.map_err(|source| OciError::Fetch {
                number: at + 1,
                count,
                source,
            })?;
            cache.touch(&digest);
            Ok(())
        });
    }
    fetching
}

async fn config(
    manifest: &Manifest,
    registry: &Registry,
    cache: &Cache,
    request: &PullRequest,
) -> Result<Config, OciError> {
    let Descriptor { digest, size, .. } = &manifest.config;
    let bytes = match cache.read(digest).await {
        Some(bytes) => bytes,
        None if *size > document::LARGEST => {
            let source = DownloadError::TooLong {
                url: registry.blob_url(digest),
                limit: document::LARGEST,
            };
            return Err(step("get the image's config")(source));
        }
        None => {
            let bytes = registry.small_blob(digest).await?;
            require_digest(&bytes, Some(digest))?;
            cache.keep(digest, &bytes);
            bytes
        }
    };
    Config::read(&bytes, manifest.layers.len()).map_err(|source| OciError::Document {
        name: request.reference.to_string(),
        source,
    })
}

/// The digest of `bytes`; refuses another one than `wanted`.
pub(super) fn require_digest(bytes: &[u8], wanted: Option<&Digest>) -> Result<Digest, OciError> {
    let found = Digest::of(Sha256::digest(bytes).into());
    match wanted {
        Some(wanted) if *wanted != found => Err(OciError::WrongDigest {
            wanted: wanted.clone(),
            found,
        }),
        _ => Ok(found),
    }
}

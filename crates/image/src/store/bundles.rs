//! Images and kernels that come as bundles from the web. What is fetched counts only with the
//! hash that was asked for, so that it does not matter who serves it.

use std::fs::File;

use banger_proto::name::ArtifactName;
use banger_proto::reference::Digest;
use banger_proto::url::WebUrl;
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use super::carry::Origin;
use super::{Image, ImportError, Kernel, Store, StoreError};
use crate::bundle::BundleSource;

use crate::download::{DownloadError, Downloaded, Downloads};
use crate::flight::FlightError;
use crate::hash::Expected;
use crate::image::ImageError;
use crate::kernel::KernelError;
use crate::progress::Reporter;

/// Longest bundle.
const LONGEST: u64 = 64 << 30;

/// A bundle that is to be fetched and taken. Equal requests share the work.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BundlePull {
    /// Where it is.
    pub url: WebUrl,
    /// What its bytes must hash to.
    pub sha256: Digest,
    /// What it is to be called here; as an image's bundle says if absent. A kernel's says nothing.
    pub name: Option<ArtifactName>,
    /// The kernel that an image boots with; as its bundle says if absent.
    pub kernel: Option<ArtifactName>,
}

impl BundlePull {
    /// What a kernel is called: if nobody says, as its file is without its ending.
    pub fn kernel_name(&self) -> ArtifactName {
        let name = self.name.clone().or_else(|| self.url.suggested_name());
        name.unwrap_or_else(|| "kernel".parse().expect("this is a name"))
    }
}

/// A bundle that is here, and that nobody else fetches or removes meanwhile.
struct Fetched {
    download: Downloaded,
    file: File,
    _alone: OwnedMutexGuard<()>,
}

impl Store {
    /// The image of a bundle, fetched first if it is not here; shared as in
    /// [`Store::ensure_image`].
    ///
    /// # Errors
    /// It cannot be fetched, is no image, or another image has the name.
    pub async fn pull_image_bundle(
        &self,
        pull: &BundlePull,
        progress: &Reporter,
    ) -> Result<Image, ImageError> {
        let store = self.clone();
        let start = |progress, cancel: CancellationToken| {
            let pull = pull.clone();
            async move { store.fetch_image(pull, &progress, &cancel).await }
        };
        let pulled = self.shared.image_bundles.join(pull, progress, start).await;
        pulled.map_err(|error| match error {
            FlightError::Failed(error) => ImageError::Shared(error),
            FlightError::Lost => ImageError::Cancelled,
        })
    }

    /// The kernel of a bundle, fetched first if it is not here; shared as in
    /// [`Store::ensure_image`].
    ///
    /// # Errors
    /// It cannot be fetched, is no kernel, or another kernel has the name.
    pub async fn pull_kernel_bundle(
        &self,
        pull: &BundlePull,
        progress: &Reporter,
    ) -> Result<Kernel, KernelError> {
        let store = self.clone();
        let pull = BundlePull {
            name: Some(pull.kernel_name()),
            ..pull.clone()
        };
        let start = |progress, cancel: CancellationToken| {
            let pull = pull.clone();
            async move { store.fetch_kernel(pull, &progress, &cancel).await }
        };
        let pulled = self
            .shared
            .kernel_bundles
            .join(&pull, progress, start)
            .await;
        pulled.map_err(|error| match error {
            FlightError::Failed(error) => KernelError::Shared(error),
            FlightError::Lost => KernelError::Cancelled,
        })
    }

    /// As [`Store::pull_image_bundle`], alone.
    pub(super) async fn fetch_image(
        &self,
        pull: BundlePull,
        progress: &Reporter,
        cancel: &CancellationToken,
    ) -> Result<Image, ImageError> {
        if let Some(image) = self.image_of_bundle(&pull).await? {
            return Ok(image);
        }
        let fetched = cancel
            .run_until_cancelled(self.fetch(&pull, progress))
            .await
            .ok_or(ImageError::Cancelled)?
            .map_err(|source| ImageError::Step {
                step: "fetch the bundle",
                source: source.into(),
            })?;
        // Somebody may have taken it while we waited for our turn.
        if let Some(image) = self.image_of_bundle(&pull).await? {
            return Ok(image);
        }
        let (store, called_off) = (self.clone(), cancel.clone());
        let progress = progress.clone();
        let take = move || {
            let source = source(&fetched, &pull, progress, called_off);
            let origin = Origin {
                url: pull.url.clone(),
                kernel: pull.kernel.clone(),
            };
            let image = store.take_image(source, pull.name.clone(), Some(origin));
            forget(fetched);
            image
        };
        let taken = tokio::task::spawn_blocking(take).await;
        let taken = taken.map_err(|source| ImageError::Step {
            step: "unpack the bundle",
            source: source.into(),
        })?;
        taken.map_err(|error| match cancel.is_cancelled() {
            true => ImageError::Cancelled,
            false => ImageError::Import(error.into()),
        })
    }

    /// As [`Store::pull_kernel_bundle`], alone.
    pub(super) async fn fetch_kernel(
        &self,
        pull: BundlePull,
        progress: &Reporter,
        cancel: &CancellationToken,
    ) -> Result<Kernel, KernelError> {
        let name = pull.kernel_name();
        if let Some(kernel) = self.kernel_of_bundle(&name, &pull).await? {
            return Ok(kernel);
        }
        let fetched = cancel
            .run_until_cancelled(self.fetch(&pull, progress))
            .await
            .ok_or(KernelError::Cancelled)?
            .map_err(|source| KernelError::Step {
                step: "fetch the bundle",
                source: source.into(),
            })?;
        if let Some(kernel) = self.kernel_of_bundle(&name, &pull).await? {
            return Ok(kernel);
        }
        let (store, called_off) = (self.clone(), cancel.clone());
        let progress = progress.clone();
        let take = move || {
            let source = source(&fetched, &pull, progress, called_off);
            let kernel = store.import_kernel(source, &name, pull.url.as_str());
            forget(fetched);
            kernel
        };
        let taken = tokio::task::spawn_blocking(take).await;
        let taken = taken.map_err(|source| KernelError::Step {
            step: "unpack the bundle",
            source: source.into(),
        })?;
        taken.map_err(|error| match (error, cancel.is_cancelled()) {
            (_, true) => KernelError::Cancelled,
            (ImportError::Kernel(error), false) => error,
            (error, false) => KernelError::Import(error.into()),
        })
    }

    async fn fetch(
        &self,
        pull: &BundlePull,
        progress: &Reporter,
    ) -> Result<Fetched, DownloadError> {
        let alone = self.shared.layers.reserve(&pull.sha256).await;
        let downloads = Downloads::new(self.shared.config.downloads())?;
        let url = pull.url.as_str();
        let expected = Expected {
            sha256: pull.sha256.bytes(),
            size: downloads.length(url, LONGEST).await?,
        };
        let what = format!("download {}", shown(&pull.url));
        let download = downloads.file(url, &expected, &what, progress).await?;
        let file = File::open(download.path()).map_err(|source| DownloadError::Io {
            action: "open",
            path: download.path().to_owned(),
            source,
        })?;
        Ok(Fetched {
            download,
            file,
            _alone: alone,
        })
    }

    /// The image that was made of the bundle, if it is here under the name that is asked for.
    async fn image_of_bundle(&self, pull: &BundlePull) -> Result<Option<Image>, StoreError> {
        let wanted = pull.clone();
        let look = move |store: &Self| {
            let found = store.images()?.into_iter().rfind(|image| {
                image.digest == wanted.sha256.as_str()
                    && wanted.name.as_ref().is_none_or(|it| *it == image.name)
                    && wanted.kernel.as_ref().is_none_or(|it| *it == image.kernel)
            });
            found.map(|image| store.whole_image(image)).transpose()
        };
        self.looking(look).await
    }

    async fn kernel_of_bundle(
        &self,
        name: &ArtifactName,
        pull: &BundlePull,
    ) -> Result<Option<Kernel>, StoreError> {
        let found = self.blocking(name, Self::kernel).await?;
        Ok(found.filter(|kernel| kernel.manifest.digest == pull.sha256.as_str()))
    }
}

/// The file of an address, for people.
fn shown(url: &WebUrl) -> &str {
    match url.file_name() {
        "" => url.host(),
        name => name,
    }
}

fn source<'a>(
    fetched: &'a Fetched,
    pull: &BundlePull,
    progress: Reporter,
    cancel: CancellationToken,
) -> BundleSource<&'a File> {
    BundleSource {
        from: &fetched.file,
        sha256: Some(pull.sha256.bytes()),
        cancel,
        progress,
        what: format!("unpack {}", shown(&pull.url)),
    }
}

/// What was taken, or cannot be, is of no more use. A failure costs room until the cache is
/// next tidied up.
fn forget(fetched: Fetched) {
    let path = fetched.download.path();
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(%error, path = %path.display(), "could not remove a download");
    }
}

#[cfg(test)]
mod tests;

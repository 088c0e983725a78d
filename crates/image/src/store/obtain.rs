//! Artifacts of the catalog: the first of their sources that can be had is used.
//!
//! A source that fails is no reason to give up while there is another one. What would fail with
//! every source ends the search: that it was called off, that this host has no room.

use std::error::Error;
use std::sync::Arc;

use banger_proto::id::ImageId;
use tokio_util::sync::CancellationToken;

use super::Store;
use super::bundles::BundlePull;
use crate::attempt::Attempt;
use crate::catalog::{Bundle, ImageEntry, ImageSource, KernelEntry, KernelSource};
use crate::disk::DiskError;
use crate::image::{self, ImageError};
use crate::kernel::{self, KernelError};
use crate::oci::{PullRequest, Shape};
use crate::progress::Reporter;
use crate::tool::DEPMOD;

impl Store {
    /// Makes the image `entry` of the first of its sources that can be had.
    pub(super) async fn obtain_image(
        &self,
        entry: &ImageEntry,
        progress: Reporter,
        cancel: CancellationToken,
    ) -> Result<ImageId, ImageError> {
        let mut attempts = Vec::new();
        for source in &entry.sources {
            let made = self.image_from(source, entry, &progress, &cancel).await;
            let error = match made {
                Ok(id) => return Ok(id),
                Err(error) if image_would_fail_again(&error) => return Err(error),
                Err(error) => error,
            };
            if let [_only] = &entry.sources[..] {
                return Err(error);
            }
            tracing::warn!(image = %entry.name, %source, %error, "a source cannot be had");
            attempts.push(Attempt::new(source, &error, error.hint()));
        }
        Err(ImageError::NoSource {
            name: entry.name.clone(),
            tried: Attempt::link(attempts).expect("an entry has sources"),
        })
    }

    async fn image_from(
        &self,
        source: &ImageSource,
        entry: &ImageEntry,
        progress: &Reporter,
        cancel: &CancellationToken,
    ) -> Result<ImageId, ImageError> {
        match source {
            ImageSource::Bundle(bundle) => {
                require_arch(bundle).map_err(|arch| ImageError::OtherArch { arch })?;
                let pull = BundlePull {
                    url: bundle.url.clone(),
                    sha256: bundle.sha256.clone(),
                    name: Some(entry.name.clone()),
                    kernel: Some(entry.kernel.clone()),
                };
                let made = self.fetch_image(pull, progress, cancel).await?;
                Ok(made.manifest.id)
            }
            ImageSource::Oci(reference) => {
                let request = PullRequest {
                    reference: reference.clone(),
                    shape: Shape {
                        name: entry.name.clone(),
                        kernel: entry.kernel.clone(),
                        limit: None,
                    },
                    insecure: false,
                    auth: None,
                };
                let made = self.pull_alone(request, progress.clone(), cancel.clone());
                Ok(made.await?.manifest.id)
            }
            ImageSource::Recipe(recipe) => {
                let config = Arc::clone(&self.shared.config);
                let images = config.images();
                let (progress, cancel) = (progress.clone(), cancel.clone());
                image::make(config, entry, recipe, images, progress, cancel).await
            }
        }
    }

    /// Makes the kernel `entry` of the first of its sources that can be had.
    pub(super) async fn obtain_kernel(
        &self,
        entry: &KernelEntry,
        progress: Reporter,
        cancel: CancellationToken,
    ) -> Result<(), KernelError> {
        // What is missing at the end had better be known at the begin.
        DEPMOD.find()?;
        let mut attempts = Vec::new();
        for source in &entry.sources {
            let made = self.kernel_from(source, entry, &progress, &cancel).await;
            let error = match made {
                Ok(()) => return Ok(()),
                Err(error) if kernel_would_fail_again(&error) => return Err(error),
                Err(error) => error,
            };
            if let [_only] = &entry.sources[..] {
                return Err(error);
            }
            tracing::warn!(kernel = %entry.name, %source, %error, "a source cannot be had");
            attempts.push(Attempt::new(source, &error, error.hint()));
        }
        Err(KernelError::NoSource {
            name: entry.name.clone(),
            tried: Attempt::link(attempts).expect("an entry has sources"),
        })
    }

    async fn kernel_from(
        &self,
        source: &KernelSource,
        entry: &KernelEntry,
        progress: &Reporter,
        cancel: &CancellationToken,
    ) -> Result<(), KernelError> {
        match source {
            KernelSource::Bundle(bundle) => {
                require_arch(bundle).map_err(|arch| KernelError::OtherArch { arch })?;
                let pull = BundlePull {
                    url: bundle.url.clone(),
                    sha256: bundle.sha256.clone(),
                    name: Some(entry.name.clone()),
                    kernel: None,
                };
                self.fetch_kernel(pull, progress, cancel).await.map(drop)
            }
            KernelSource::Package(package) => {
                let config = Arc::clone(&self.shared.config);
                let directory = config.kernels().join(entry.name.as_str());
                let (progress, cancel) = (progress.clone(), cancel.clone());
                let name = entry.name.clone();
                kernel::make(config, name, package, directory, progress, cancel).await
            }
        }
    }
}

fn require_arch(bundle: &Bundle) -> Result<(), String> {
    match bundle.arch == std::env::consts::ARCH {
        true => Ok(()),
        false => Err(bundle.arch.clone()),
    }
}

fn image_would_fail_again(error: &ImageError) -> bool {
    match error {
        ImageError::Cancelled | ImageError::Timeout | ImageError::Store(_) => true,
        error => is_for_want_of_room(error),
    }
}

fn kernel_would_fail_again(error: &KernelError) -> bool {
    match error {
        KernelError::Cancelled | KernelError::Store(_) => true,
        error => is_for_want_of_room(error),
    }
}

fn is_for_want_of_room(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<DiskError>().is_some() {
            return true;
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests;

//! Images and kernels that come as bundles, and images that go as such.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use banger_proto::error::ErrorKind;
use banger_proto::id::ImageId;
use banger_proto::name::ArtifactName;
use banger_proto::reference::Digest;
use banger_proto::size::ByteSize;
use banger_proto::url::WebUrl;

use super::{ChangeError, Image, Kernel, Store, whole_kernel};
use crate::bundle::{Bundle, BundleError, BundleSource, Packer};
use crate::draft::Draft;
use crate::elsewhere;
use crate::image::{ROOTFS, WORK_SEED};
use crate::kernel::{self, KernelError};
use crate::manifest::{self, MANIFEST_FILE, Manifest};
use crate::sparse;

/// Longest manifest.
const MANIFEST_MAX: u64 = 1 << 20;
/// Longest disk. Its holes cost nothing, so that only what cannot be meant is refused.
const DISK_MAX: u64 = 1 << 40;

/// Why a bundle did not become an image or a kernel.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The bundle is none.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The store does not take it.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// The kernel in it cannot be used.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A file operation failed.
    #[error("could not {step}")]
    Step {
        /// What was being done.
        step: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl ImportError {
    /// What kind of failure it is, for the API.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Bundle(error) => error.kind(),
            Self::Change(error) => error.kind(),
            Self::Kernel(error) => error.kind(),
            Self::Step { .. } => ErrorKind::Failed,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Bundle(_) | Self::Step { .. } => None,
            Self::Change(error) => error.hint(),
            Self::Kernel(error) => error.hint(),
        }
    }
}

fn step(step: &'static str) -> impl FnOnce(io::Error) -> ImportError {
    move |source| ImportError::Step { step, source }
}

/// Where an image's bundle was fetched from.
pub(super) struct Origin {
    pub(super) url: WebUrl,
    /// The kernel that it boots with; as the bundle says if absent.
    pub(super) kernel: Option<ArtifactName>,
}

/// All of this blocks for as long as the bundle takes.
impl Store {
    /// Writes `image` as a bundle.
    ///
    /// # Errors
    /// Its files cannot be read, or `into` takes no more.
    pub fn export(&self, image: &Image, into: impl Write) -> io::Result<()> {
        let rootfs = File::open(&image.rootfs)?;
        let length = rootfs.metadata()?.len();
        let manifest = Manifest {
            rootfs_length: length,
            elsewhere: None,
            ..image.manifest.clone()
        };
        let json = serde_json::to_vec_pretty(&manifest).map_err(io::Error::other)?;
        let mut packer = Packer::new(into)?;
        packer.add(Path::new(MANIFEST_FILE), json.len() as u64, &json[..])?;
        packer.add(Path::new(ROOTFS), length, rootfs)?;
        if let Some(seed) = &image.work_seed {
            let seed = File::open(seed)?;
            packer.add(Path::new(WORK_SEED), seed.metadata()?.len(), seed)?;
        }
        packer.finish().map(drop)
    }

    /// Makes a new image of a bundle, called `name` or what the bundle says.
    ///
    /// # Errors
    /// The bundle is not one, an image has the name, or there is no room.
    pub fn import_image(
        &self,
        source: BundleSource<impl Read>,
        name: Option<ArtifactName>,
    ) -> Result<Image, ImportError> {
        self.take_image(source, name, None)
    }

    /// As [`Store::import_image`]; of one from the web, that and its hash are recorded.
    pub(super) fn take_image(
        &self,
        source: BundleSource<impl Read>,
        name: Option<ArtifactName>,
        origin: Option<Origin>,
    ) -> Result<Image, ImportError> {
        let limit = |name: &str| match name {
            MANIFEST_FILE => Some(MANIFEST_MAX),
            ROOTFS | WORK_SEED => Some(DISK_MAX),
            _ => None,
        };
        let mut bundle = Bundle::open(source)?;
        let first = bundle
            .next(limit)?
            .ok_or(BundleError::Lacks(MANIFEST_FILE))?;
        if first.name != MANIFEST_FILE {
            return Err(BundleError::Order.into());
        }
        let mut json = Vec::new();
        let read = bundle.content().read_to_end(&mut json);
        read.map_err(BundleError::Read)?;
        let said = parse_manifest(&json)?;
        let name = name.unwrap_or_else(|| said.name.clone());
        self.require_free(&name)?;

        let images = self.shared.config.images();
        let draft = Draft::new(&images).map_err(step("make a directory for the image"))?;
        while let Some(part) = bundle.next(limit)? {
            let path = draft.path().join(&part.name);
            let mut file = File::create_new(&path).map_err(step("create the image's file"))?;
            sparse::copy(&mut bundle.content(), &mut file)
                .map_err(step("write the image's file"))?;
            file.sync_all().map_err(step("write the image's file"))?;
            if part.name == ROOTFS && part.length != said.rootfs_length {
                let why = format!(
                    "`rootfs_length` is {}, and `{ROOTFS}` has {} bytes",
                    said.rootfs_length, part.length
                );
                return Err(BundleError::Manifest(why).into());
            }
            elsewhere::check(&path).map_err(ChangeError::from)?;
        }
        if !bundle.has(ROOTFS) {
            return Err(BundleError::Lacks(ROOTFS).into());
        }
        let hash = bundle.finish()?;
        let mut manifest = Manifest {
            id: ImageId::new(),
            name,
            size: ByteSize::from_bytes(super::size_on_disk(draft.path())),
            ..said
        };
        if let Some(Origin { url, kernel }) = origin {
            manifest.digest = Digest::of(hash).to_string();
            manifest.source = url.to_string();
            manifest.reference = Some(url.into());
            manifest.kernel = kernel.unwrap_or(manifest.kernel);
        }
        manifest::write(&manifest, draft.path()).map_err(step("write the image's manifest"))?;
        let _alone = self.alone();
        self.require_free(&manifest.name)?;
        draft
            .publish(&images.join(manifest.id.as_str()))
            .map_err(step("publish the image"))?;
        Ok(self.whole_image(manifest).map_err(ChangeError::from)?)
    }

    pub(super) fn require_free(&self, name: &ArtifactName) -> Result<(), ChangeError> {
        match self.images()?.iter().any(|image| image.name == *name) {
            true => Err(ChangeError::Taken {
                what: "image",
                name: name.clone(),
            }),
            false => Ok(()),
        }
    }

    /// Makes the kernel `name` of a bundle.
    ///
    /// # Errors
    /// The bundle is not one, its modules are another kernel's, or there is such a kernel.
    pub fn import_kernel(
        &self,
        source: BundleSource<impl Read>,
        name: &ArtifactName,
        origin: &str,
    ) -> Result<Kernel, ImportError> {
        let kernels = self.shared.config.kernels();
        let directory = kernels.join(name.as_str());
        let taken = || ChangeError::Taken {
            what: "kernel",
            name: name.clone(),
        };
        if directory.exists() {
            return Err(taken().into());
        }
        let draft = Draft::new(&kernels).map_err(step("make a directory for the kernel"))?;
        kernel::import(source, name, origin, draft.path())?;
        let _alone = self.alone();
        if directory.exists() {
            return Err(taken().into());
        }
        draft
            .publish(&directory)
            .map_err(step("publish the kernel"))?;
        Ok(whole_kernel(directory).map_err(ChangeError::from)?)
    }
}

/// What a stranger says of an image: what concerns this host only is not taken from them.
fn parse_manifest(json: &[u8]) -> Result<Manifest, BundleError> {
    let manifest: Manifest =
        serde_json::from_slice(json).map_err(|error| BundleError::Manifest(error.to_string()))?;
    let wrong = |why: &str| Err(BundleError::Manifest(why.to_owned()));
    if manifest.elsewhere.is_some() {
        return wrong("it names files of another host");
    }
    if manifest.arch != std::env::consts::ARCH {
        return wrong(&format!(
            "the image is for {}, and this host is {}",
            manifest.arch,
            std::env::consts::ARCH
        ));
    }
    Ok(manifest)
}

#[cfg(test)]
pub(super) mod tests;

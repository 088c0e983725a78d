//! What banger knows how to get: images and kernels, and for each where it may come from.
//!
//! The catalog is data. One is built in (`catalog.toml`, which says how it is written), and the
//! config may name a newer one ([`newer`]). All of a catalog is judged when it is read: what
//! [`Catalog::parse`] returns makes sense as a whole.

mod newer;
mod schema;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, LazyLock};

use banger_proto::api;
use banger_proto::name::ArtifactName;
use banger_proto::reference::{Digest, ImageReference};
use banger_proto::url::WebUrl;

use crate::debian::mirror::Family;

pub use newer::{CatalogOrigin, CatalogRefused};
pub(crate) use newer::{Catalogs, Known};

/// The one that is built in.
static BUILT_IN: LazyLock<Arc<Catalog>> = LazyLock::new(|| {
    let catalog = Catalog::parse(include_str!("../../catalog.toml"));
    Arc::new(catalog.expect("a test reads the catalog that is built in"))
});

/// Images and kernels, each name once. Every image's kernel is among the kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Catalog {
    /// Which of two catalogs is the newer one.
    pub(crate) serial: u64,
    /// At least one; the first is the default.
    pub(crate) kernels: Vec<KernelEntry>,
    pub(crate) images: Vec<ImageEntry>,
}

/// An image, and where it may come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageEntry {
    pub(crate) name: ArtifactName,
    /// What it holds, in one line.
    pub(crate) about: String,
    /// Distribution and release, such as `debian 12`.
    pub(crate) distro: String,
    /// The kernel that it boots with.
    pub(crate) kernel: ArtifactName,
    /// The best one first; at least one.
    pub(crate) sources: Vec<ImageSource>,
}

/// Where an image may come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ImageSource {
    /// A bundle on the web.
    Bundle(Bundle),
    /// A registry.
    Oci(ImageReference),
    /// Packages, installed on this host.
    Recipe(Recipe),
}

/// A kernel, and where it may come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KernelEntry {
    pub(crate) name: ArtifactName,
    /// What it is, in one line.
    pub(crate) about: String,
    /// The best one first; at least one.
    pub(crate) sources: Vec<KernelSource>,
}

/// Where a kernel may come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KernelSource {
    /// A bundle on the web.
    Bundle(Bundle),
    /// A package of Debian's.
    Package(Package),
}

/// A `.tar.zst` on the web.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bundle {
    pub(crate) url: WebUrl,
    /// What its bytes must hash to.
    pub(crate) sha256: Digest,
    /// The architecture it is for, such as `x86_64`.
    pub(crate) arch: String,
}

/// What mmdebstrap makes an image of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recipe {
    /// Whose archive it is.
    pub(crate) family: Family,
    /// Their name of the release, such as `bookworm`.
    pub(crate) release: String,
    /// Parts of the archive, such as `main`.
    pub(crate) components: Vec<String>,
    /// Packages beyond the essential ones and apt, sorted.
    pub(crate) packages: Vec<String>,
    /// Programs that no package of the archive has.
    pub(crate) programs: Vec<Program>,
    /// What npm installs for everybody: `name@version`, in this order.
    pub(crate) npm: Vec<String>,
}

/// A program in one file, which an image does without where it cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) name: String,
    /// Where it goes in the image, such as `usr/local/bin/mise`.
    pub(crate) path: String,
    /// The architecture it is for, such as `x86_64`.
    pub(crate) arch: String,
    /// What it must be, wherever it comes from.
    pub(crate) sha256: Digest,
    pub(crate) size: u64,
    /// The best one first; at least one.
    pub(crate) sources: Vec<ProgramSource>,
}

/// Where a program may come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ProgramSource {
    /// The file itself on the web.
    Url(WebUrl),
    /// A file in a package of npm's, which the host's own npm fetches.
    Npm {
        /// `name@version`.
        package: String,
        /// The file, such as `bin/mise`.
        file: String,
    },
}

/// A package of Debian's that holds a kernel, or depends on the one that does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Package {
    /// Where it is, such as `bookworm-security`.
    pub(crate) suite: String,
    pub(crate) name: String,
    /// What its version must begin with.
    pub(crate) version: String,
}

impl Catalog {
    /// The one that is built in.
    pub(crate) fn built_in() -> Arc<Self> {
        Arc::clone(&BUILT_IN)
    }

    /// The image called `name`.
    pub(crate) fn image(&self, name: &ArtifactName) -> Option<&ImageEntry> {
        self.images.iter().find(|entry| entry.name == *name)
    }

    /// The kernel called `name`.
    pub(crate) fn kernel(&self, name: &ArtifactName) -> Option<&KernelEntry> {
        self.kernels.iter().find(|entry| entry.name == *name)
    }

    /// The kernel of images that do not say which one they need.
    pub(crate) fn default_kernel(&self) -> &ArtifactName {
        &self.kernels[0].name
    }
}

impl Known {
    /// As the API says it.
    pub(crate) fn describe(
        &self,
        image_is_here: impl Fn(&ArtifactName) -> bool,
        kernel_is_here: impl Fn(&ArtifactName) -> bool,
    ) -> api::Catalog {
        let images = self.catalog.images.iter().map(|image| api::CatalogImage {
            name: image.name.clone(),
            about: image.about.clone(),
            distro: image.distro.clone(),
            kernel: image.kernel.clone(),
            sources: image.sources.iter().map(ToString::to_string).collect(),
            here: image_is_here(&image.name),
        });
        let kernels = self
            .catalog
            .kernels
            .iter()
            .map(|kernel| api::CatalogKernel {
                name: kernel.name.clone(),
                about: kernel.about.clone(),
                sources: kernel.sources.iter().map(ToString::to_string).collect(),
                here: kernel_is_here(&kernel.name),
            });
        api::Catalog {
            serial: self.catalog.serial,
            url: self.url.clone(),
            warning: None,
            images: images.collect(),
            kernels: kernels.collect(),
        }
    }
}

impl fmt::Display for ImageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bundle(bundle) => bundle.fmt(f),
            Self::Oci(reference) => reference.fmt(f),
            Self::Recipe(recipe) => write!(f, "packages of {} {}", recipe.family, recipe.release),
        }
    }
}

impl fmt::Display for ProgramSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => url.fmt(f),
            Self::Npm { package, .. } => write!(f, "npm's `{package}`"),
        }
    }
}

impl fmt::Display for KernelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bundle(bundle) => bundle.fmt(f),
            Self::Package(package) => write!(f, "`{}` in {}", package.name, package.suite),
        }
    }
}

impl fmt::Display for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}

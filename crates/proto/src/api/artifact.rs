//! Images and kernels.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::ImageId;
use crate::name::ArtifactName;
use crate::reference::{Digest, ImageReference};
use crate::size::ByteSize;
use crate::url::WebUrl;

/// An image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// Its id.
    pub id: ImageId,
    /// Its name.
    pub name: ArtifactName,
    /// `sha256:` and the hash of what it was made from or of its root file system.
    pub digest: String,
    /// Where it came from, in words.
    pub source: String,
    /// Distribution and release, such as `debian 12`.
    pub distro: String,
    /// Architecture, such as `x86_64`.
    pub arch: String,
    /// When it was made, RFC 3339.
    pub created_at: String,
    /// Bytes that it takes on the disk.
    pub size: ByteSize,
    /// The kernel that it boots with.
    pub kernel: ArtifactName,
    /// The reference that it was pulled by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Environment of commands.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// User that commands run as; root if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Directory that commands start in; the user's home if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// What the image's maker wants run before any argument.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// The arguments of that, or the command, if none are given.
    #[serde(default)]
    pub cmd: Vec<String>,
    /// What the image's maker says of it.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Whether its files are banger's own, or somebody's whose paths are recorded.
    #[serde(default = "yes")]
    pub managed: bool,
    /// Where the root file system is, if it is not banger's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rootfs: Option<String>,
    /// Why no VM can boot it now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Body of `POST /v1/images/pull`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PullImage {
    /// Which image.
    pub reference: ImageReference,
    /// What it is to be called; made of the reference if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<ArtifactName>,
    /// The kernel that it is to boot with; the default one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<ArtifactName>,
    /// Most bytes that its files may have; a multiple of what is fetched if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    /// Whether plain HTTP will do for a registry that speaks no TLS.
    #[serde(default)]
    pub insecure: bool,
    /// Who asks. It is used for this pull, and kept nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<RegistryAuth>,
}

/// Body of `POST /v1/bundles/image` and `POST /v1/bundles/kernel`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PullBundle {
    /// Where the bundle is.
    pub url: WebUrl,
    /// What its bytes must hash to.
    pub digest: Digest,
    /// What it is to be called. If absent an image's is as its bundle says, and a kernel's as the
    /// file in the address is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<ArtifactName>,
    /// The kernel that an image is to boot with; as its bundle says if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<ArtifactName>,
}

/// Proof of who asks a registry.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RegistryAuth {
    /// A user and a password.
    Password {
        /// The user.
        username: String,
        /// The password, or a token that serves as one.
        password: String,
    },
    /// A token that is given for other tokens.
    IdentityToken {
        /// It.
        token: String,
    },
}

// Not derived: a secret must not get into a log.
impl fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password { .. }",
            Self::IdentityToken { .. } => "IdentityToken { .. }",
        })
    }
}

fn yes() -> bool {
    true
}

/// Body of `POST /v1/images/register`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RegisterImage {
    /// What it is to be called; an unmanaged image of that name is updated.
    pub name: ArtifactName,
    /// Absolute path of an ext4 file system.
    pub rootfs: String,
    /// Absolute path of what the work disks of new VMs are cloned from: an ext4 file system
    /// with a directory `root`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work_seed: Option<String>,
    /// The kernel that it is to boot with; the default one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<ArtifactName>,
}

/// Body of `POST /v1/images/{image}/rename`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RenameImage {
    /// Its new name.
    pub name: ArtifactName,
}

/// Body of `POST /v1/vms/{vm}/commit`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommitVm {
    /// What the image is to be called.
    pub name: ArtifactName,
    /// Whether an image that has the name is superseded.
    #[serde(default)]
    pub replace: bool,
}

/// Body of `POST /v1/images/build`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildImage {
    /// What the image is to be called.
    pub name: ArtifactName,
    /// The image that it begins with.
    pub from: ArtifactName,
    /// Whether it gets Docker.
    #[serde(default)]
    pub docker: bool,
    /// Packages that are installed, by the image's own package manager.
    #[serde(default)]
    pub packages: Vec<String>,
    /// What is run in it then, as root, in this order.
    #[serde(default)]
    pub scripts: Vec<BuildScript>,
    /// Room for what is added; the default system disk's if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    /// Whether an image that has the name is superseded.
    #[serde(default)]
    pub replace: bool,
}

/// A program that a build runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildScript {
    /// What it is called in messages: a file's name.
    pub name: String,
    /// Its text. The first line says what runs it (`#!`), else that is `/bin/sh`.
    pub text: String,
}

/// A kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kernel {
    /// Its name, such as `generic-6.12`.
    pub name: ArtifactName,
    /// Its release, as of `uname -r`.
    pub release: String,
    /// Where it came from, in words.
    pub source: String,
    /// Bytes that it takes on the disk.
    pub size: ByteSize,
    /// When it was made, RFC 3339.
    pub created_at: String,
}

/// What can be had by its name alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Catalog {
    /// Which of two catalogs is the newer one.
    pub serial: u64,
    /// Where it came from; absent if it is built in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<WebUrl>,
    /// Why a newer one could not be had, if one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// Its images.
    pub images: Vec<CatalogImage>,
    /// Its kernels; the first is the default.
    pub kernels: Vec<CatalogKernel>,
}

/// An image of the catalog.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CatalogImage {
    /// Its name.
    pub name: ArtifactName,
    /// What it holds, in one line.
    pub about: String,
    /// Distribution and release, such as `debian 12`.
    pub distro: String,
    /// The kernel that it boots with.
    pub kernel: ArtifactName,
    /// Where it may come from, in words, the best one first.
    pub sources: Vec<String>,
    /// Whether an image of this name is here.
    pub here: bool,
}

/// A kernel of the catalog.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CatalogKernel {
    /// Its name.
    pub name: ArtifactName,
    /// What it is, in one line.
    pub about: String,
    /// Where it may come from, in words, the best one first.
    pub sources: Vec<String>,
    /// Whether it is here.
    pub here: bool,
}

/// A part of the cache, and what of it went, or would go. Answer of `POST /v1/cache/prune`: a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachePart {
    /// Which one.
    pub kind: CacheKind,
    /// How many files or directories of it went.
    pub files: u64,
    /// Bytes that they took on the disk.
    pub freed: ByteSize,
    /// Bytes of what stays because it is in use just now.
    pub in_use: ByteSize,
}

/// What is kept in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheKind {
    /// Downloads, whole ones and those that broke off.
    Downloads,
    /// Layers of images of registries.
    Layers,
    /// Empty disks that are formatted.
    Templates,
    /// Catalogs that no longer count.
    Catalogs,
}

impl CacheKind {
    /// The word in JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Downloads => "downloads",
            Self::Layers => "layers",
            Self::Templates => "templates",
            Self::Catalogs => "catalogs",
        }
    }
}

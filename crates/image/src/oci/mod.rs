//! Images of other makers: from a registry or an archive to a file system that boots.
//!
//! ```text
//! reference ─ registry ─> index ─> manifest ─> config      (document, challenge)
//!                                     └─> layers ─> cache, each hashed as it comes
//!                                            └─ as they come ─> layer ─> merge ─> ext4
//! archive ─────────────────────────────────────────────────────┘
//! ```
//!
//! Nothing is unpacked on the way: layers are laid over each other in the file system that is
//! being written, lowest first, while the ones above are still fetched. It counts only when
//! every byte that went in has the hash that it should have.

mod archive;
mod cache;
mod challenge;
mod convert;
mod document;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod layer;
mod merge;
mod pull;
mod registry;
#[cfg(test)]
mod tests;
mod wanted;

use std::error::Error;

use banger_proto::api::RegistryAuth;
use banger_proto::error::ErrorKind;
use banger_proto::name::ArtifactName;
use banger_proto::reference::{Digest, ImageReference};
use banger_proto::size::ByteSize;

use crate::disk::DiskError;
use crate::download::DownloadError;
use crate::ext4::Ext4Error;
use crate::tarball::TarError;
use archive::ArchiveError;
use document::DocumentError;
use layer::LayerError;
use merge::MergeError;
use registry::RegistryError;

pub(crate) use archive::make as make_from_archive;
pub(crate) use cache::Cache;
pub(crate) use pull::{make, resolve};

/// An image that is to be pulled. Equal requests can share the work.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PullRequest {
    /// Which one.
    pub reference: ImageReference,
    /// What it is to be called here, and what it boots with.
    pub shape: Shape,
    /// Whether plain HTTP will do for a registry that speaks no TLS.
    pub insecure: bool,
    /// Who asks.
    pub auth: Option<RegistryAuth>,
}

/// What an image is to be here, wherever it comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Its name.
    pub name: ArtifactName,
    /// The kernel that it boots with.
    pub kernel: ArtifactName,
    /// Most bytes that its files may have; a multiple of what is fetched if absent.
    pub limit: Option<ByteSize>,
}

/// Why an image of another maker could not be had.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct OciFailure(#[from] OciError);

impl OciFailure {
    /// What kind of failure it is, for the API.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind()
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        self.0.hint()
    }
}

/// As [`OciFailure`], in this crate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OciError {
    /// The registry did not give it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The archive does not hold it.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// What came is no image.
    #[error("`{name}` is no image that banger can use")]
    Document {
        /// What was asked for.
        name: String,
        /// Why not.
        #[source]
        source: DocumentError,
    },
    /// Indexes lead to indexes.
    #[error("the indexes of `{name}` lead to each other and never to an image")]
    Loop {
        /// What was asked for.
        name: String,
    },
    /// A document is not what was asked for.
    #[error("what came as {wanted} has the digest {found}")]
    WrongDigest {
        /// What was asked for.
        wanted: Digest,
        /// What came.
        found: Digest,
    },
    /// A layer could not be fetched.
    #[error("could not get layer {number} of {count}")]
    Fetch {
        /// Which one, from 1.
        number: usize,
        /// Of how many.
        count: usize,
        /// Why not.
        #[source]
        source: DownloadError,
    },
    /// A layer could not be used.
    #[error("could not use layer {number} of {count}")]
    Layer {
        /// Which one, from 1.
        number: usize,
        /// Of how many.
        count: usize,
        /// Why not.
        #[source]
        source: LayerError,
    },
    /// What was fetched changes again and again while it is read.
    #[error("what is in the cache changes while it is read")]
    Unsteady,
    /// There is no room for it.
    #[error(transparent)]
    Room(#[from] DiskError),
    /// A step of making it failed.
    #[error("could not {step}")]
    Step {
        /// What was being done.
        step: &'static str,
        /// Why not.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Nobody wants it any more.
    #[error("getting the image was called off")]
    Cancelled,
}

impl OciError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Registry(error) => of_registry(error),
            Self::Fetch {
                source: DownloadError::Access(error),
                ..
            } => error.downcast_ref().map_or(ErrorKind::Failed, of_registry),
            Self::Room(error) | Self::Archive(ArchiveError::Room(error)) => error.kind(),
            Self::Document { .. } | Self::Archive(_) => ErrorKind::Invalid,
            Self::Layer { source, .. } => full(source).map_or(ErrorKind::Failed, DiskError::kind),
            Self::Cancelled => ErrorKind::Cancelled,
            _ => ErrorKind::Failed,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Registry(error) => hint_of_registry(error),
            Self::Fetch {
                source: DownloadError::Access(error),
                ..
            } => error.downcast_ref().and_then(hint_of_registry),
            Self::Fetch {
                source: DownloadError::Room(error),
                ..
            }
            | Self::Archive(ArchiveError::Room(error))
            | Self::Room(error) => error.hint(),
            Self::Layer { source, .. } if is_too_large(source) => Some(
                "if you trust it and know how large it is, allow more with `--size`".to_owned(),
            ),
            Self::Layer { source, .. } => full(source).and_then(DiskError::hint),
            _ => None,
        }
    }
}

fn is_too_large(error: &LayerError) -> bool {
    matches!(
        error,
        LayerError::Expands { .. } | LayerError::Merge(MergeError::TooLarge { .. })
    )
}

/// The want of room that kept a layer from being written.
fn full(error: &LayerError) -> Option<&DiskError> {
    match error {
        LayerError::Merge(
            MergeError::Ext4(Ext4Error::Room(room))
            | MergeError::Tar(TarError::Ext4(Ext4Error::Room(room))),
        ) => Some(room),
        _ => None,
    }
}

fn of_registry(error: &RegistryError) -> ErrorKind {
    match error {
        RegistryError::NotFound { .. } => ErrorKind::NotFound,
        RegistryError::Denied { .. } | RegistryError::PlainRealm { .. } => ErrorKind::Precondition,
        RegistryError::Token { source, .. } => of_registry(source),
        RegistryError::Slow { .. } => ErrorKind::Timeout,
        _ => ErrorKind::Failed,
    }
}

fn hint_of_registry(error: &RegistryError) -> Option<String> {
    match error {
        RegistryError::Denied {
            host, with_secret, ..
        } => Some(match with_secret {
            true => format!("check the name, or log in again: `docker login {host}`"),
            false => format!("check the name, or log in: `docker login {host}`"),
        }),
        RegistryError::NotFound { .. } => {
            Some("check the name and the tag; tags are letters of the registry's own".to_owned())
        }
        RegistryError::Connect { .. } => Some(
            "check the name and the network; a registry that speaks only plain HTTP needs \
             `--insecure`"
                .to_owned(),
        ),
        RegistryError::PlainRealm { .. } => {
            Some("if you trust the network between, say `--insecure`".to_owned())
        }
        RegistryError::Token { source, .. } => hint_of_registry(source),
        _ => None,
    }
}

fn step<E: Into<Box<dyn Error + Send + Sync>>>(step: &'static str) -> impl FnOnce(E) -> OciError {
    move |source| OciError::Step {
        step,
        source: source.into(),
    }
}

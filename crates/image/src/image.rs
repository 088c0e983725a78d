//! How an image is made from its recipe.

use banger_proto::error::ErrorKind;
use banger_proto::name::ArtifactName;

use crate::store::StoreError;

/// Why an image could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Nothing of that name is stored or in the catalog.
    #[error("there is no image `{name}`")]
    Unknown {
        /// What was asked for.
        name: ArtifactName,
        /// The catalog's names.
        known: Vec<String>,
    },
    /// The store could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// All who waited for it went away.
    #[error("getting the image was called off")]
    Cancelled,
}

impl ImageError {
    /// What kind of failure it is, for the API.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unknown { .. } => ErrorKind::NotFound,
            Self::Store(_) => ErrorKind::Failed,
            Self::Cancelled => ErrorKind::Cancelled,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown { known, .. } => Some(format!("there are: {}", known.join(", "))),
            _ => None,
        }
    }
}

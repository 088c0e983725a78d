//! Images and kernels.

use serde::{Deserialize, Serialize};

use crate::id::ImageId;
use crate::name::ArtifactName;
use crate::size::ByteSize;

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

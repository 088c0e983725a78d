//! The stages of a start, and why one fails.
//!
//! A stage acquires something on the host under a name that follows from the VM's id and
//! slot; [`super::take_down`] releases by those names, whatever was acquired.

use std::path::PathBuf;

use banger_engine::LaunchError;
use banger_image::disk::DiskError;
use banger_image::{ImageError, KernelError, StoreError};
use banger_net::AttachError;
use banger_proto::error::ErrorKind;
use banger_proto::id::ImageId;
use banger_proto::name::ArtifactName;

use super::identity::KeyError;
use crate::engines::EngineUnavailable;
use crate::files::FileError;
use crate::guest::{ConnectError, RequestError};

/// One stage of a start, in their order; disks and network go side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// The image, its kernel and initramfs are there; gets them at their first use.
    Image,
    /// The VM's directories and its ssh host key.
    Directory,
    /// The system disk and the work disk.
    Disks,
    /// The tap and its rules.
    Network,
    /// The engine's process.
    Engine,
    /// The guest agent answers and knows who it is.
    Agent,
}

impl Stage {
    /// Every stage, in order.
    pub const ALL: [Self; 6] = [
        Self::Image,
        Self::Directory,
        Self::Disks,
        Self::Network,
        Self::Engine,
        Self::Agent,
    ];

    /// The stage's name in events and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Directory => "directory",
            Self::Disks => "disks",
            Self::Network => "network",
            Self::Engine => "engine",
            Self::Agent => "agent",
        }
    }

    /// Whether a start that is called off may leave the stage where it is. The others take
    /// milliseconds, and what they do on other threads must not go on beside their release; the
    /// engine's stage sees to its one long wait by itself.
    pub fn may_be_left(self) -> bool {
        matches!(self, Self::Image | Self::Agent)
    }
}

/// Why a stage failed.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The image is not to be had.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The image that an existing VM was made of is gone.
    #[error("the image `{name}` ({}) that the VM was made of is gone", .id.as_str())]
    ImageGone {
        /// Its name, which another image may have by now.
        name: ArtifactName,
        /// Its id.
        id: ImageId,
    },
    /// The kernel is not to be had.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The store of images and kernels failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file of the VM's own failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// An ssh key failed.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A disk could not be made.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// An existing VM's disk is gone.
    #[error("the VM's disk `{}` is missing", .0.display())]
    DiskMissing(PathBuf),
    /// The network failed.
    #[error(transparent)]
    Network(#[from] AttachError),
    /// The engine is not to be had.
    #[error(transparent)]
    Engine(#[from] EngineUnavailable),
    /// The engine did not start the machine.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The agent did not answer.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The agent did not take its identity.
    #[error("could not tell the guest who it is")]
    Configure(#[source] RequestError),
    /// The start was called off.
    #[error("it was called off")]
    Cancelled,
    /// A test wanted it so.
    #[cfg(any(test, feature = "faults"))]
    #[error("a fault was planted here")]
    Planted,
}

impl StageError {
    /// What kind of failure it is, for the API.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Image(error) => error.kind(),
            Self::Kernel(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Disk(error) => error.kind(),
            Self::Engine(_) | Self::ImageGone { .. } => ErrorKind::Precondition,
            Self::Network(error) if error.hint().is_some() => ErrorKind::Precondition,
            Self::Connect(ConnectError::Ended { .. }) => ErrorKind::Failed,
            Self::Connect(ConnectError::Silent { .. }) => ErrorKind::Timeout,
            Self::Connect(_) | Self::Configure(_) => ErrorKind::Unavailable,
            Self::Cancelled => ErrorKind::Cancelled,
            _ => ErrorKind::Failed,
        }
    }

    /// What the user can do, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Image(error) => error.hint(),
            Self::ImageGone { .. } => Some(
                "put its directory back into banger's `images`, or delete the VM and create it \
                 anew: its system disk fits no other image"
                    .to_owned(),
            ),
            Self::Kernel(error) => error.hint(),
            Self::Store(error) => error.hint(),
            Self::File(error) => error.hint(),
            Self::Key(error) => error.hint(),
            Self::Disk(error) => error.hint(),
            Self::DiskMissing(_) => {
                Some("put the disk back where it was, or delete the VM".to_owned())
            }
            Self::Network(error) => error.hint(),
            Self::Engine(error) => error.hint(),
            Self::Launch(_) => Some("run `banger doctor` to see what the host lacks".to_owned()),
            _ => None,
        }
    }
}

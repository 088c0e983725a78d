//! How images and kernels that are there are changed: recorded, renamed, taken over, removed.
//!
//! Each change is one rename of a file or directory, so that whoever looks meanwhile sees the
//! state before or after it. What a VM uses is removed in three steps, because a VM may come
//! while it goes: aside, a second look at the VMs, away or back.

use std::io::{self, Read};
use std::path::Path;

use banger_proto::api;
use banger_proto::error::ErrorKind;
use banger_proto::id::ImageId;
use banger_proto::name::{ArtifactName, VmName};
use banger_proto::size::ByteSize;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::{BundlePull, Image, Store, StoreError, io_error, read_manifest};
use crate::disk::DiskError;
use crate::draft;
use crate::elsewhere::{self, ElsewhereError};
use crate::hash::show_sha256;
use crate::image::{ROOTFS, WORK_SEED};
use crate::manifest::{self, Elsewhere, Manifest};
use crate::oci::PullRequest;
use crate::progress::Reporter;
use crate::sparse;

/// Shortest beginning of an id that names an image, as for VMs.
const ID_PREFIX_MIN: usize = 4;
/// What stands for the digest of files that may change at any time.
const NO_DIGEST: &str = "unmanaged";

/// Why an image or kernel could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// There is none of that name or id.
    #[error("there is no {what} `{name}` here")]
    Unknown {
        /// `image` or `kernel`.
        what: &'static str,
        /// What was asked for.
        name: String,
    },
    /// More than one id begins so.
    #[error("more than one image's id begins with `{0}`")]
    Ambiguous(String),
    /// Another one has the name.
    #[error("there is {} `{name}` already", match *what { "image" => "an image", _ => "a kernel" })]
    Taken {
        /// `image` or `kernel`.
        what: &'static str,
        /// The name.
        name: ArtifactName,
    },
    /// VMs need it.
    #[error("{} it", used_by(vms))]
    InUse {
        /// Which.
        vms: Vec<VmName>,
    },
    /// Images need it, and it could not be had again.
    #[error("these images boot with it: {}", images.join(", "))]
    Needed {
        /// Which.
        images: Vec<String>,
    },
    /// It is being made or fetched.
    #[error("it is being fetched")]
    Going,
    /// Its files are banger's own.
    #[error("its files are banger's own")]
    Managed,
    /// The files that it is to be made of cannot be booted from.
    #[error(transparent)]
    Elsewhere(#[from] ElsewhereError),
    /// There is no room.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A file operation failed.
    #[error("could not {step}")]
    Step {
        /// What was being done.
        step: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The store could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Whoever asked went away.
    #[error("it was called off")]
    Cancelled,
}

impl ChangeError {
    /// What kind of failure it is, for the API.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unknown { .. } => ErrorKind::NotFound,
            Self::Ambiguous(_)
            | Self::Taken { .. }
            | Self::InUse { .. }
            | Self::Needed { .. }
            | Self::Going
            | Self::Managed => ErrorKind::Conflict,
            Self::Elsewhere(_) => ErrorKind::Invalid,
            Self::Disk(error) => error.kind(),
            Self::Step { .. } => ErrorKind::Failed,
            Self::Store(error) => error.kind(),
            Self::Cancelled => ErrorKind::Cancelled,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown { what, .. } => Some(format!("see `banger {what} list`")),
            Self::Ambiguous(_) => Some("write more of the id, or the image's name".to_owned()),
            Self::Taken { what, name } => Some(format!(
                "choose another name, or `banger {what} delete {name}` first"
            )),
            Self::InUse { vms } => {
                let names: Vec<&str> = vms.iter().map(VmName::as_str).collect();
                Some(format!("`banger vm delete {}` first", names.join(" ")))
            }
            Self::Needed { .. } => Some("delete these images first".to_owned()),
            Self::Going => {
                Some("wait for it, or call it off: see `banger operation list`".to_owned())
            }
            Self::Elsewhere(error) => error.hint(),
            Self::Disk(error) => error.hint(),
            Self::Store(error) => error.hint(),
            Self::Managed | Self::Step { .. } | Self::Cancelled => None,
        }
    }
}

fn used_by(vms: &[VmName]) -> String {
    let names: Vec<String> = vms.iter().map(|name| format!("`{name}`")).collect();
    match &names[..] {
        [name] => format!("VM {name} uses"),
        _ => format!("VMs {} use", names.join(", ")),
    }
}

fn step(step: &'static str) -> impl FnOnce(io::Error) -> ChangeError {
    move |source| ChangeError::Step { step, source }
}

/// What an unmanaged image is to be.
#[derive(Clone, Debug)]
pub struct Registration {
    /// Its name.
    pub name: ArtifactName,
    /// Its files.
    pub files: Elsewhere,
    /// The kernel that it boots with.
    pub kernel: ArtifactName,
}

/// All of this blocks for file operations.
impl Store {
    /// The image that `selector` means: a name (of two, the newer), an id, or its beginning.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub fn find_image(&self, selector: &str) -> Result<Manifest, ChangeError> {
        let images = self.images()?;
        let by_name = images.iter().rfind(|image| image.name.as_str() == selector);
        if let Some(image) = by_name {
            return Ok(image.clone());
        }
        let mut begins = images.iter().filter(|image| {
            selector.len() >= ID_PREFIX_MIN && image.id.as_str().starts_with(selector)
        });
        match (begins.next(), begins.next()) {
            (Some(image), None) => Ok(image.clone()),
            (Some(_), Some(_)) => Err(ChangeError::Ambiguous(selector.to_owned())),
            (None, _) => Err(ChangeError::Unknown {
                what: "image",
                name: selector.to_owned(),
            }),
        }
    }

    /// The images of banger's own whose name a newer one has that can be booted, so that nobody
    /// gets them any more who does not have them already.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn superseded(&self) -> Result<Vec<Manifest>, StoreError> {
        let mut superseded = Vec::new();
        // Of one name the newest comes last.
        for of_one_name in self.images()?.chunk_by(|one, other| one.name == other.name) {
            let Some((newest, older)) = of_one_name.split_last() else {
                continue;
            };
            if self.problem(newest).is_none() {
                let own = older.iter().filter(|image| image.elsewhere.is_none());
                superseded.extend(own.cloned());
            }
        }
        Ok(superseded)
    }

    /// Why no VM can boot an image now; `None` if one can.
    pub fn problem(&self, manifest: &Manifest) -> Option<StoreError> {
        self.whole_image(manifest.clone()).err()
    }

    /// Records an image whose files stay where they are. One of that name that is recorded so
    /// already is updated, and keeps its id.
    ///
    /// # Errors
    /// The files cannot be booted from, or a managed image has the name.
    pub fn register(&self, registration: Registration) -> Result<Manifest, ChangeError> {
        let Registration {
            name,
            files,
            kernel,
        } = registration;
        let mut size = elsewhere::check(&files.rootfs)?;
        if let Some(seed) = &files.work_seed {
            size += elsewhere::check(seed)?;
        }
        let _alone = self.alone();
        let known = self.images()?.into_iter().rfind(|known| known.name == name);
        if known
            .as_ref()
            .is_some_and(|known| known.elsewhere.is_none())
        {
            return Err(ChangeError::Taken {
                what: "image",
                name,
            });
        }
        let manifest = Manifest {
            id: known
                .as_ref()
                .map_or_else(ImageId::new, |known| known.id.clone()),
            name,
            digest: NO_DIGEST.to_owned(),
            source: format!("registered: {}", files.rootfs.display()),
            distro: "unknown".to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            created_at: jiff::Timestamp::now().to_string(),
            size: ByteSize::from_bytes(size),
            rootfs_length: 0,
            kernel,
            env: Default::default(),
            user: None,
            workdir: None,
            entrypoint: Vec::new(),
            cmd: Vec::new(),
            reference: None,
            labels: Default::default(),
            elsewhere: Some(files),
        };
        let images = self.shared.config.images();
        let directory = images.join(manifest.id.as_str());
        let written = match known {
            Some(_) => manifest::replace(&manifest, &directory),
            None => draft::Draft::new(&images).and_then(|draft| {
                manifest::write(&manifest, draft.path())?;
                draft.publish(&directory)
            }),
        };
        written.map_err(step("record the image"))?;
        Ok(manifest)
    }

    /// Gives an image another name. VMs that have booted it do not mind; one that has not would
    /// look for the old name.
    ///
    /// # Errors
    /// The name is taken, or a VM that has not booted yet asks for the old one.
    pub fn rename_image(
        &self,
        id: &ImageId,
        name: ArtifactName,
        waiting: &[VmName],
    ) -> Result<Manifest, ChangeError> {
        let _alone = self.alone();
        let directory = self.shared.config.images().join(id.as_str());
        let mut manifest: Manifest = read_manifest("image", &directory)?;
        if manifest.name == name {
            return Ok(manifest);
        }
        if !waiting.is_empty() {
            return Err(ChangeError::InUse {
                vms: waiting.to_vec(),
            });
        }
        if self.images()?.iter().any(|other| other.name == name) {
            return Err(ChangeError::Taken {
                what: "image",
                name,
            });
        }
        manifest.name = name;
        manifest::replace(&manifest, &directory).map_err(step("write the image's manifest"))?;
        Ok(manifest)
    }

    /// Removes an image; of one whose files are elsewhere only the record. `users` names the
    /// VMs that need it, and is asked before and after it is out of their reach.
    ///
    /// # Errors
    /// A VM needs it, or it is being fetched.
    pub fn delete_image(
        &self,
        manifest: &Manifest,
        users: impl Fn(&Manifest) -> Vec<VmName>,
    ) -> Result<(), ChangeError> {
        let _alone = self.alone();
        let pulled = |pull: &PullRequest| pull.shape.name == manifest.name;
        let fetched = |pull: &BundlePull| pull.name.as_ref() == Some(&manifest.name);
        if self.shared.images.is_going(|name| *name == manifest.name)
            || self.shared.pulls.is_going(pulled)
            || self.shared.image_bundles.is_going(fetched)
        {
            return Err(ChangeError::Going);
        }
        let directory = self.shared.config.images().join(manifest.id.as_str());
        remove_unused(&directory, || users(manifest))
    }

    /// Removes a kernel.
    ///
    /// # Errors
    /// A VM or image needs it, or it is being fetched.
    pub fn delete_kernel(
        &self,
        name: &ArtifactName,
        users: impl Fn() -> Vec<VmName>,
    ) -> Result<(), ChangeError> {
        let _alone = self.alone();
        let directory = self.shared.config.kernels().join(name.as_str());
        if !directory.exists() {
            return Err(ChangeError::Unknown {
                what: "kernel",
                name: name.to_string(),
            });
        }
        let fetched = |pull: &BundlePull| pull.name.as_ref() == Some(name);
        if self.shared.kernels.is_going(|going| going == name)
            || self.shared.kernel_bundles.is_going(fetched)
        {
            return Err(ChangeError::Going);
        }
        if self.catalog().kernel(name).is_none() {
            let images: Vec<String> = self
                .images()?
                .iter()
                .filter(|image| image.kernel == *name)
                .map(|image| format!("`{}`", image.name))
                .collect();
            if !images.is_empty() {
                return Err(ChangeError::Needed { images });
            }
        }
        remove_unused(&directory, users)
    }

    /// Copies the files of an unmanaged image into the store. Its id stays, so that VMs keep
    /// what they boot.
    ///
    /// # Errors
    /// Its files are banger's own already, cannot be booted from, or there is no room.
    pub fn promote(
        &self,
        id: &ImageId,
        progress: &Reporter,
        cancel: &CancellationToken,
    ) -> Result<Image, ChangeError> {
        let directory = self.shared.config.images().join(id.as_str());
        let manifest: Manifest = read_manifest("image", &directory)?;
        let Some(files) = manifest.elsewhere.clone() else {
            return Err(ChangeError::Managed);
        };
        elsewhere::check(&files.rootfs)?;
        let what = format!("copy the image {}", manifest.name);
        let mut copies = Vec::new();
        let mut copy = |from: &Path, name: &str| -> Result<([u8; 32], u64), ChangeError> {
            let mut draft = tempfile::Builder::new()
                .prefix(".copy-")
                .tempfile_in(&directory)
                .map_err(step("make a file for the copy"))?;
            let from = std::fs::File::open(from).map_err(step("open the image's file"))?;
            let length = from
                .metadata()
                .map_err(step("look at the image's file"))?
                .len();
            let mut counted = Counted {
                from: from.take(length),
                hasher: Sha256::new(),
                count: 0,
                report: &|count| progress.bytes(&what, count, Some(length)),
                cancel,
            };
            let written = sparse::copy(&mut counted, draft.as_file_mut());
            written.map_err(|error| match cancel.is_cancelled() {
                true => ChangeError::Cancelled,
                false => step("copy the image")(error),
            })?;
            draft.as_file().sync_all().map_err(step("copy the image"))?;
            let hash = counted.hasher.finalize().into();
            copies.push((draft, directory.join(name)));
            Ok((hash, length))
        };
        let (hash, length) = copy(&files.rootfs, ROOTFS)?;
        if let Some(seed) = &files.work_seed {
            elsewhere::check(seed)?;
            copy(seed, WORK_SEED)?;
        }
        let _alone = self.alone();
        let now: Manifest = read_manifest("image", &directory)?;
        if now.elsewhere != Some(files) {
            // It was registered anew meanwhile: the copy is not of what it is now.
            return Err(ChangeError::Going);
        }
        for (draft, to) in copies {
            draft
                .persist(to)
                .map_err(|error| step("put the copy in its place")(error.error))?;
        }
        let promoted = Manifest {
            digest: format!("sha256:{}", show_sha256(&hash)),
            rootfs_length: length,
            size: ByteSize::from_bytes(super::size_on_disk(&directory)),
            elsewhere: None,
            ..now
        };
        manifest::replace(&promoted, &directory).map_err(step("write the image's manifest"))?;
        Ok(self.whole_image(promoted)?)
    }

    /// One change at a time.
    pub(super) fn alone(&self) -> std::sync::MutexGuard<'_, ()> {
        let changes = self.shared.changes.lock();
        changes.unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// What the catalog has, and what of it is here.
    pub fn describe_catalog(&self) -> Result<api::Catalog, StoreError> {
        let (images, kernels) = (self.images()?, self.kernels()?);
        let known = self.shared.catalogs.current();
        Ok(known.describe(
            |name| images.iter().any(|image| image.name == *name),
            |name| kernels.iter().any(|kernel| kernel.name == *name),
        ))
    }
}

/// Moves `directory` out of everybody's reach and removes it, unless somebody needs it.
fn remove_unused(directory: &Path, users: impl Fn() -> Vec<VmName>) -> Result<(), ChangeError> {
    let refuse = |vms: Vec<VmName>| match vms.is_empty() {
        true => Ok(()),
        false => Err(ChangeError::InUse { vms }),
    };
    refuse(users())?;
    let aside = draft::beside(directory);
    std::fs::rename(directory, &aside)
        .map_err(|error| ChangeError::Store(io_error("move", directory)(error)))?;
    if let Err(in_use) = refuse(users()) {
        // Whoever looked in the meantime finds it again when it looks again.
        std::fs::rename(&aside, directory).map_err(step("put it back"))?;
        return Err(in_use);
    }
    draft::remove(&aside);
    Ok(())
}

/// Hashes and counts what is read, until it is called off.
struct Counted<'a, R> {
    from: R,
    hasher: Sha256,
    count: u64,
    report: &'a dyn Fn(u64),
    cancel: &'a CancellationToken,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("it was called off"));
        }
        let count = self.from.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.count += count as u64;
        (self.report)(self.count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests;

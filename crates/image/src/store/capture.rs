//! Images that are made of what a VM has become: its system as a tar stream, as the guest's agent
//! packs it.

use std::error::Error;
use std::fs::File;
use std::io::{BufReader, Read};

use banger_proto::error::ErrorKind;
use banger_proto::id::ImageId;
use banger_proto::name::ArtifactName;
use banger_proto::size::ByteSize;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::{ChangeError, Image, Store};
use crate::draft::Draft;
use crate::ext4::Writer;
use crate::hash::show_sha256;
use crate::image::{self, ROOTFS};
use crate::manifest::{self, Manifest};
use crate::progress::Reporter;
use crate::seed;
use crate::tarball;

/// Bytes that are read at once.
const BUFFER: usize = 1 << 18;
/// What says which machine it is, or was made for that machine alone. The agent packs the machine
/// id as an empty file, and writes names and addresses anew at each boot.
const OWN: [&str; 10] = [
    "etc/ssh/ssh_host_dsa_key",
    "etc/ssh/ssh_host_dsa_key.pub",
    "etc/ssh/ssh_host_ecdsa_key",
    "etc/ssh/ssh_host_ecdsa_key.pub",
    "etc/ssh/ssh_host_ed25519_key",
    "etc/ssh/ssh_host_ed25519_key.pub",
    "etc/ssh/ssh_host_rsa_key",
    "etc/ssh/ssh_host_rsa_key.pub",
    "var/lib/dbus/machine-id",
    "var/lib/systemd/random-seed",
];

/// What an image is to be made of.
#[derive(Clone, Debug)]
pub struct Capture {
    /// The image that the VM was made of: how commands run is as there.
    pub base: ImageId,
    /// What the new one is to be called.
    pub name: ArtifactName,
    /// What becomes of an image that has the name already.
    pub taken: Taken,
    /// Where it comes from, in words.
    pub source: String,
}

/// What becomes of an image whose name another one is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It keeps the name, and there will be no other.
    Keeps,
    /// New VMs get the other one; it stays as long as VMs need it.
    Superseded,
}

/// Why no image was made of a system.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The store does not take it.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// It was called off.
    #[error("it was called off")]
    Cancelled,
    /// A step of making it failed.
    #[error("could not {step}")]
    Step {
        /// What was being done.
        step: &'static str,
        /// Why not.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

impl CaptureError {
    /// What kind of failure it is, for the API.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Change(error) => error.kind(),
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Step { .. } => ErrorKind::Failed,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Change(error) => error.hint(),
            Self::Cancelled | Self::Step { .. } => None,
        }
    }
}

fn step<E: Into<Box<dyn Error + Send + Sync>>>(
    step: &'static str,
) -> impl FnOnce(E) -> CaptureError {
    move |source| CaptureError::Step {
        step,
        source: source.into(),
    }
}

impl Store {
    /// Whether an image may be called `name`, known before anything is made.
    ///
    /// # Errors
    /// An image has the name and keeps it, or the store cannot be read.
    pub fn admit_name(&self, name: &ArtifactName, taken: Taken) -> Result<(), ChangeError> {
        match taken {
            Taken::Keeps => self.require_free(name),
            Taken::Superseded => Ok(()),
        }
    }

    /// Makes an image of the system that `stream` holds. Blocks until it is made, the stream ends
    /// early, or `cancel` is cancelled.
    ///
    /// # Errors
    /// The stream breaks off or is no archive, there is no room, the image that it was made of is
    /// gone, the name is taken, or it is called off.
    pub fn capture(
        &self,
        wanted: Capture,
        stream: impl Read,
        progress: &Reporter,
        cancel: &CancellationToken,
    ) -> Result<Image, CaptureError> {
        self.admit_name(&wanted.name, wanted.taken)?;
        let base = self.image_by_id(&wanted.base).map_err(ChangeError::from)?;
        let base = base.ok_or_else(|| ChangeError::Unknown {
            what: "image",
            name: wanted.base.to_string(),
        })?;
        let images = self.shared.config.images();
        let id = ImageId::new();
        let draft = Draft::new(&images).map_err(step("make a directory for the image"))?;
        let rootfs = File::create_new(draft.path().join(ROOTFS))
            .map_err(step("create the root file system"))?;
        let mut counted = Counted {
            stream,
            hasher: Sha256::new(),
            count: 0,
            what: format!("write the image {}", wanted.name),
            progress,
        };
        let mut writer = Writer::new(rootfs, image::uuid(&id));
        tarball::copy_into(BufReader::with_capacity(BUFFER, &mut counted), &mut writer)
            .map_err(step("turn the system into a file system"))?;
        for path in OWN {
            writer
                .remove(path.as_bytes())
                .map_err(step("forget which machine it was"))?;
        }
        seed::make(&mut writer, draft.path(), cancel);
        if cancel.is_cancelled() {
            return Err(CaptureError::Cancelled);
        }
        let summary = writer.finish().map_err(step("finish the file system"))?;
        let digest = format!("sha256:{}", show_sha256(&counted.hasher.finalize().into()));
        let mut labels = base.manifest.labels;
        labels.insert("banger.base".to_owned(), base.manifest.digest);
        let manifest = Manifest {
            id: id.clone(),
            name: wanted.name,
            digest,
            source: wanted.source,
            reference: None,
            created_at: jiff::Timestamp::now().to_string(),
            size: ByteSize::from_bytes(super::size_on_disk(draft.path())),
            rootfs_length: summary.length,
            labels,
            elsewhere: None,
            ..base.manifest
        };
        manifest::write(&manifest, draft.path()).map_err(step("write the image's manifest"))?;
        let _alone = self.alone();
        self.admit_name(&manifest.name, wanted.taken)?;
        draft
            .publish(&images.join(id.as_str()))
            .map_err(step("publish the image"))?;
        Ok(self.whole_image(manifest).map_err(ChangeError::from)?)
    }
}

/// Hashes and counts what is read.
struct Counted<'a, R> {
    stream: R,
    hasher: Sha256,
    count: u64,
    what: String,
    progress: &'a Reporter,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.count += count as u64;
        self.progress.bytes(&self.what, self.count, None);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::place;

    /// A system of one file in `/root`, which is called off with its last byte.
    struct CalledOffAtTheEnd<'a> {
        system: &'a [u8],
        cancel: CancellationToken,
    }

    impl Read for CalledOffAtTheEnd<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let count = self.system.read(buffer)?;
            if self.system.is_empty() {
                self.cancel.cancel();
            }
            Ok(count)
        }
    }

    #[test]
    fn one_that_is_called_off_when_all_has_been_read_leaves_nothing() {
        let place = place();
        place.add_image("base", "2026-01-01T00:00:00Z");
        let base = place.store.images().unwrap().remove(0);
        let mut system = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(4);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        system
            .append_data(&mut header, "root/kept", &b"kept"[..])
            .unwrap();
        let system = system.into_inner().unwrap();
        let wanted = Capture {
            base: base.id,
            name: "made".parse().unwrap(),
            taken: Taken::Keeps,
            source: "a test".to_owned(),
        };
        let cancel = CancellationToken::new();
        let stream = CalledOffAtTheEnd {
            system: &system,
            cancel: cancel.clone(),
        };
        let made = place
            .store
            .capture(wanted, stream, &Reporter::silent(), &cancel);
        assert!(matches!(made, Err(CaptureError::Cancelled)), "{made:?}");
        let images = place.home.path().join("state/images");
        assert_eq!(std::fs::read_dir(images).unwrap().count(), 1);
    }
}

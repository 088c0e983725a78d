//! Layers that are there, or on their way, made into an image of ours.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use banger_proto::id::ImageId;
use banger_proto::reference::Digest;
use banger_proto::size::ByteSize;
use tokio_util::sync::CancellationToken;

use super::document::Config;
use super::layer::{self, LayerError};
use super::merge::Merge;
use super::wanted::is_called_off;
use super::{OciError, Shape, step};
use crate::disk;
use crate::download::{BrokenOff, StartedAnew};
use crate::draft::Draft;
use crate::ext4::Writer;
use crate::image::{ROOTFS, uuid};
use crate::manifest::{self, Manifest};
use crate::progress::Reporter;
use crate::seed;

/// What any image may have when decompressed, however small it is when compressed.
const LARGE: u64 = 4 << 30;
/// How often more it may be than what is fetched. Real images stay below 10.
const EXPANSION: u64 = 50;
/// Shortest time between two words on the progress.
const SPEAK: Duration = Duration::from_millis(50);

/// An image with all that is known of it before its layers are read.
pub(super) struct Origin {
    /// What it is called where it comes from, for people.
    pub(super) source: String,
    /// The reference that leads to it, if it is from a registry.
    pub(super) reference: Option<String>,
    /// Its digest there.
    pub(super) digest: Digest,
    pub(super) config: Config,
    /// Bytes of its layers as they are stored there.
    pub(super) stored: u64,
}

/// Makes the image out of its layers, lowest first, and publishes it below `images`. Blocks
/// until it is made, or `cancel` is cancelled.
pub(super) fn convert<R: Read + Send>(
    images: &Path,
    origin: &Origin,
    shape: &Shape,
    layers: impl ExactSizeIterator<Item = R>,
    progress: &Reporter,
    cancel: &CancellationToken,
) -> Result<Unpublished, OciError> {
    let id = ImageId::new();
    let limit = shape
        .limit
        .map_or_else(|| most(origin.stored), ByteSize::bytes);
    disk::require_room(&images.join(id.as_str()), origin.stored)?;
    let draft = Draft::new(images).map_err(step("make a directory for the image"))?;
    let rootfs =
        File::create_new(draft.path().join(ROOTFS)).map_err(step("create the root file system"))?;
    let mut merge = Merge::new(Writer::new(rootfs, uuid(&id)), limit);
    let what = format!("write the image {}", shape.name);
    let (mut left, count, mut read) = (limit, layers.len(), 0);
    for (at, (compressed, diff_id)) in layers.zip(origin.config.diff_ids()).enumerate() {
        let mut watched = Watched {
            compressed,
            read: &mut read,
            told: None,
            tell: |read| progress.bytes(&what, read, Some(origin.stored)),
        };
        let length = layer::lay(&mut watched, diff_id, left, &mut merge, cancel)
            .map_err(|source| of_layer(source, at + 1, count))?;
        left -= length;
    }
    let (mut writer, os_release) = merge.into_parts();
    seed::make(&mut writer, draft.path(), cancel);
    if cancel.is_cancelled() {
        return Err(OciError::Cancelled);
    }
    let summary = writer.finish().map_err(step("finish the file system"))?;
    let execution = &origin.config.config;
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let manifest = Manifest {
        id,
        name: shape.name.clone(),
        digest: origin.digest.to_string(),
        source: origin.source.clone(),
        reference: origin.reference.clone(),
        distro: distribution(&os_release.unwrap_or_default()),
        arch: std::env::consts::ARCH.to_owned(),
        created_at: jiff::Timestamp::now().to_string(),
        size: ByteSize::from_bytes(crate::store::size_on_disk(draft.path())),
        rootfs_length: summary.length,
        kernel: shape.kernel.clone(),
        env: execution.environment(),
        user: some(&execution.user),
        workdir: some(&execution.working_dir),
        entrypoint: execution.entrypoint.clone(),
        cmd: execution.cmd.clone(),
        labels: execution.labels.clone(),
        elsewhere: None,
    };
    manifest::write(&manifest, draft.path()).map_err(step("write the image's manifest"))?;
    Ok(Unpublished { draft, manifest })
}

/// An image that is whole, as far as its maker can tell.
pub(super) struct Unpublished {
    draft: Draft,
    manifest: Manifest,
}

impl Unpublished {
    /// Makes it one of ours.
    pub(super) fn publish(self, images: &Path) -> Result<ImageId, OciError> {
        let id = self.manifest.id;
        self.draft
            .publish(&images.join(id.as_str()))
            .map_err(step("publish the image"))?;
        Ok(id)
    }
}

/// What `stored` bytes may be when decompressed.
pub(super) fn most(stored: u64) -> u64 {
    LARGE.saturating_add(stored.saturating_mul(EXPANSION))
}

/// Whether the layers must be read again from the first one.
pub(super) fn started_anew(error: &OciError) -> bool {
    is_caused_by::<StartedAnew>(error)
}

/// Whether the layers ended because they do not come any more, for which there is a reason that
/// is better to tell.
pub(super) fn is_broken_off(error: &OciError) -> bool {
    is_caused_by::<BrokenOff>(error)
}

fn is_caused_by<E: std::error::Error + 'static>(error: &OciError) -> bool {
    let OciError::Layer {
        source: LayerError::Unpack(error),
        ..
    } = error
    else {
        return false;
    };
    error.get_ref().is_some_and(|inner| inner.is::<E>())
}

fn of_layer(source: LayerError, number: usize, count: usize) -> OciError {
    match &source {
        LayerError::Unpack(error) if is_called_off(error) => OciError::Cancelled,
        _ => OciError::Layer {
            number,
            count,
            source,
        },
    }
}

/// Counts what is read, and tells of it.
struct Watched<'a, R, F> {
    compressed: R,
    read: &'a mut u64,
    told: Option<Instant>,
    tell: F,
}

impl<R: Read, F: FnMut(u64)> Read for Watched<'_, R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.compressed.read(buffer)?;
        *self.read += count as u64;
        if self.told.is_none_or(|told| told.elapsed() > SPEAK) || count == 0 {
            (self.tell)(*self.read);
            self.told = Some(Instant::now());
        }
        Ok(count)
    }
}

/// Distribution and release as `os-release(5)` says, such as `debian 12`.
fn distribution(os_release: &[u8]) -> String {
    let text = String::from_utf8_lossy(os_release);
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        let value = line.trim().trim_matches(['"', '\'']);
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        (!value.is_empty() && value.len() <= 40 && value.chars().all(is_plain))
            .then(|| value.to_owned())
    };
    match (value("ID="), value("VERSION_ID=")) {
        (Some(id), Some(version)) => format!("{id} {version}"),
        (Some(id), None) => id,
        (None, _) => "none".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distribution_is_what_os_release_says() {
        for (text, expected) in [
            ("ID=debian\nVERSION_ID=\"12\"\n", "debian 12"),
            ("NAME=x\nID='void'\n", "void"),
            ("ID=\"a b\x1b[2J\"\n", "none"),
            ("", "none"),
        ] {
            assert_eq!(distribution(text.as_bytes()), expected, "{text}");
        }
    }
}

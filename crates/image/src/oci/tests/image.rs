//! Images made on the spot.

use std::collections::BTreeMap;
use std::io::Write;

use banger_proto::reference::Digest;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// The digest of some bytes.
pub(super) fn digest(bytes: &[u8]) -> Digest {
    Digest::of(Sha256::digest(bytes).into())
}

/// A layer that is being made. Entries have times and owners of their own unless told otherwise.
pub(super) struct Layer {
    builder: Builder<Vec<u8>>,
    clock: u64,
}

impl Layer {
    pub(super) fn new() -> Self {
        Self {
            builder: Builder::new(Vec::new()),
            clock: 1_600_000_000,
        }
    }

    /// Extended attributes of the next entry, as PAX records.
    pub(super) fn attributes(mut self, attributes: &[(&str, &[u8])]) -> Self {
        let records = attributes
            .iter()
            .map(|(name, value)| (format!("SCHILY.xattr.{name}"), *value));
        let records: Vec<_> = records.collect();
        let records = records.iter().map(|(name, value)| (name.as_str(), *value));
        self.builder.append_pax_extensions(records).unwrap();
        self
    }

    pub(super) fn entry(
        mut self,
        path: &str,
        kind: EntryType,
        mode: u32,
        owner: (u64, u64),
        link: Option<&str>,
        content: &[u8],
    ) -> Self {
        self.clock += 1;
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        header.set_mtime(self.clock);
        header.set_size(content.len() as u64);
        if matches!(kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        match link {
            Some(link) => self.builder.append_link(&mut header, path, link).unwrap(),
            None => self
                .builder
                .append_data(&mut header, path, content)
                .unwrap(),
        }
        self
    }

    pub(super) fn directory(self, path: &str) -> Self {
        self.entry(path, EntryType::Directory, 0o755, (0, 0), None, b"")
    }

    pub(super) fn file(self, path: &str, content: &[u8]) -> Self {
        self.entry(path, EntryType::Regular, 0o644, (0, 0), None, content)
    }

    pub(super) fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(path, EntryType::Symlink, 0o777, (0, 0), Some(target), b"")
    }

    pub(super) fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(path, EntryType::Link, 0o644, (0, 0), Some(target), b"")
    }

    /// The tar stream.
    pub(super) fn finish(self) -> Vec<u8> {
        self.builder.into_inner().unwrap()
    }
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An image with all its documents.
#[derive(Clone)]
pub(super) struct Image {
    /// By digest.
    pub(super) blobs: BTreeMap<Digest, Vec<u8>>,
    /// The manifest.
    pub(super) manifest: Value,
}

pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const PLAIN_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(super) const GZIP_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

impl Image {
    /// Of tar streams, lowest first, compressed in different ways.
    pub(super) fn of(layers: &[Vec<u8>]) -> Self {
        Self::compressed(layers, |at, tar| match at % 3 {
            0 => (GZIP_LAYER, gzip(tar)),
            1 => (
                "application/vnd.oci.image.layer.v1.tar+zstd",
                zstd::encode_all(tar, 1).unwrap(),
            ),
            _ => (PLAIN_LAYER, tar.to_vec()),
        })
    }

    /// The same without any compression, which every tool knows.
    pub(super) fn plain(layers: &[Vec<u8>]) -> Self {
        Self::compressed(layers, |_, tar| (PLAIN_LAYER, tar.to_vec()))
    }

    fn compressed(
        layers: &[Vec<u8>],
        compress: impl Fn(usize, &[u8]) -> (&'static str, Vec<u8>),
    ) -> Self {
        let mut blobs = BTreeMap::new();
        let mut descriptors = Vec::new();
        for (at, tar) in layers.iter().enumerate() {
            let (media_type, blob) = compress(at, tar);
            descriptors.push(descriptor(media_type, &blob));
            blobs.insert(digest(&blob), blob);
        }
        let diff_ids: Vec<_> = layers.iter().map(|tar| digest(tar)).collect();
        let config = json!({
            "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" },
            "os": "linux",
            "config": {"Env": ["PATH=/bin:/usr/bin", "GREETING=hello"], "Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config_bytes = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config_bytes),
            "layers": descriptors,
        });
        blobs.insert(digest(&config_bytes), config_bytes);
        Self { blobs, manifest }
    }

    /// The manifest as it is served.
    pub(super) fn manifest_bytes(&self) -> Vec<u8> {
        self.manifest.to_string().into_bytes()
    }

    /// Writes it as an image layout, with the tag `latest`.
    pub(super) fn write_layout(&self, directory: &std::path::Path) {
        let blobs = directory.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        for (digest, bytes) in &self.blobs {
            std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        }
        let manifest = self.manifest_bytes();
        std::fs::write(blobs.join(digest(&manifest).hex()), &manifest).unwrap();
        let mut entry = descriptor(MANIFEST, &manifest);
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        std::fs::write(directory.join("index.json"), index.to_string()).unwrap();
        let layout = json!({"imageLayoutVersion": "1.0.0"});
        std::fs::write(directory.join("oci-layout"), layout.to_string()).unwrap();
    }
}

pub(super) fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

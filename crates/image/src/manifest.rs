//! What is written beside an artifact: where it came from and what it must look like.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use banger_proto::api;
use banger_proto::id::ImageId;
use banger_proto::name::ArtifactName;
use banger_proto::size::ByteSize;
use serde::{Deserialize, Serialize};

/// File name of a manifest in its artifact's directory.
pub(crate) const MANIFEST_FILE: &str = "manifest.json";

/// What is known of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Its id, also the name of its directory.
    pub id: ImageId,
    /// Its name.
    pub name: ArtifactName,
    /// `sha256:` and the hash of the tar stream that the root file system was made from, or an
    /// OCI image's digest.
    pub digest: String,
    /// Where it came from, in words.
    pub source: String,
    /// The reference that it was pulled by.
    #[serde(default)]
    pub reference: Option<String>,
    /// Distribution and release, such as `debian 12`.
    pub distro: String,
    /// Architecture, such as `x86_64`.
    pub arch: String,
    /// When it was made, RFC 3339.
    pub created_at: String,
    /// Bytes that the root file system takes on the disk.
    pub size: ByteSize,
    /// Length of the root file system's file; another length means that it is damaged.
    pub rootfs_length: u64,
    /// The kernel that it boots with.
    pub kernel: ArtifactName,
    /// Environment of commands, beyond the agent's own.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// User that commands run as; root if absent.
    #[serde(default)]
    pub user: Option<String>,
    /// Directory that commands start in; the user's home if absent.
    #[serde(default)]
    pub workdir: Option<String>,
    /// What the image's maker wants run before any argument (OCI `Entrypoint`).
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// Default command (OCI `Cmd`).
    #[serde(default)]
    pub cmd: Vec<String>,
    /// What its maker says of it (OCI `Labels`).
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Where its files are if they are not banger's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<Elsewhere>,
}

/// The files of an image that banger does not own: it only keeps their paths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elsewhere {
    /// The root file system.
    pub rootfs: PathBuf,
    /// What new VMs' work disks are cloned from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work_seed: Option<PathBuf>,
}

impl From<&Manifest> for api::Image {
    fn from(manifest: &Manifest) -> Self {
        Self {
            id: manifest.id.clone(),
            name: manifest.name.clone(),
            digest: manifest.digest.clone(),
            source: manifest.source.clone(),
            distro: manifest.distro.clone(),
            arch: manifest.arch.clone(),
            created_at: manifest.created_at.clone(),
            size: manifest.size,
            kernel: manifest.kernel.clone(),
            reference: manifest.reference.clone(),
            env: manifest.env.clone(),
            user: manifest.user.clone(),
            workdir: manifest.workdir.clone(),
            entrypoint: manifest.entrypoint.clone(),
            cmd: manifest.cmd.clone(),
            labels: manifest.labels.clone(),
            managed: manifest.elsewhere.is_none(),
            rootfs: manifest
                .elsewhere
                .as_ref()
                .map(|files| files.rootfs.display().to_string()),
            problem: None,
        }
    }
}

/// What is known of a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelManifest {
    /// Its name, also the name of its directory.
    pub name: ArtifactName,
    /// Its release, as of `uname -r`.
    pub release: String,
    /// `sha256:` and the hash of the package it came out of.
    pub digest: String,
    /// Where it came from, in words.
    pub source: String,
    /// When it was made, RFC 3339.
    pub created_at: String,
    /// Bytes that it takes on the disk.
    pub size: ByteSize,
    /// Length of `vmlinux`; another length means that it is damaged.
    pub vmlinux_length: u64,
    /// Length of the module disk.
    pub modules_length: u64,
}

impl From<&KernelManifest> for api::Kernel {
    fn from(manifest: &KernelManifest) -> Self {
        Self {
            name: manifest.name.clone(),
            release: manifest.release.clone(),
            source: manifest.source.clone(),
            size: manifest.size,
            created_at: manifest.created_at.clone(),
        }
    }
}

/// Writes a manifest anew, whole or not at all.
pub(crate) fn replace(manifest: &impl Serialize, directory: &Path) -> io::Result<()> {
    let mut json = serde_json::to_vec_pretty(manifest).map_err(io::Error::other)?;
    json.push(b'\n');
    let mut draft = tempfile::Builder::new()
        .prefix(".manifest-")
        .tempfile_in(directory)?;
    draft.write_all(&json)?;
    draft.as_file().sync_all()?;
    draft.persist(directory.join(MANIFEST_FILE))?;
    File::open(directory)?.sync_all()
}

/// Writes a manifest into its artifact's directory.
pub(crate) fn write(manifest: &impl Serialize, directory: &Path) -> io::Result<()> {
    let mut json = serde_json::to_vec_pretty(manifest).map_err(io::Error::other)?;
    json.push(b'\n');
    let mut file = File::create(directory.join(MANIFEST_FILE))?;
    file.write_all(&json)?;
    file.sync_all()
}

//! What VMs boot from: images, kernels, the initramfs, and the disks that VMs write to.
//!
//! [`Store`] owns the artifacts under the state directory and makes those that are missing.
//! It publishes each one whole, by the rename of a directory, so that nobody ever sees a
//! half-made one. [`disk`] makes VMs' disks out of templates. [`checks`] says what the host
//! lacks for all this, in the words that a failure uses too. [`Installer`] gets the one engine
//! that a host may have to get: it is here because downloads and archives are.
//!
//! ```text
//! state/images/<id>/{rootfs.ext4, work-seed.ext4, manifest.json}
//! state/kernels/<name>/{vmlinux, modules.ext4, modules.load, boot/*.ko, manifest.json,
//!                       initrd-<hash>.img}
//! state/engines/firecracker/<version>/{firecracker, jailer, manifest.json}
//! cache/downloads/…   resumable downloads, named by what they must hash to
//! cache/oci/…         layers of other makers' images, by their digests
//! cache/templates/…   formatted, empty disks
//! cache/catalogs/…    the newest catalog that came, with its signature
//! ```

mod attempt;
mod bundle;
mod catalog;
mod check;
mod debian;
pub mod disk;
mod download;
mod draft;
mod elsewhere;
mod ext4;
mod firecracker;
mod flight;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod hash;
mod image;
mod kernel;
mod manifest;
mod oci;
mod progress;
mod seed;
mod sparse;
mod store;
mod tarball;
mod tool;
mod upload;

pub use attempt::Attempt;
pub use bundle::{BundleError, BundleSource, Packer};
pub use catalog::{CatalogOrigin, CatalogRefused};
pub use check::checks;
pub use elsewhere::ElsewhereError;
pub use firecracker::{
    AnyError, InstallError, Installed, Installer, InstallerConfig, InvalidSha256, Judge, Release,
    Sha256Sum, Source,
};
pub use hash::parse_hash;
pub use image::ImageError;
pub use kernel::KernelError;
pub use manifest::{Elsewhere, KernelManifest, Manifest};
pub use oci::{OciFailure, PullRequest, Shape};
pub use progress::Reporter;
pub use store::{
    BundlePull, Capture, CaptureError, ChangeError, Image, ImportError, Kernel, Pruning,
    Registration, Store, StoreConfig, StoreError, Taken,
};
pub use tool::ToolError;
pub use upload::{Upload, UploadError};

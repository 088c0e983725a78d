//! What of a kernel's package is used: the bzImage, and the modules as a directory tree.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use tar::EntryType;
use tokio_util::sync::CancellationToken;

use super::deb::{self, DebError};
use crate::ext4::{Attributes, Ext4Error, Time, Writer};
use crate::tarball::{End, Reader, TarError};

/// No bzImage is larger.
const LARGEST_IMAGE: u64 = 256 << 20;

/// Why a package could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub(super) enum TreeError {
    #[error(transparent)]
    Deb(#[from] DebError),
    #[error(transparent)]
    Tar(#[from] TarError),
    #[error("could not write `{path}`")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the package holds no kernel")]
    NoKernel,
    #[error("the package holds no modules for `{0}`")]
    NoModules(String),
    #[error("it was called off")]
    Cancelled,
}

/// A package, unpacked.
pub(super) struct Tree {
    /// What follows `vmlinuz-`: `uname -r`.
    pub(super) release: String,
    pub(super) bzimage: Vec<u8>,
    /// Holds `lib/modules/<release>`, as `depmod -b` wants it.
    pub(super) root: PathBuf,
    /// `<root>/lib/modules/<release>`.
    pub(super) modules: PathBuf,
}

/// Unpacks the package `deb` into the new directory `root`.
pub(super) fn unpack(
    deb: &Path,
    root: &Path,
    cancel: &CancellationToken,
) -> Result<Tree, TreeError> {
    let all = root.join("usr/lib/modules");
    std::fs::create_dir_all(&all).map_err(write_error(&all))?;
    // Old depmods look into /lib, new ones into /usr/lib.
    let link = root.join("lib");
    std::os::unix::fs::symlink("usr/lib", &link).map_err(write_error(&link))?;
    let kernel = deb::with_data(deb, |stream| unpack_stream(stream, &all, cancel))??;
    let (release, bzimage) = kernel.ok_or(TreeError::NoKernel)?;
    let modules = all.join(&release);
    match modules.is_dir() {
        true => Ok(Tree {
            release,
            bzimage,
            root: root.to_owned(),
            modules,
        }),
        false => Err(TreeError::NoModules(release)),
    }
}

fn unpack_stream(
    stream: &mut dyn Read,
    modules: &Path,
    cancel: &CancellationToken,
) -> Result<Option<(String, Vec<u8>)>, TreeError> {
    let mut reader = Reader::new(stream, End::Marked);
    let mut kernel = None;
    while let Some(entry) = reader.next_entry()? {
        if cancel.is_cancelled() {
            return Err(TreeError::Cancelled);
        }
        let path = Path::new(std::ffi::OsStr::from_bytes(&entry.path));
        let Some(path) = normal(path) else { continue };
        let path = path.strip_prefix("usr").unwrap_or(&path);
        let is_file = matches!(entry.kind, EntryType::Regular | EntryType::Continuous);
        if !is_file {
            continue;
        }
        if let Ok(below) = path.strip_prefix("lib/modules") {
            let to = modules.join(below);
            write_file(&to, &mut reader.content(), entry.attributes.modified)
                .map_err(write_error(&to))?;
        } else if let Some(release) = kernel_release(path) {
            let mut bytes = Vec::new();
            reader
                .content()
                .take(LARGEST_IMAGE)
                .read_to_end(&mut bytes)
                .map_err(TarError::Read)?;
            kernel = Some((release, bytes));
        }
    }
    Ok(kernel)
}

/// The path without `.`; `None` if it leads elsewhere.
fn normal(path: &Path) -> Option<PathBuf> {
    path.components()
        .filter(|component| !matches!(component, Component::CurDir | Component::RootDir))
        .map(|component| match component {
            Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect()
}

fn kernel_release(path: &Path) -> Option<String> {
    let name = path.strip_prefix("boot").ok()?.to_str()?;
    let release = name.strip_prefix("vmlinuz-")?;
    (!release.is_empty() && !release.contains('/')).then(|| release.to_owned())
}

fn write_file(path: &Path, content: &mut impl Read, modified: Time) -> io::Result<()> {
    std::fs::create_dir_all(path.parent().unwrap_or(path))?;
    let mut file = File::create(path)?;
    io::copy(content, &mut file)?;
    let seconds = u64::try_from(modified.seconds).unwrap_or(0);
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

/// Copies the directories and files below `from` to `to` on the disk, as root's.
pub(super) fn copy_into(from: &Path, to: &[u8], writer: &mut Writer) -> Result<(), Ext4Error> {
    let read = |path: &Path| {
        let path = path.to_owned();
        move |source| Ext4Error::Read { path, source }
    };
    let attributes = |metadata: &std::fs::Metadata, mode| Attributes {
        mode,
        modified: Time {
            seconds: metadata.mtime(),
            nanoseconds: 0,
        },
        ..Attributes::default()
    };
    let metadata = from.symlink_metadata().map_err(read(from))?;
    if metadata.is_file() {
        let mut file = File::open(from).map_err(read(from))?;
        return writer.file(to, &attributes(&metadata, 0o644), &mut file, metadata.len());
    }
    if !metadata.is_dir() {
        return Ok(());
    }
    writer.directory(to, &attributes(&metadata, 0o755))?;
    let mut names = std::fs::read_dir(from)
        .map_err(read(from))?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<io::Result<Vec<_>>>()
        .map_err(read(from))?;
    names.sort();
    for name in names {
        let target = [to, b"/", name.as_bytes()].concat();
        copy_into(&from.join(&name), &target, writer)?;
    }
    Ok(())
}

fn write_error(path: &Path) -> impl FnOnce(io::Error) -> TreeError {
    let path = path.to_owned();
    move |source| TreeError::Write { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_lead_elsewhere_are_not_taken() {
        assert_eq!(
            normal(Path::new("./lib/modules/a")),
            Some(PathBuf::from("lib/modules/a"))
        );
        assert_eq!(normal(Path::new("lib/modules/../../x")), None);
        assert_eq!(
            kernel_release(Path::new("boot/vmlinuz-6.1")),
            Some("6.1".to_owned())
        );
        assert_eq!(kernel_release(Path::new("boot/config-6.1")), None);
    }
}

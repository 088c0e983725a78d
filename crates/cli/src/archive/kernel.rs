//! A kernel's files as a bundle, and bundles that are there, on their way to the daemon.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use tar::{Builder, Header};

use super::{Pieces, PiecesWriter, pieces};
use crate::failure::Failure;

/// The files of a kernel on this host.
#[derive(Debug)]
pub(crate) struct KernelFiles {
    /// The kernel.
    pub(crate) vmlinux: PathBuf,
    /// What is unpacked before banger's own initramfs.
    pub(crate) initrd: Option<PathBuf>,
    /// Its modules, as in `/lib/modules/<release>`.
    pub(crate) modules: Option<PathBuf>,
}

impl KernelFiles {
    /// All of them as one archive, read while it is sent.
    ///
    /// # Errors
    /// One of them cannot be opened.
    pub(crate) fn pack(self) -> Result<Pieces, Failure> {
        let open = |path: &Path| {
            File::open(path).map_err(|error| {
                Failure::system(format!("could not read `{}`", path.display()), &error)
            })
        };
        let mut parts = vec![("vmlinux", open(&self.vmlinux)?)];
        if let Some(initrd) = &self.initrd {
            parts.push(("initrd.img", open(initrd)?));
        }
        if let Some(modules) = &self.modules {
            open(modules)?;
        }
        let (writer, archive) = pieces();
        std::thread::spawn(move || {
            let mut builder = Builder::new(writer);
            let packed = parts
                .into_iter()
                .try_for_each(|(name, file)| add(&mut builder, Path::new(name), file))
                .and_then(|()| match &self.modules {
                    Some(modules) => add_tree(&mut builder, modules, Path::new("modules")),
                    None => Ok(()),
                });
            // Where the writer is gone, the daemon has said why.
            if let Ok(mut writer) = builder.into_inner() {
                match packed.and_then(|()| writer.flush()) {
                    Ok(()) => {}
                    Err(error) => writer.fail(error),
                }
            }
        });
        Ok(archive)
    }
}

fn add(builder: &mut Builder<PiecesWriter>, name: &Path, file: File) -> io::Result<()> {
    let length = file.metadata()?.len();
    let mut header = Header::new_gnu();
    header.set_size(length);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    builder.append_data(&mut header, name, file.take(length))
}

/// Adds the files below `from`. Links, such as `build`, lead out of a kernel's modules.
fn add_tree(builder: &mut Builder<PiecesWriter>, from: &Path, name: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (path, name) = (entry.path(), name.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            add_tree(builder, &path, &name)?;
        } else if kind.is_file() {
            add(builder, &name, File::open(&path)?)?;
        }
    }
    Ok(())
}

/// The bytes of a file, or of standard input if it is `-`.
///
/// # Errors
/// It cannot be opened.
pub(crate) fn read_file(path: &Path) -> Result<Pieces, Failure> {
    let mut from: Box<dyn Read + Send> = match path == Path::new("-") {
        true => Box::new(io::stdin()),
        false => Box::new(File::open(path).map_err(|error| {
            Failure::system(format!("could not read `{}`", path.display()), &error)
        })?),
    };
    let (mut writer, archive) = pieces();
    std::thread::spawn(move || {
        let copied = io::copy(&mut from, &mut writer).and_then(|_| writer.flush());
        if let Err(error) = copied {
            writer.fail(error);
        }
    });
    Ok(archive)
}

//! The initramfs: banger's agent as init, and the modules that boot needs.
//!
//! ```text
//! /init                  the agent
//! /banger/modules.load   one path a line, in the order of loading
//! /banger/modules/*.ko   decompressed: the kernel's own loader takes them as they are
//! /dev/{console,null}    before anything is mounted
//! /dev /proc /run /sys   to mount on
//! ```

use std::io::{self, Read};
use std::path::Path;

use super::cpio::Archive;
use crate::debian::deb::decompress;

/// No module is larger.
const LARGEST_MODULE: u64 = 64 << 20;

/// A module, decompressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Module {
    /// File name without directory, such as `virtio_blk.ko`.
    pub(crate) name: String,
    pub(crate) content: Vec<u8>,
}

/// Builds the archive; `modules` are in load order.
pub(crate) fn build(agent: &[u8], modules: &[Module]) -> Vec<u8> {
    let mut archive = Archive::new();
    for directory in ["banger", "banger/modules", "dev", "proc", "run", "sys"] {
        archive.directory(directory);
    }
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.character_device("dev/null", 0o666, 1, 3);
    archive.file("init", 0o755, agent);
    let mut list = String::new();
    for module in modules {
        let path = format!("banger/modules/{}", module.name);
        archive.file(&path, 0o644, &module.content);
        list.push_str(&format!("/{path}\n"));
    }
    archive.file("banger/modules.load", 0o644, list.as_bytes());
    archive.finish()
}

/// Reads the module at `path` and decompresses it as its name says.
pub(crate) fn read_module(path: &Path) -> io::Result<Module> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let (stem, compression) = name.split_once(".ko").ok_or(io::ErrorKind::InvalidInput)?;
    let file = std::fs::File::open(path)?;
    let stream = decompress(compression, file).ok_or(io::ErrorKind::Unsupported)??;
    let mut content = Vec::new();
    stream.take(LARGEST_MODULE).read_to_end(&mut content)?;
    match content.starts_with(b"\x7fELF") {
        true => Ok(Module {
            name: format!("{stem}.ko"),
            content,
        }),
        false => Err(io::ErrorKind::InvalidData.into()),
    }
}

//! What may go of the cache. All of it can be had or made again, so that only what somebody uses
//! just now stays: files of it are locked by whoever uses them.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use banger_proto::api::{CacheKind, CachePart};
use banger_proto::size::ByteSize;
use rustix::fs::{FlockOperation, flock};

use super::{Store, StoreError, io_error, size_on_disk};
use crate::{disk, draft};

/// Whether things really go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pruning {
    /// They do.
    Real,
    /// What would go is only told.
    Dry,
}

impl Store {
    /// Removes what nobody uses of the cache: downloads, layers, templates of disks, catalogs that
    /// no longer count. Blocks for file operations.
    ///
    /// # Errors
    /// A directory cannot be read, or a file not be removed.
    pub fn prune_cache(&self, pruning: Pruning) -> Result<Vec<CachePart>, StoreError> {
        let config = &self.shared.config;
        let mut catalogs = Tally::default();
        for old in self.shared.catalogs.old() {
            catalogs.gone(size_on_disk(&old));
            if pruning == Pruning::Real {
                draft::remove(&old);
            }
        }
        Ok(vec![
            prune(&config.downloads(), pruning)?.of(CacheKind::Downloads),
            prune(&config.oci(), pruning)?.of(CacheKind::Layers),
            prune(&disk::templates(&config.cache_dir), pruning)?.of(CacheKind::Templates),
            catalogs.of(CacheKind::Catalogs),
        ])
    }
}

#[derive(Debug, Default)]
struct Tally {
    files: u64,
    freed: u64,
    in_use: u64,
}

impl Tally {
    fn gone(&mut self, bytes: u64) {
        self.files += 1;
        self.freed += bytes;
    }

    fn of(self, kind: CacheKind) -> CachePart {
        CachePart {
            kind,
            files: self.files,
            freed: ByteSize::from_bytes(self.freed),
            in_use: ByteSize::from_bytes(self.in_use),
        }
    }
}

/// Removes the files of a directory that nobody has locked. Those whose names begin with a dot are
/// on their way to another name.
fn prune(directory: &Path, pruning: Pruning) -> Result<Tally, StoreError> {
    let mut tally = Tally::default();
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(tally),
        entries => entries.map_err(io_error("read", directory))?,
    };
    for entry in entries {
        let entry = entry.map_err(io_error("read", directory))?;
        let is_draft = entry.file_name().to_string_lossy().starts_with('.');
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if is_draft || !is_file {
            continue;
        }
        let path = entry.path();
        match prune_file(&path, pruning) {
            Ok(Some(bytes)) => tally.gone(bytes),
            Ok(None) => tally.in_use += entry.metadata().map_or(0, |found| found.blocks() * 512),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error("remove", &path)(error)),
        }
    }
    Ok(tally)
}

/// Removes a file, and gives the bytes that it took; `None` if somebody uses it.
fn prune_file(path: &Path, pruning: Pruning) -> io::Result<Option<u64>> {
    let file = File::open(path)?;
    // Held until the file is gone: who finds it locked, or gone, fetches it anew.
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(None);
    }
    let bytes = file.metadata()?.blocks() * 512;
    if pruning == Pruning::Real {
        std::fs::remove_file(path)?;
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests;

//! Blobs that were fetched once, kept under their digests.
//!
//! ```text
//! cache/oci/<hex of the SHA-256>        a blob, whole when it was put there
//! cache/oci/<hex of the SHA-256>.part   what has come of one so far
//! ```
//!
//! What lies there is not believed: it is hashed each time before it counts. A blob that is
//! used becomes the youngest, and the oldest go when all of them are larger than the bound.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use banger_proto::reference::Digest;
use sha2::{Digest as _, Sha256};
use tokio::sync::OwnedMutexGuard;

use super::document::LARGEST;

/// What blobs may take together.
pub(crate) const BOUND: u64 = 16 << 30;

/// The cache's directory, and who is busy with which blob.
#[derive(Debug)]
pub(crate) struct Cache {
    directory: PathBuf,
    busy: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
}

impl Cache {
    /// The cache in `directory`, which is made when it is first needed.
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            busy: Mutex::default(),
        }
    }

    /// Its directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Waits until nobody else of this process fetches the blob, and keeps others from it.
    pub(crate) async fn reserve(&self, digest: &Digest) -> OwnedMutexGuard<()> {
        let lock = {
            let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            busy.retain(|_, lock| lock.strong_count() > 0);
            let known = busy.get(digest).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let lock = Arc::default();
                busy.insert(digest.clone(), Arc::downgrade(&lock));
                lock
            })
        };
        lock.lock_owned().await
    }

    /// The content of a small blob, if it is there and right. A large one is not read: what names
    /// it where a small one belongs was written by others.
    pub(crate) async fn read(&self, digest: &Digest) -> Option<Vec<u8>> {
        let (path, wanted) = (self.directory.join(digest.hex()), digest.clone());
        let content = tokio::task::spawn_blocking(move || read_small(&path, &wanted))
            .await
            .ok()??;
        self.touch(digest);
        Some(content)
    }

    /// Keeps a small blob. A failure costs only a download.
    pub(crate) fn keep(&self, digest: &Digest, content: &[u8]) {
        let keep = || -> io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
            io::Write::write_all(&mut file, content)?;
            file.persist(self.directory.join(digest.hex()))?;
            Ok(())
        };
        if let Err(error) = keep() {
            tracing::warn!(%error, directory = %self.directory.display(), "could not keep a blob");
        }
    }

    /// Makes the blob the youngest. A failure lets it go a little earlier.
    pub(crate) fn touch(&self, digest: &Digest) {
        let touched = File::open(self.directory.join(digest.hex()))
            .and_then(|file| file.set_modified(SystemTime::now()));
        if let Err(error) = touched {
            tracing::debug!(%error, %digest, "could not touch a blob");
        }
    }

    /// Removes the oldest files until the rest take at most `bound` bytes. Whoever reads one
    /// meanwhile keeps it until they are done.
    pub(crate) fn trim(&self, bound: u64) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            let metadata = entry.as_ref().map(std::fs::DirEntry::metadata);
            if let (Ok(entry), Ok(Ok(metadata))) = (&entry, metadata)
                && metadata.is_file()
            {
                files.push((metadata.modified()?, metadata.len(), entry.path()));
            }
        }
        files.sort();
        let mut total: u64 = files.iter().map(|(_, length, _)| length).sum();
        for (_, length, path) in files {
            if total <= bound {
                return Ok(());
            }
            // A part that is being fetched is locked by whoever fetches it.
            let file = File::open(&path)?;
            let lock = rustix::fs::FlockOperation::NonBlockingLockExclusive;
            if rustix::fs::flock(&file, lock).is_ok() {
                std::fs::remove_file(&path)?;
                total -= length;
            }
        }
        Ok(())
    }
}

fn read_small(path: &Path, wanted: &Digest) -> Option<Vec<u8>> {
    let metadata = std::fs::metadata(path).ok()?;
    if !metadata.is_file() || metadata.len() > LARGEST {
        return None;
    }
    let mut content = Vec::new();
    let file = File::open(path).ok()?;
    file.take(LARGEST).read_to_end(&mut content).ok()?;
    let is_right = Digest::of(Sha256::digest(&content).into()) == *wanted;
    is_right.then_some(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn digest(content: &[u8]) -> Digest {
        Digest::of(Sha256::digest(content).into())
    }

    #[tokio::test]
    async fn only_a_small_blob_is_read_whole() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::new(directory.path().to_owned());
        for (length, is_read) in [(LARGEST, true), (LARGEST + 1, false)] {
            let content = vec![0; usize::try_from(length).unwrap()];
            cache.keep(&digest(&content), &content);
            let read = cache.read(&digest(&content)).await;
            assert_eq!(read.is_some(), is_read, "{length}");
        }
    }

    #[tokio::test]
    async fn what_was_changed_in_the_cache_is_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::new(directory.path().to_owned());
        let blob = digest(b"blob");
        cache.keep(&blob, b"blob");
        assert_eq!(cache.read(&blob).await.unwrap(), b"blob");
        std::fs::write(directory.path().join(blob.hex()), b"blot").unwrap();
        assert_eq!(cache.read(&blob).await, None);
    }

    #[test]
    fn the_oldest_go_first_and_those_in_use_stay() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::new(directory.path().to_owned());
        let path = |name: &str| directory.path().join(name);
        for (age, name) in ["youngest", "middle", "fetched.part", "oldest"]
            .iter()
            .enumerate()
        {
            std::fs::write(path(name), [0; 100]).unwrap();
            let age = Duration::from_secs(60 * age as u64);
            let file = File::options().append(true).open(path(name)).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        }
        let part = File::open(path("fetched.part")).unwrap();
        rustix::fs::flock(&part, rustix::fs::FlockOperation::LockExclusive).unwrap();
        cache.trim(400).unwrap();
        assert!(path("oldest").exists());
        cache.trim(250).unwrap();
        let left = |name: &str| path(name).exists();
        assert!(left("youngest") && left("fetched.part"));
        assert!(!left("oldest") && !left("middle"));
    }

    #[tokio::test]
    async fn one_at_a_time_fetches_a_blob() {
        let cache = Cache::new("/nonexistent".into());
        let blob = digest(b"blob");
        let first = cache.reserve(&blob).await;
        let other = cache.reserve(&digest(b"other")).await;
        let second = cache.reserve(&blob);
        tokio::pin!(second);
        assert!(futures_poll(&mut second).await.is_none());
        drop((first, other));
        second.await;
    }

    /// What the future has now.
    async fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        std::future::poll_fn(|context| {
            std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(context) {
                std::task::Poll::Ready(output) => Some(output),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }
}

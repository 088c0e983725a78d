//! How the logs that an engine writes stay bounded. The engine appends to them by itself, with or
//! without a daemon, and a guest can print without end. So while a machine runs, its logs are
//! watched; one that is too long is begun anew, and its last part is kept beside it.
//!
//! ```text
//! console.log ── over SIZE_MAX ──> its last KEPT bytes: console.log.1, console.log: from 0 on
//! ```
//!
//! One inotify(7) instance watches the logs of all machines, because a user has few of them; it is
//! there while machines run. Logs that cannot be watched are told of, and looked at now and then.
//!
//! Nothing wakes up while nothing is written. A log that grows while no daemon runs is cut when
//! the next one adopts the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use banger_engine::Place;
use rustix::fs::inotify;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::descriptor::{take_events, watched};

/// Bytes beyond which a log is cut. What is written until that is noticed comes on top.
const SIZE_MAX: u64 = 16 << 20;
/// Bytes of it that are kept.
const KEPT: u64 = 8 << 20;
/// How long after a look the next one is at the earliest: guests that print without end
/// cost the daemon one look in this time.
const PAUSE: Duration = Duration::from_secs(1);
/// How long after a failure to watch or to cut a log it is tried again.
const AGAIN: Duration = Duration::from_secs(60);

/// The logs of all machines that run.
#[derive(Debug)]
pub struct BoundedLogs {
    bounds: Bounds,
    kept: watch::Sender<Logs>,
    /// Never used again: a machine that has started anew has new files of the same names.
    next_number: AtomicU64,
}

/// The logs of machines, by the number of who keeps them.
type Logs = BTreeMap<u64, Vec<PathBuf>>;

/// Keeps the logs of a machine bounded until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Kept {
    number: u64,
    kept: watch::Sender<Logs>,
}

impl Default for BoundedLogs {
    fn default() -> Self {
        Self::with(Bounds {
            size_max: SIZE_MAX,
            kept: KEPT,
            pause: PAUSE,
            again: AGAIN,
        })
    }
}

impl BoundedLogs {
    fn with(bounds: Bounds) -> Self {
        Self {
            bounds,
            kept: watch::Sender::default(),
            next_number: AtomicU64::default(),
        }
    }

    /// Has the logs of a machine kept bounded.
    pub fn keep(&self, place: &Place) -> Kept {
        self.keep_files(vec![place.console_log(), place.engine_log()])
    }

    fn keep_files(&self, logs: Vec<PathBuf>) -> Kept {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        self.kept
            .send_modify(|kept| drop(kept.insert(number, logs)));
        Kept {
            number,
            kept: self.kept.clone(),
        }
    }

    /// Does it, for as long as it is polled.
    pub async fn watch(&self) {
        let mut kept = self.kept.subscribe();
        let mut watcher = Watcher::default();
        let mut troubled = BTreeSet::new();
        loop {
            let logs = kept.borrow_and_update().clone();
            // The watches come first, so that nothing falls between them and the look.
            let mut trouble = watcher.follow(&logs);
            let bounds = self.bounds;
            let looked = logs.into_values().flatten();
            trouble.extend(crate::blocking(move || bounds.cut_all(looked)).await);
            for (log, error) in &trouble {
                if !troubled.contains(log) {
                    let log = log.display();
                    tracing::warn!(%log, %error, "a log is not kept bounded: tried again later");
                }
            }
            troubled = trouble.into_keys().collect();
            tokio::select! {
                // The sender lives as long as `self`.
                _ = kept.changed() => {}
                () = watcher.written(bounds.pause) => {}
                () = tokio::time::sleep(bounds.again), if !troubled.is_empty() => {}
            }
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.kept
            .send_modify(|kept| drop(kept.remove(&self.number)));
    }
}

/// Logs that could not be watched or cut, and why.
type Trouble = BTreeMap<PathBuf, io::Error>;

/// Watches the files themselves: disks in the same directories change all the time.
#[derive(Debug, Default)]
struct Watcher {
    /// There while there is something to watch.
    changes: Option<AsyncFd<OwnedFd>>,
    /// The watches on each one's logs.
    watched: BTreeMap<u64, Vec<i32>>,
}

impl Watcher {
    /// Watches exactly these logs.
    fn follow(&mut self, logs: &Logs) -> Trouble {
        let mut trouble = Trouble::new();
        if logs.is_empty() {
            *self = Self::default();
            return trouble;
        }
        let changes = match &mut self.changes {
            Some(changes) => changes,
            none => match new_instance() {
                Ok(changes) => none.insert(changes),
                Err(error) => {
                    let log = logs.values().flatten().next().cloned();
                    trouble.insert(log.unwrap_or_default(), error);
                    return trouble;
                }
            },
        };
        let gone: Vec<u64> = self.watched.keys().copied().collect();
        for number in gone.iter().filter(|number| !logs.contains_key(number)) {
            for watch in self.watched.remove(number).into_iter().flatten() {
                // It goes by itself with the file.
                let _ = inotify::remove_watch(changes.get_ref(), watch);
            }
        }
        for (number, logs) in logs {
            if self.watched.contains_key(number) {
                continue;
            }
            match add_watches(changes.get_ref(), logs) {
                Ok(watches) => drop(self.watched.insert(*number, watches)),
                Err((log, error)) => drop(trouble.insert(log, error)),
            }
        }
        trouble
    }

    /// Resolves when something was written, at the earliest after a pause. Cancel-safe.
    async fn written(&self, pause: Duration) {
        let Some(changes) = &self.changes else {
            return std::future::pending().await;
        };
        let Ok(mut ready) = changes.readable().await else {
            // The reactor ends, and the daemon with it.
            return std::future::pending().await;
        };
        ready.retain_ready();
        drop(ready);
        tokio::time::sleep(pause).await;
        if let Ok(mut ready) = changes.readable().await {
            // Whatever was written until here, the next look sees it.
            let _ = ready.try_io(|changes| take_events(changes.get_ref()));
        }
    }
}

fn new_instance() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    watched(inotify::init(flags)?, Interest::READABLE)
}

/// Watches all of these or none.
fn add_watches(changes: &OwnedFd, logs: &[PathBuf]) -> Result<Vec<i32>, (PathBuf, io::Error)> {
    let mut watches = Vec::new();
    for log in logs {
        match inotify::add_watch(changes, log, inotify::WatchFlags::MODIFY) {
            Ok(watch) => watches.push(watch),
            Err(errno) => {
                for watch in watches {
                    let _ = inotify::remove_watch(changes, watch);
                }
                return Err((log.clone(), errno.into()));
            }
        }
    }
    Ok(watches)
}

/// What is kept of a log.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    size_max: u64,
    kept: u64,
    pause: Duration,
    again: Duration,
}

impl Bounds {
    /// Begins all anew that are too long.
    fn cut_all(self, logs: impl Iterator<Item = PathBuf>) -> Trouble {
        logs.filter_map(|log| {
            let error = self.cut(&log).err()?;
            Some((log, error))
        })
        .collect()
    }

    /// Begins a log anew that is too long. Whoever appends to it goes on at its beginning.
    fn cut(self, log: &Path) -> io::Result<()> {
        let mut file = match OpenOptions::new().read(true).write(true).open(log) {
            // The VM is being deleted.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened?,
        };
        let length = file.metadata()?.len();
        if length <= self.size_max {
            return Ok(());
        }
        file.seek(SeekFrom::Start(length.saturating_sub(self.kept)))?;
        let set_aside = set_aside(&mut file.by_ref().take(2 * self.kept), log);
        // Without room for its last part it must be cut all the more.
        file.set_len(0)?;
        tracing::info!(log = %log.display(), length, "a log has become too long and begins anew");
        set_aside
    }
}

/// Keeps the last part of a log beside it.
fn set_aside(part: &mut impl io::Read, log: &Path) -> io::Result<()> {
    let mut draft = log.as_os_str().to_owned();
    draft.push(".cut");
    let draft = PathBuf::from(draft);
    let copied = (|| {
        let mut file: File = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)?;
        io::copy(part, &mut file)?;
        fs::rename(&draft, log.with_extension("log.1"))
    })();
    if copied.is_err() {
        // What was kept before is better than half of this.
        let _ = fs::remove_file(&draft);
    }
    copied
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::sync::Arc;

    const BOUNDS: Bounds = Bounds {
        size_max: 1000,
        kept: 100,
        pause: Duration::from_millis(1),
        again: Duration::from_millis(10),
    };

    fn appended(path: &Path) -> File {
        let mut options = File::options();
        options.append(true).create(true).open(path).unwrap()
    }

    #[test]
    fn a_log_that_is_too_long_keeps_its_last_part_and_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut engine = appended(&path);
        engine.write_all(&[b'a'; 1000]).unwrap();
        BOUNDS.cut(&path).unwrap();
        assert_eq!(engine.metadata().unwrap().len(), 1000, "just long enough");
        engine.write_all(&[b'b'; 50]).unwrap();
        BOUNDS.cut(&path).unwrap();
        engine.write_all(b"next").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "next");
        let kept = fs::read_to_string(dir.path().join("console.log.1")).unwrap();
        assert_eq!(kept, format!("{}{}", "a".repeat(50), "b".repeat(50)));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[tokio::test]
    async fn writers_without_end_stay_bounded_and_share_one_watcher() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Arc::new(BoundedLogs::with(BOUNDS));
        let keeping = tokio::spawn({
            let logs = Arc::clone(&logs);
            async move { logs.watch().await }
        });
        let paths: Vec<PathBuf> = (0..3)
            .map(|vm| dir.path().join(format!("{vm}.log")))
            .collect();
        let mut engines: Vec<File> = paths.iter().map(|path| appended(path)).collect();
        let kept: Vec<Kept> = paths
            .iter()
            .map(|path| logs.keep_files(vec![path.clone()]))
            .collect();
        for _ in 0..20 {
            for engine in &mut engines {
                engine.write_all(&[b'x'; 2000]).unwrap();
            }
            until_cut(&paths).await;
        }
        drop(kept);
        // One that begins again, with a new file of the same name, is watched as well.
        fs::remove_file(&paths[0]).unwrap();
        let mut engine = appended(&paths[0]);
        let _kept = logs.keep_files(vec![paths[0].clone()]);
        engine.write_all(&[b'x'; 2000]).unwrap();
        until_cut(&paths[..1]).await;
        assert!(!keeping.is_finished());
        keeping.abort();
    }

    #[tokio::test]
    async fn a_log_that_cannot_be_watched_is_looked_at_again() {
        let dir = tempfile::tempdir().unwrap();
        let logs = BoundedLogs::with(BOUNDS);
        let late = dir.path().join("late.log");
        let _kept = logs.keep_files(vec![late.clone()]);
        tokio::select! {
            // The first look comes first, at a file that is not there.
            biased;
            () = logs.watch() => {}
            () = async {
                appended(&late).write_all(&[b'x'; 2000]).unwrap();
                until_cut(std::slice::from_ref(&late)).await;
            } => {}
        }
    }

    async fn until_cut(logs: &[PathBuf]) {
        while logs
            .iter()
            .any(|log| fs::metadata(log).unwrap().len() > 1000)
        {
            tokio::task::yield_now().await;
        }
    }
}

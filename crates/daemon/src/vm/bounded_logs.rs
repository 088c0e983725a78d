//! How the logs that an engine writes stay bounded. The engine appends to them by itself, with or
//! without a daemon, and a guest can print without end. So while a machine runs, its logs are
//! watched; one that is too long is begun anew, and its last part is kept beside it.
//!
//! ```text
//! console.log ── over SIZE_MAX ──> its last KEPT bytes: console.log.1, console.log: from 0 on
//! ```
//!
//! Nothing wakes up while nothing is written. A log that grows while no daemon runs is cut when
//! the next one adopts the machine.

use std::convert::Infallible;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_engine::Place;
use rustix::fs::inotify;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::descriptor::{take_events, watched};

/// Bytes beyond which a log is cut. What is written until that is noticed comes on top.
const SIZE_MAX: u64 = 16 << 20;
/// Bytes of it that are kept.
const KEPT: u64 = 8 << 20;
/// How long after a look the next one is at the earliest: a guest that prints without end
/// costs the daemon one look in this time.
const PAUSE: Duration = Duration::from_secs(1);

/// Keeps the logs of a machine bounded for as long as it is polled.
pub async fn keep_bounded(place: &Place) -> Infallible {
    let bounds = Bounds {
        size_max: SIZE_MAX,
        kept: KEPT,
        pause: PAUSE,
    };
    let logs = vec![place.console_log(), place.engine_log()];
    if let Err(error) = bounds.keep(logs).await {
        tracing::warn!(%error, "the engine's logs are not kept bounded");
    }
    std::future::pending().await
}

/// What is kept of a log.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    size_max: u64,
    kept: u64,
    pause: Duration,
}

impl Bounds {
    /// Returns only when the logs cannot be watched.
    async fn keep(self, logs: Vec<PathBuf>) -> io::Result<()> {
        // The watch comes first, so that nothing falls between it and the first look.
        let changes = watch(&logs)?;
        loop {
            let looked = logs.clone();
            crate::blocking(move || looked.iter().try_for_each(|log| self.cut(log))).await?;
            changes.readable().await?.retain_ready();
            tokio::time::sleep(self.pause).await;
            let mut ready = changes.readable().await?;
            // Whatever was written until here, the next turn sees it.
            let _ = ready.try_io(|changes| take_events(changes.get_ref()));
        }
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

/// Watches the files themselves: disks in the same directory change all the time.
fn watch(logs: &[PathBuf]) -> io::Result<AsyncFd<OwnedFd>> {
    let changes = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    for log in logs {
        inotify::add_watch(&changes, log, inotify::WatchFlags::MODIFY)?;
    }
    watched(changes, Interest::READABLE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    const BOUNDS: Bounds = Bounds {
        size_max: 1000,
        kept: 100,
        pause: Duration::from_millis(1),
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
    async fn a_writer_without_end_stays_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let logs = vec![
            dir.path().join("console.log"),
            dir.path().join("engine.log"),
        ];
        let mut engines: Vec<File> = logs.iter().map(|log| appended(log)).collect();
        let console = logs[0].clone();
        let keeping = tokio::spawn(BOUNDS.keep(logs));
        for _ in 0..20 {
            engines[0].write_all(&[b'x'; 2000]).unwrap();
            while fs::metadata(&console).unwrap().len() > 1000 {
                tokio::task::yield_now().await;
            }
        }
        assert!(!keeping.is_finished());
        keeping.abort();
    }
}

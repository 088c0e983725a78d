//! What a guest's console says of its end.
//!
//! Firecracker has no power switch: a guest that powers off stops its CPUs, and its machine
//! stays; one that restarts ends its machine, with the same status whatever the reason. The
//! guest's kernel says on the console which it is, at its highest level, as its last words
//! (`kernel/reboot.c`), so that any init and any program that asks for it is understood.
//!
//! ```text
//! reboot: System halted      the guest is off; the machine is to be ended
//! reboot: Restarting system  the machine ends by itself
//! ```
//!
//! What stands before the words depends on the kernel's configuration, and they may follow a
//! prompt on the same line. Everybody who may write to the console can print them, too: whoever
//! ends a machine for them looks first whether the guest still answers.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;

use crate::{reactor, tail};

/// How long after something was printed the console is looked at, and for how long nothing
/// may follow the last words. A guest that prints without end costs a look in this time.
const SETTLE: Duration = Duration::from_millis(100);

/// What a console ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LastWords {
    /// The guest's CPUs are stopped for good.
    Off,
    /// Anything else.
    Other,
}

/// The last words on the console in this log. A log that has become too long begins anew
/// (`vm::bounded_logs` of the daemon), and what was last may be in the part that is set aside.
pub(super) fn last_words(log: &Path) -> LastWords {
    let last = tail(log, 1)
        .pop()
        .or_else(|| tail(&set_aside(log)?, 1).pop());
    match last {
        Some(line) if is_off(&line) => LastWords::Off,
        _ => LastWords::Other,
    }
}

/// The part of this log that was set aside. What has its name may also be the log of the machine
/// before this one, which has ended in its own way: that was written to before this log was made.
fn set_aside(log: &Path) -> Option<PathBuf> {
    let aside = log.with_extension("log.1");
    let made = fs::metadata(log).ok()?.created().ok()?;
    let written = fs::metadata(&aside).ok()?.modified().ok()?;
    (written > made).then_some(aside)
}

/// How a kernel that cannot switch the power off ends (`kernel/reboot.c`, of different ages).
const OFF: [&str; 3] = [
    "reboot: System halted",
    "reboot: Power off not available: System halted instead",
    "reboot: Power down",
];

fn is_off(line: &str) -> bool {
    OFF.iter().any(|words| line.trim_end().ends_with(words))
}

/// Watches a console.
#[derive(Debug)]
pub(super) struct Watch {
    log: PathBuf,
    events: AsyncFd<OwnedFd>,
}

impl Watch {
    /// # Errors
    /// The log cannot be watched.
    pub(super) fn begin(log: PathBuf) -> io::Result<Self> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let events = inotify::init(flags)?;
        inotify::add_watch(&events, &log, inotify::WatchFlags::MODIFY)?;
        Ok(Self {
            log,
            events: reactor::readable(events)?,
        })
    }

    /// Returns once the guest says that it is off, as the last that it says. Cancel-safe.
    ///
    /// # Errors
    /// The log cannot be watched any more.
    pub(super) async fn says_off(&self) -> io::Result<()> {
        // The watch came first, so that nothing falls between it and the first look.
        while last_words(&self.log) != LastWords::Off || self.changes_within(SETTLE).await? {
            self.changed().await?;
        }
        Ok(())
    }

    /// Returns some time after the guest has printed more. Cancel-safe.
    ///
    /// # Errors
    /// As [`Self::says_off`].
    pub(super) async fn changed(&self) -> io::Result<()> {
        self.events.readable().await?.retain_ready();
        tokio::time::sleep(SETTLE).await;
        self.forget().await
    }

    async fn changes_within(&self, limit: Duration) -> io::Result<bool> {
        match tokio::time::timeout(limit, self.events.readable()).await {
            Ok(ready) => ready.map(|mut ready| {
                ready.retain_ready();
                true
            }),
            Err(_) => Ok(false),
        }
    }

    /// Takes the events that there are: what they tell of is looked at next.
    async fn forget(&self) -> io::Result<()> {
        let mut ready = self.events.readable().await?;
        let mut buffer = [std::mem::MaybeUninit::uninit(); 1024];
        let mut reader = inotify::Reader::new(self.events.get_ref(), &mut buffer);
        while reader.next().is_ok() {}
        ready.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::io::Write;

    #[test]
    fn the_kernels_last_words_are_understood_however_it_prints() {
        for line in [
            "reboot: System halted",
            "[   12.345678] reboot: System halted",
            "[1234567.000001] reboot: Power down",
            "[  158.021154] reboot: Power off not available: System halted instead\r",
            "[    0.123456][    T1] reboot: System halted",
            "debian login: [   12.345678] reboot: System halted",
        ] {
            assert!(is_off(line), "{line}");
        }
        for line in [
            "",
            "[   12.345678] reboot: Restarting system",
            "[   12.345678] reboot: System halted, or so",
            "System halted",
        ] {
            assert!(!is_off(line), "{line}");
        }
    }

    #[tokio::test]
    async fn a_guest_is_off_once_nothing_follows_its_last_words() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        fs::write(
            &path,
            "[    0.1] reboot: System halted\r\nand on it goes\r\n",
        )
        .unwrap();
        let console = Watch::begin(path.clone()).unwrap();
        let off = console.says_off();
        tokio::pin!(off);
        let early = tokio::time::timeout(SETTLE * 3, &mut off).await;
        assert!(early.is_err(), "something followed");
        let mut log = OpenOptions::new().append(true).open(&path).unwrap();
        log.write_all(b"[   12.345678] reboot: System halted\r\n")
            .unwrap();
        let in_time = tokio::time::timeout(Duration::from_secs(20), off).await;
        in_time.unwrap().unwrap();
        assert_eq!(last_words(&path), LastWords::Off);
        // Cut off at that very moment.
        let said = fs::read(&path).unwrap();
        fs::write(path.with_extension("log.1"), said).unwrap();
        fs::write(&path, "").unwrap();
        assert_eq!(last_words(&path), LastWords::Off);
        fs::write(&path, "[    0.1] begins\r\n").unwrap();
        assert_eq!(last_words(&path), LastWords::Other);
    }

    #[test]
    fn the_last_words_of_the_machine_before_are_not_those_of_this_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        fs::write(&path, "[   12.345678] reboot: System halted\r\n").unwrap();
        assert_eq!(last_words(&path), LastWords::Off);
        // As the next launch does.
        drop(crate::files::log(&path).unwrap());
        assert!(path.with_extension("log.1").exists());
        assert_eq!(last_words(&path), LastWords::Other);
    }
}

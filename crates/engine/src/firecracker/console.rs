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

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
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

/// The last words on the console in this log.
pub(super) fn last_words(log: &Path) -> LastWords {
    match tail(log, 1).first() {
        Some(line) if is_off(line) => LastWords::Off,
        _ => LastWords::Other,
    }
}

/// How a kernel that cannot switch the power off ends (`kernel/reboot.c`, of different ages).
const OFF: [&str; 3] = [
    "reboot: System halted",
    "reboot: Power off not available: System halted instead",
    "reboot: Power down",
];

/// `[   12.345678] reboot: System halted`: with a time, as no log that is shown on the console
/// ends by chance.
fn is_off(line: &str) -> bool {
    let Some((time, words)) = line
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("] "))
    else {
        return false;
    };
    let is_time = time.trim_start().parse::<f64>().is_ok();
    is_time && OFF.contains(&words)
}

/// Returns once the guest is off. Cancel-safe.
///
/// # Errors
/// The log cannot be watched.
pub(super) async fn off(log: &Path) -> io::Result<()> {
    let events = watch(log)?;
    // The watch comes first, so that nothing falls between it and the first look.
    loop {
        if last_words(log) == LastWords::Off && !changes_within(&events, SETTLE).await? {
            return Ok(());
        }
        events.readable().await?.retain_ready();
        tokio::time::sleep(SETTLE).await;
        forget(&events).await?;
    }
}

fn watch(log: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let events = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&events, log, inotify::WatchFlags::MODIFY)?;
    reactor::readable(events)
}

async fn changes_within(events: &AsyncFd<OwnedFd>, limit: Duration) -> io::Result<bool> {
    match tokio::time::timeout(limit, events.readable()).await {
        Ok(ready) => ready.map(|mut ready| {
            ready.retain_ready();
            true
        }),
        Err(_) => Ok(false),
    }
}

/// Takes the events that there are: what they tell of is looked at next.
async fn forget(events: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut ready = events.readable().await?;
    let mut buffer = [std::mem::MaybeUninit::uninit(); 1024];
    let mut reader = inotify::Reader::new(events.get_ref(), &mut buffer);
    while reader.next().is_ok() {}
    ready.clear_ready();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, OpenOptions};
    use std::io::Write;

    #[test]
    fn only_the_kernels_own_last_words_mean_off() {
        for line in [
            "[   12.345678] reboot: System halted",
            "[1234567.000001] reboot: Power down",
            "[  158.021154] reboot: Power off not available: System halted instead",
        ] {
            assert!(is_off(line), "{line}");
        }
        for line in [
            "",
            "reboot: System halted",
            "[   12.345678] reboot: Restarting system",
            "[   12.345678] systemd[1]: reboot: System halted",
            "[  OK  ] reboot: System halted",
            "[   12.345678] reboot: System halted, or so",
            "# echo [   12.345678] reboot: System halted",
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
        let off = off(&path);
        tokio::pin!(off);
        let early = tokio::time::timeout(SETTLE * 3, &mut off).await;
        assert!(early.is_err(), "something followed");
        let mut log = OpenOptions::new().append(true).open(&path).unwrap();
        log.write_all(b"[   12.345678] reboot: System halted\r\n")
            .unwrap();
        let in_time = tokio::time::timeout(Duration::from_secs(20), off).await;
        in_time.unwrap().unwrap();
        assert_eq!(last_words(&path), LastWords::Off);
    }
}

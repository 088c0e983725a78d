//! Signals that are waited for rather than caught.

use std::io;
use std::mem;
use std::ptr;
use std::time::Duration;

/// Empties this thread's mask. Async-signal-safe.
///
/// # Errors
/// None that is known.
pub(crate) fn unblock_all() -> io::Result<()> {
    // SAFETY: sigset_t is plain memory that sigemptyset initialises; both calls get valid
    // pointers and are async-signal-safe.
    unsafe {
        let mut none: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut none);
        match libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Signals that stay pending until they are asked for. Processes that are started inherit that,
/// unless they call [`unblock_all`] before they execute their program.
pub(super) struct Signals(libc::sigset_t);

impl Signals {
    /// Blocks these signals. This process has one thread.
    pub(super) fn block(signals: &[i32]) -> io::Result<Self> {
        // SAFETY: sigset_t is plain memory that sigemptyset initialises; all calls get valid
        // pointers, and this process has one thread.
        unsafe {
            let mut set: libc::sigset_t = mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in signals {
                libc::sigaddset(&raw mut set, *signal);
            }
            match libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) {
                0 => Ok(Self(set)),
                _ => Err(io::Error::last_os_error()),
            }
        }
    }

    /// Waits for the next one; `None` at the limit.
    pub(super) fn next(&self, limit: Option<Duration>) -> io::Result<Option<i32>> {
        let limit = limit.map(|limit| libc::timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(limit.subsec_nanos()),
        });
        let limit = limit.as_ref().map_or(ptr::null(), ptr::from_ref);
        // SAFETY: the set is initialised, the limit valid or null, and no information wanted.
        match unsafe { libc::sigtimedwait(&raw const self.0, ptr::null_mut(), limit) } {
            -1 => match io::Error::last_os_error() {
                error if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => {
                    Ok(None)
                }
                error => Err(error),
            },
            signal => Ok(Some(signal)),
        }
    }
}

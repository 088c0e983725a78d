//! Waits until a descriptor that tokio has no type for can be read.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Hands a descriptor to the runtime's reactor.
///
/// # Errors
/// The descriptor is none that can be waited for.
pub(crate) fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, always tells the same number, and is closed by its drop
    // alone; the `AsyncFd` gives it out by shared reference only, so that it stays in place
    // until the registration is gone.
    let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    Ok(registered?)
}

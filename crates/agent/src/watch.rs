//! How the runtime learns that a descriptor is ready.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Has the runtime watch a descriptor.
///
/// # Errors
/// The descriptor is of a kind that cannot be watched.
pub(crate) fn watch(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open for as long as the `AsyncFd` owns it, and nobody in this
    // crate replaces it through `get_mut`.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, interest)? })
}

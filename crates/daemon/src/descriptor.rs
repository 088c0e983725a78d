//! Waiting for what happens to a file descriptor.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::inotify;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Has the reactor watch a descriptor for `interest`.
///
/// # Errors
/// The descriptor is of a kind that cannot be watched (epoll_ctl(2)).
pub fn watched(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and stays the same descriptor for as long as it is owned,
    // and the `AsyncFd` owns it.
    let watched = unsafe { AsyncFd::register_with_interest(descriptor, interest) };
    watched.map_err(Into::into)
}

/// Takes all events of an inotify(7) descriptor; `WouldBlock` if there are none.
///
/// # Errors
/// There are none, or they cannot be read.
pub fn take_events(changes: &OwnedFd) -> io::Result<()> {
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(changes, &mut buffer);
    let mut any = false;
    loop {
        match reader.next() {
            Ok(_) => any = true,
            Err(_) if any => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

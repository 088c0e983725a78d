//! What makes this guest itself: its name and its time.

use std::io;

use rustix::time::{ClockId, Timespec, clock_settime};

/// Sets the kernel's hostname.
///
/// # Errors
/// Not root, or the name is too long for the kernel.
pub fn set_hostname(name: &str) -> io::Result<()> {
    Ok(rustix::system::sethostname(name.as_bytes())?)
}

/// Sets the clock, in nanoseconds since the Unix epoch.
///
/// # Errors
/// Not root, or a time that the kernel does not take.
pub fn set_clock(unix_ns: u64) -> io::Result<()> {
    let time = Timespec {
        tv_sec: i64::try_from(unix_ns / 1_000_000_000).map_err(io::Error::other)?,
        tv_nsec: i64::try_from(unix_ns % 1_000_000_000).map_err(io::Error::other)?,
    };
    Ok(clock_settime(ClockId::Realtime, time)?)
}

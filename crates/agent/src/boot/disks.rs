//! When the devices are there: the kernel tells of each new one on a netlink socket.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use banger_proto::agent::DiskRole;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use rustix::time::Timespec;

use super::BootError;
use super::cmdline::CommandLine;
use crate::report::BootReport;

/// How long a device may take to appear; a guest on a loaded host without hardware
/// virtualisation is slow.
const LIMIT: Duration = Duration::from_secs(20);

/// The kernel's events about devices, from the moment of listening on.
#[derive(Debug)]
pub(crate) struct Events(OwnedFd);

impl Events {
    /// Must come before the modules are loaded, so that no event is missed.
    pub(crate) fn listen() -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            Some(KOBJECT_UEVENT),
        )?;
        bind(&socket, &SocketAddrNetlink::new(0, 1))?;
        Ok(Self(socket))
    }

    /// Waits for the next event. Which one does not matter: the caller looks itself.
    fn wait(&self, limit: Duration) -> io::Result<()> {
        let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
        poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&limit))?;
        let mut event = [0u8; 4096];
        while recv(&self.0, &mut event, RecvFlags::empty()).is_ok() {}
        Ok(())
    }
}

/// Waits until a path exists, in bounded time; says whether it does.
pub(crate) fn await_path(events: &Events, path: &Path) -> bool {
    let end = Instant::now() + LIMIT;
    while !path.exists() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || events.wait(left).is_err() {
            return path.exists();
        }
    }
    true
}

/// Waits until what `look` sees is at least `size`, in bounded time; returns what it saw last.
pub(super) fn await_size(
    events: &Events,
    size: u64,
    look: impl Fn() -> io::Result<u64>,
) -> io::Result<u64> {
    let end = Instant::now() + LIMIT;
    loop {
        let seen = look()?;
        let left = end.saturating_duration_since(Instant::now());
        if seen >= size || left.is_zero() {
            return Ok(seen);
        }
        events.wait(left)?;
    }
}

/// The device of a disk, once it is there; `None` if the machine is not meant to have one.
pub(super) fn find(
    events: &Events,
    cmdline: &CommandLine,
    role: DiskRole,
) -> Result<Option<String>, BootError> {
    let Some(device) = cmdline.device(role) else {
        return Ok(None);
    };
    if await_path(events, Path::new(&device)) {
        return Ok(Some(device));
    }
    Err(BootError::MissingDisk {
        role: role.as_str(),
        device,
    })
}

/// As [`find`], with a warning instead of an error.
pub(super) fn find_optional(
    events: &Events,
    cmdline: &CommandLine,
    role: DiskRole,
    report: &mut BootReport,
) -> Option<String> {
    match find(events, cmdline, role) {
        Ok(None) => {
            report
                .warnings
                .push(format!("there is no {} disk", role.as_str()));
            None
        }
        Ok(device) => device,
        Err(error) => {
            super::warn(report, "devices", Err(error));
            None
        }
    }
}

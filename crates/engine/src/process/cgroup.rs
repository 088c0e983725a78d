//! The cgroup of an engine (cgroups(7), version 2): bounds of what it may use of the host, should
//! its guest take it over.
//!
//! ```text
//! /sys/fs/cgroup/banger/<instance>-<slot>    pids.max, memory.max, cpu.max
//! ```
//!
//! Only root may make it there. Where the host has no cgroups of this version, or does not hand
//! on its controllers, as in most containers, an engine has the bounds of the daemon.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use banger_proto::size::ByteSize;

use crate::Place;

/// Where version 2 is mounted, if at all.
const TOP: &str = "/sys/fs/cgroup";
/// What an engine needs beside its guest's memory, and what is to stay cached of the disks.
const MORE_MEMORY: ByteSize = ByteSize::from_mib(1024);
/// Threads that an engine has beside those of its guest's CPUs.
const MORE_THREADS: u32 = 32;
/// Length of the time that `cpu.max` is about, in microseconds: the kernel's default.
const PERIOD: u64 = 100_000;
/// How long the kernel may take to let go of processes that have ended.
const GONE_MAX: Duration = Duration::from_secs(5);

/// What a machine's engine may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Allowance {
    /// CPUs of the guest.
    pub vcpu: u32,
    /// Memory of the guest.
    pub memory: ByteSize,
}

impl Allowance {
    /// The controllers, their files, and what these are to say.
    fn limits(self) -> [(&'static str, &'static str, String); 3] {
        let memory = self.memory.bytes() + MORE_MEMORY.bytes();
        // One CPU more than the guest has, for its devices.
        let quota = (u64::from(self.vcpu) + 1) * PERIOD;
        [
            ("pids", "pids.max", (self.vcpu + MORE_THREADS).to_string()),
            ("memory", "memory.max", memory.to_string()),
            ("cpu", "cpu.max", format!("{quota} {PERIOD}")),
        ]
    }
}

/// A cgroup that a process puts itself into.
#[derive(Debug)]
pub(crate) struct Cgroup(OwnedFd);

impl Cgroup {
    /// Makes the one of `place`. `None`: this process may not, or the host has none.
    pub(crate) fn make(place: &Place, allowance: Allowance) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        match Self::make_below(Path::new(TOP), place, allowance) {
            Ok(cgroup) => Some(cgroup),
            Err(error) => {
                tracing::debug!(%error, "the engine has no cgroup of its own");
                None
            }
        }
    }

    fn make_below(top: &Path, place: &Place, allowance: Allowance) -> io::Result<Self> {
        let limits = allowance.limits();
        let all = top.join("banger");
        let own = all.join(name(place));
        // Only version 2 has this file.
        fs::metadata(top.join("cgroup.controllers"))?;
        fs::create_dir_all(&own)?;
        for (controller, file, limit) in limits {
            let hand_on = |from: &Path| {
                fs::write(
                    from.join("cgroup.subtree_control"),
                    format!("+{controller}"),
                )
            };
            // What one host does not have another may.
            let limited = hand_on(top)
                .and_then(|()| hand_on(&all))
                .and_then(|()| fs::write(own.join(file), limit));
            if let Err(error) = limited {
                tracing::debug!(controller, %error, "a cgroup cannot limit its engine by this");
            }
        }
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let processes = rustix::fs::open(own.join("cgroup.procs"), flags, Mode::empty())?;
        Ok(Self(processes))
    }

    /// Enters it. For the child between fork and exec: makes system calls only.
    pub(super) fn enter(&self) -> io::Result<()> {
        rustix::io::write(&self.0, b"0")?;
        Ok(())
    }
}

/// Removes the cgroup of `place`, whose processes have ended. Succeeds when there is none.
///
/// # Errors
/// Processes are in it.
pub(crate) async fn remove(place: &Place) -> io::Result<()> {
    let own = directory(place);
    let deadline = tokio::time::Instant::now() + GONE_MAX;
    loop {
        match fs::remove_dir(&own) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            // Nothing tells when the kernel has let go of what has ended.
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy
                    && tokio::time::Instant::now() < deadline =>
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            removed => break removed?,
        }
    }
    // The last one turns off the light; while there are others it cannot.
    if let Some(all) = own.parent() {
        let _ = fs::remove_dir(all);
    }
    Ok(())
}

/// Where the cgroup of `place` is, if it is.
pub(crate) fn directory(place: &Place) -> PathBuf {
    Path::new(TOP).join("banger").join(name(place))
}

fn name(place: &Place) -> String {
    format!("{}-{}", place.instance, place.slot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_follow_from_the_guest() {
        let allowance = Allowance {
            vcpu: 2,
            memory: ByteSize::from_mib(512),
        };
        let told = allowance
            .limits()
            .map(|(_, file, limit)| format!("{file} {limit}"));
        assert_eq!(
            told,
            [
                "pids.max 34",
                "memory.max 1610612736",
                "cpu.max 300000 100000"
            ]
        );
    }
}

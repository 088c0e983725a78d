//! The cgroup of an engine (cgroups(7), version 2): bounds of what it may use of the host, should
//! its guest take it over.
//!
//! ```text
//! /sys/fs/cgroup/banger/<instance>-<slot>    pids.max, memory.max, cpu.max
//! ```
//!
//! Only root may make it there. Where the host has no cgroups of this version, or does not hand
//! on its controllers, as in most containers, an engine has the bounds of the daemon.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use banger_proto::id::InstanceId;
use banger_proto::size::ByteSize;

use crate::Place;

/// Where version 2 is mounted, if at all.
const TOP: &str = "/sys/fs/cgroup";
/// Name of the cgroup that all of banger's are in.
const ALL: &str = "banger";
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
        let all = top.join(ALL);
        let own = all.join(name(&place.instance, place.slot));
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

/// Removes the cgroup of this slot, whose processes have ended. Succeeds when there is none.
///
/// # Errors
/// Processes are in it.
pub async fn remove_cgroup(instance: &InstanceId, slot: u16) -> io::Result<()> {
    let all = Path::new(TOP).join(ALL);
    let own = cgroup_path(instance, slot);
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
    let _ = fs::remove_dir(all);
    Ok(())
}

/// The slots of an instance that have a cgroup, with something in it or not.
///
/// # Errors
/// Cgroups cannot be listed.
pub fn cgroups(instance: &InstanceId) -> io::Result<BTreeSet<u16>> {
    slots_below(Path::new(TOP), instance)
}

fn slots_below(top: &Path, instance: &InstanceId) -> io::Result<BTreeSet<u16>> {
    let entries = match fs::read_dir(top.join(ALL)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries?,
    };
    let mut slots = BTreeSet::new();
    for entry in entries {
        let name = entry?.file_name();
        let words = name.to_str().and_then(|name| name.split_once('-'));
        if let Some((of, slot)) = words
            && of == instance.as_str()
        {
            slots.extend(slot.parse::<u16>());
        }
    }
    Ok(slots)
}

/// Where the cgroup of a slot is, if it is.
pub fn cgroup_path(instance: &InstanceId, slot: u16) -> PathBuf {
    Path::new(TOP).join(ALL).join(name(instance, slot))
}

fn name(instance: &InstanceId, slot: u16) -> String {
    format!("{instance}-{slot}")
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
    #[test]
    fn only_the_cgroups_of_an_instance_are_its() {
        let [own, other] = [InstanceId::new(), InstanceId::new()];
        let top = tempfile::tempdir().unwrap();
        assert_eq!(slots_below(top.path(), &own).unwrap(), BTreeSet::new());
        for name in [
            name(&own, 3),
            name(&own, 65535),
            name(&other, 4),
            format!("{own}-x"),
            "cgroup.procs".to_owned(),
        ] {
            fs::create_dir_all(top.path().join(ALL).join(name)).unwrap();
        }
        assert_eq!(slots_below(top.path(), &own).unwrap(), [3, 65535].into());
    }
}

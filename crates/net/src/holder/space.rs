//! The namespaces: how the holder enters them, and what it gives up.

use std::fs;
use std::io;

use rustix::process::DumpableBehavior;
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

use super::HolderError;

/// Which of the two processes goes on after the fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// The one that the daemon started; it has nothing left to do.
    Outer,
    /// The holder.
    Inner,
}

/// What the holder keeps of its rights over its own namespaces: the network's
/// administration, the resolver's port, and entering namespaces.
///
/// Not more than what pasta keeps of its own, because pasta may look at
/// `/proc/<holder>/ns/net` only while it has every right that the holder has (ptrace(2),
/// "ptrace access mode checking").
const KEPT: CapabilitySet = CapabilitySet::NET_ADMIN
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_ADMIN);

/// Leaves everything that ties the process to the daemon: terminal, directory, descriptors.
pub(super) fn leave_the_daemon() -> Result<(), HolderError> {
    // It fails for a process that leads a group already, and then it is where it shall be.
    let _ = rustix::process::setsid();
    // What the holder creates is for its user alone, from birth.
    rustix::process::umask(rustix::fs::Mode::from(0o077));
    std::env::set_current_dir("/").map_err(failed("leave the working directory"))?;
    close_descriptors();
    Ok(())
}

fn close_descriptors() {
    // SAFETY: nothing in this process owns a descriptor above standard error yet: the
    // holder is the first thing that `main` runs. On failure (a kernel before 5.9) the
    // descriptors stay open, which does no harm, as the daemon's are close-on-exec.
    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
}

/// Enters a new user namespace and forks into a new PID namespace.
pub(super) fn enter_user_and_pid() -> Result<Side, HolderError> {
    unshare_user_and_pid()?;
    // SAFETY: the process has one thread, so that the child may do all that the parent may.
    match unsafe { libc::fork() } {
        0 => Ok(Side::Inner),
        -1 => Err(failed("start the holder in a PID namespace")(
            io::Error::last_os_error(),
        )),
        _ => Ok(Side::Outer),
    }
}

/// Enters a new network namespace; the other threads stay where they are.
pub(super) fn enter_network() -> Result<(), HolderError> {
    unshare(UnshareFlags::NEWNET).map_err(failed("make a network namespace"))
}

/// Gives up all rights but [`KEPT`].
pub(super) fn drop_capabilities() -> Result<(), HolderError> {
    let sets = CapabilitySets {
        effective: KEPT,
        permitted: KEPT,
        inheritable: CapabilitySet::empty(),
    };
    let step = "give up rights";
    rustix::thread::set_capabilities(None, sets).map_err(|e| failed(step)(e.into()))?;
    // Entering the user namespace has taken this away, and pasta needs it to look at
    // `/proc/<holder>/ns/net` (ptrace(2)).
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)
        .map_err(|e| failed(step)(e.into()))
}

/// Makes the namespaces and leaves them again by ending.
pub(super) fn probe() -> Result<(), HolderError> {
    unshare_user_and_pid()?;
    enter_network()
}

fn unshare_user_and_pid() -> Result<(), HolderError> {
    let user = rustix::process::getuid().as_raw();
    let group = rustix::process::getgid().as_raw();
    unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWPID)
        .map_err(failed("make a user and a PID namespace"))?;
    // Who maps only himself needs no rights, once groups cannot be changed any more
    // (user_namespaces(7)).
    let map = |path: &str, text: &str| {
        fs::write(path, text).map_err(failed("map the user into a user namespace"))
    };
    map("/proc/self/setgroups", "deny")?;
    map("/proc/self/uid_map", &format!("0 {user} 1"))?;
    map("/proc/self/gid_map", &format!("0 {group} 1"))
}

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: the descriptors' table stays shared, which is what could go wrong.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

fn failed(step: &'static str) -> impl FnOnce(io::Error) -> HolderError {
    move |source| HolderError::Namespace { step, source }
}

//! The network namespace of a tap, for an engine that opens taps by their names: it must be in
//! that namespace to find them, and needs no right in there.
//!
//! ```text
//! tap's descriptor ── TUNGETDEVNETNS ──> network namespace ── NS_GET_USERNS ──> its user namespace
//! ```
//!
//! Root enters the network namespace alone. Whoever made the namespaces as an ordinary user has
//! every right over them, but only from inside of the user namespace; what that gives is taken
//! from the engine before it runs.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::process::Uid;
use rustix::thread::{CapabilitySet, CapabilitySets, LinkNameSpaceType};

/// `TUNGETDEVNETNS` of linux/if_tun.h: `_IO('T', 227)`.
const TUNGETDEVNETNS: libc::Ioctl = 0x54e3;
/// `TUNGETIFF` of linux/if_tun.h: `_IOR('T', 210, unsigned int)`.
const TUNGETIFF: libc::Ioctl = 0x8004_54d2;
/// `TUNSETOWNER` of linux/if_tun.h: `_IOW('T', 204, int)`.
const TUNSETOWNER: libc::Ioctl = 0x4004_54cc;
/// `NS_GET_USERNS` of linux/nsfs.h: `_IO(0xb7, 0x1)`.
const NS_GET_USERNS: libc::Ioctl = 0xb701;
/// linux/securebits.h: `SECBIT_NOROOT`, `SECBIT_NO_SETUID_FIXUP`, and the locks of both.
const SECUREBITS: libc::c_ulong = 0b1111;

/// The namespaces that a process enters before it runs.
#[derive(Debug)]
pub(crate) struct Space {
    network: OwnedFd,
    /// `None` for root, who needs not be in it.
    user: Option<OwnedFd>,
}

impl Space {
    /// Where `tap` is.
    ///
    /// # Errors
    /// The kernel is too old to tell (before 5.3), or this user did not make the namespace.
    pub(crate) fn of_tap(tap: BorrowedFd<'_>) -> io::Result<Self> {
        let network = related(tap, TUNGETDEVNETNS)?;
        let user = match rustix::process::geteuid().is_root() {
            true => None,
            false => Some(related(network.as_fd(), NS_GET_USERNS)?),
        };
        Ok(Self { network, user })
    }

    /// Enters it, for good. For the child between fork and exec: makes system calls only.
    pub(super) fn enter(&self) -> io::Result<()> {
        if let Some(user) = &self.user {
            enter(user.as_fd(), LinkNameSpaceType::User)?;
        }
        enter(self.network.as_fd(), LinkNameSpaceType::Network)
    }

    /// Gives up what being in a user namespace of one's own means, beyond the next exec. What
    /// root's engines may do is decided by whom they become. As [`Self::enter`].
    pub(super) fn renounce(&self) -> io::Result<()> {
        if self.user.is_none() {
            return Ok(());
        }
        // SAFETY: PR_SET_SECUREBITS takes a number (capabilities(7)).
        if unsafe { libc::prctl(libc::PR_SET_SECUREBITS, SECUREBITS) } == -1 {
            return Err(io::Error::last_os_error());
        }
        let none = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        Ok(rustix::thread::set_capabilities(None, none)?)
    }
}

fn enter(namespace: BorrowedFd<'_>, kind: LinkNameSpaceType) -> io::Result<()> {
    Ok(rustix::thread::move_into_link_name_space(
        namespace,
        Some(kind),
    )?)
}

/// The namespace that a descriptor is in, by one of the requests that return a descriptor.
fn related(fd: BorrowedFd<'_>, request: libc::Ioctl) -> io::Result<OwnedFd> {
    // SAFETY: neither request takes an argument.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: both requests return a new descriptor that nobody else owns.
        found => Ok(unsafe { OwnedFd::from_raw_fd(found) }),
    }
}

/// Lets this user open the tap by its name. Kernels before 6.14 let everybody do so who is in
/// the namespace, and later ones nobody, while the tap has no owner.
///
/// # Errors
/// It is no tap.
pub(crate) fn give_tap(tap: BorrowedFd<'_>, to: Uid) -> io::Result<()> {
    let owner = libc::c_ulong::from(to.as_raw());
    // SAFETY: TUNSETOWNER takes a number.
    match unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETOWNER, owner) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// What the device behind a tap's descriptor is called.
///
/// # Errors
/// It is no tap.
pub(crate) fn name_of_tap(tap: BorrowedFd<'_>) -> io::Result<String> {
    // SAFETY: an `ifreq` is numbers and unions of numbers, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // SAFETY: TUNGETIFF writes one `ifreq`, which `request` is.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), TUNGETIFF, &raw mut request) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    let bytes: Vec<u8> = request
        .ifr_name
        .iter()
        .map(|byte| byte.cast_unsigned())
        .take_while(|byte| *byte != 0)
        .collect();
    String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

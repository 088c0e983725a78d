//! Whether KVM is truly usable: that `/dev/kvm` can be opened proves little.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// The device by which processes use KVM.
pub(crate) const DEVICE: &str = "/dev/kvm";

/// What `ioctl(KVM_GET_API_VERSION)` answers for ever (Documentation/virt/kvm/api.rst, 4.1).
const API_VERSION: i32 = 12;
// Documentation/virt/kvm/api.rst; the numbers are those of include/uapi/linux/kvm.h.
const KVM_GET_API_VERSION: libc::Ioctl = 0xAE00;
const KVM_CREATE_VM: libc::Ioctl = 0xAE01;
const KVM_CREATE_VCPU: libc::Ioctl = 0xAE41;

/// Why KVM cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// The CPU has no virtualisation, or it is hidden from this host.
    #[error("the CPU shows neither vmx nor svm")]
    NoVirtualisation,
    /// There is no device.
    #[error("there is no {DEVICE}")]
    NoDevice,
    /// The device is not for us.
    #[error("{DEVICE} may not be opened")]
    Open(#[source] io::Error),
    /// Engines do not run as root, and the device is for root only.
    #[error("{DEVICE} is for root only, and engines do not run as root")]
    RootOnly,
    /// The device is not KVM as we know it.
    #[error("{DEVICE} speaks version {0} of its interface, not {API_VERSION}")]
    Version(i32),
    /// The device does not do what it is for.
    #[error("KVM could not {what}")]
    Refused {
        /// What was asked of it.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl Unusable {
    /// What the user can do.
    pub fn fix(&self) -> &'static str {
        match self {
            Self::NoVirtualisation => {
                "switch on virtualisation (VT-x, AMD-V) in the firmware, or nested \
                 virtualisation where this host is a VM itself"
            }
            Self::NoDevice => "load the module: `sudo modprobe kvm_intel` or `kvm_amd`",
            Self::Open(_) => {
                "join the group of the device: `sudo usermod -aG kvm $USER`, then log in again"
            }
            Self::RootOnly => {
                "give the device to a group: `chgrp kvm /dev/kvm; chmod 660 /dev/kvm`"
            }
            Self::Version(_) | Self::Refused { .. } => {
                "see `dmesg` for what KVM says; banger goes on with software emulation"
            }
        }
    }
}

/// Finds out whether an engine can use KVM, by making a VM and a CPU.
///
/// On a CPU without virtualisation the device is left alone: drivers for nested use have
/// been seen to take a VM and then hang.
///
/// # Errors
/// It cannot, and this is why.
pub fn kvm() -> Result<(), Unusable> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if !shows_virtualisation(&cpuinfo) {
        return Err(Unusable::NoVirtualisation);
    }
    let device = open(Path::new(DEVICE))?;
    let version = order(&device, KVM_GET_API_VERSION, "tell its version")?;
    if version != API_VERSION {
        return Err(Unusable::Version(version));
    }
    let vm = made(order(&device, KVM_CREATE_VM, "make a VM")?);
    made(order(&vm, KVM_CREATE_VCPU, "make a CPU")?);
    Ok(())
}

fn open(path: &Path) -> Result<File, Unusable> {
    let device = OpenOptions::new().read(true).write(true).open(path);
    let device = device.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Unusable::NoDevice,
        _ => Unusable::Open(error),
    })?;
    let metadata = device.metadata().map_err(Unusable::Open)?;
    if !metadata.file_type().is_char_device() {
        return Err(Unusable::NoDevice);
    }
    let by_group = metadata.mode() & 0o060 == 0o060 && metadata.gid() != 0;
    let by_anyone = metadata.mode() & 0o006 == 0o006;
    if rustix::process::geteuid().is_root() && !by_group && !by_anyone {
        return Err(Unusable::RootOnly);
    }
    Ok(device)
}

fn order(device: &impl AsRawFd, request: libc::Ioctl, what: &'static str) -> Result<i32, Unusable> {
    // SAFETY: none of the three requests takes a pointer; their argument is the number 0.
    match unsafe { libc::ioctl(device.as_raw_fd(), request, 0) } {
        -1 => Err(Unusable::Refused {
            what,
            source: io::Error::last_os_error(),
        }),
        answer => Ok(answer),
    }
}

fn made(fd: i32) -> OwnedFd {
    // SAFETY: KVM_CREATE_VM and KVM_CREATE_VCPU return a new descriptor that nobody else owns.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Whether this host is itself a virtual machine, whose guests are several times slower.
pub(crate) fn is_virtual() -> bool {
    shows(
        &fs::read_to_string("/proc/cpuinfo").unwrap_or_default(),
        &["hypervisor"],
    )
}

fn shows_virtualisation(cpuinfo: &str) -> bool {
    shows(cpuinfo, &["vmx", "svm"])
}

/// Whether the CPUs have one of these flags.
fn shows(cpuinfo: &str, wanted: &[&str]) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .flat_map(str::split_ascii_whitespace)
        .any(|flag| wanted.contains(&flag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_flags_count_not_the_words_elsewhere() {
        assert!(shows_virtualisation(
            "processor: 0\nflags\t\t: fpu vmx sse\n"
        ));
        assert!(shows_virtualisation("flags : svm"));
        assert!(!shows_virtualisation(
            "flags : fpu sse vmx_none\nmodel name : svm\n"
        ));
        assert!(!shows_virtualisation(
            "vmx flags\t: vnmi preemption_timer\nflags: fpu\n"
        ));
    }

    #[test]
    fn a_cpu_without_virtualisation_is_not_asked_further() {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap();
        if shows_virtualisation(&cpuinfo) {
            eprintln!("skipped: this CPU has virtualisation");
            return;
        }
        assert!(matches!(kvm(), Err(Unusable::NoVirtualisation)));
    }
}

//! What a machine is made of, decided before the engine is asked.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use banger_proto::agent::DiskRole;
use banger_proto::name::VmName;
use banger_proto::size::ByteSize;

use crate::Place;

/// Everything that an engine needs to start a machine.
#[derive(Debug)]
pub struct MachineSpec {
    /// Whose machine it is, and where its sockets and logs go.
    pub place: Place,
    /// The VM's name; for people who look at the process list.
    pub name: VmName,
    /// Number of CPUs, at least 1.
    pub vcpu: u32,
    /// Memory of the guest.
    pub memory: ByteSize,
    /// The kernel: an uncompressed ELF image (`vmlinux`).
    pub kernel: PathBuf,
    /// The initial file system.
    pub initrd: PathBuf,
    /// The kernel's command line. The engine adds nothing to it.
    pub cmdline: String,
    /// The disks, in the order in which the guest sees them (`vda`, `vdb`, ...).
    pub disks: Vec<Disk>,
    /// The network card, if there is one.
    pub nic: Option<Nic>,
}

/// One disk of a machine: a raw image file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// What it is for.
    pub role: DiskRole,
    /// The image file.
    pub path: PathBuf,
    /// Whether the guest may write to it.
    pub access: Access,
}

/// Whether the guest may write to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// It may only read.
    ReadOnly,
    /// It may read and write.
    ReadWrite,
}

/// The network card of a machine.
#[derive(Debug)]
pub struct Nic {
    /// Hardware address, such as `02:1f:2e:00:00:07`.
    pub mac: String,
    /// The tap device, opened with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`.
    pub tap: OwnedFd,
    /// Largest packet in bytes, as the guest is told.
    pub mtu: u16,
}

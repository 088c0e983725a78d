//! What everything of a VM is called, and what its machine is made of. Pure: no I/O.
//!
//! [`Layout`] needs nothing but the VM's id and slot, so that what a VM has on the host can
//! be removed by name, whatever was forgotten.

use std::path::PathBuf;

use banger_config::Paths;
use banger_engine::{Access, Disk, Place};
use banger_net::plan::Plan as NetworkPlan;
use banger_proto::agent::{DiskRole, cmdline};
use banger_proto::api::EngineKind;
use banger_proto::id::{InstanceId, VmId};
use banger_proto::name::VmName;

/// The kernel's parameters that are the same for every VM.
///
/// `panic=-1` restarts at once after a panic, which ends the machine (engines run without
/// reboot); `net.ifnames=0` keeps the NIC's name `eth0` under any init; `cryptomgr.notests`
/// leaves out self-tests that take half a second of an emulated boot.
/// `no_timer_check` is what a kernel on KVM sets itself: on a busy host an emulated timer is late, and
/// the kernel would panic for want of it (kernel-parameters.txt).
const KERNEL_PARAMETERS: &str =
    "console=ttyS0 quiet panic=-1 net.ifnames=0 cryptomgr.notests no_timer_check";
/// What Firecracker's machines need besides what it adds itself. A restart goes by the keyboard
/// controller, the only way that Firecracker sees; they have no mouse and one serial port, and
/// looking for more takes a while. The agent's link is the vsock.
const FIRECRACKER_PARAMETERS: &str = "reboot=k i8042.noaux i8042.nomux \
                                      i8042.dumbkbd 8250.nr_uarts=1 banger.link=vsock";
/// The guest's NIC.
const GUEST_NIC: &str = "eth0";

/// Where a VM's things are on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The engine's part.
    pub place: Place,
    /// The VM's directory: all that outlives a stop.
    pub directory: PathBuf,
    /// The writable disk that overlays the image.
    pub system_disk: PathBuf,
    /// The disk with the guest's `/root`.
    pub work_disk: PathBuf,
    /// The guest's private ssh host key.
    pub ssh_host_key: PathBuf,
    /// A `known_hosts` file with just that key.
    pub known_hosts: PathBuf,
    /// How a restarted daemon finds the machine.
    pub handles: PathBuf,
    /// What the VM is, for when the database is lost.
    pub record: PathBuf,
}

impl Layout {
    /// Names everything of the VM `id` in `slot`.
    pub fn of(paths: &Paths, instance: &InstanceId, id: &VmId, slot: u16) -> Self {
        let directory = paths.vms().join(id.as_str());
        Self {
            place: Place {
                instance: instance.clone(),
                slot,
                vm: id.clone(),
                runtime_dir: paths.vm_runtime(slot),
                log_dir: directory.clone(),
            },
            system_disk: directory.join("system.ext4"),
            work_disk: directory.join("work.ext4"),
            ssh_host_key: directory.join("ssh_host_ed25519_key"),
            known_hosts: directory.join("known_hosts"),
            handles: directory.join("handles.json"),
            record: directory.join(super::record::FILE),
            directory,
        }
    }
}

/// The shared, read-only files that a machine boots from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootFiles {
    /// The image's root file system.
    pub rootfs: PathBuf,
    /// The kernel.
    pub vmlinux: PathBuf,
    /// The kernel's modules as a disk.
    pub modules_disk: PathBuf,
    /// The initial file system.
    pub initrd: PathBuf,
}

/// The disks in the order in which the guest sees them.
pub fn disks(layout: &Layout, boot: &BootFiles) -> Vec<Disk> {
    let disk = |role, path: &PathBuf, access| Disk {
        role,
        path: path.clone(),
        access,
    };
    vec![
        disk(DiskRole::Base, &boot.rootfs, Access::ReadOnly),
        disk(DiskRole::System, &layout.system_disk, Access::ReadWrite),
        disk(DiskRole::Modules, &boot.modules_disk, Access::ReadOnly),
        disk(DiskRole::Work, &layout.work_disk, Access::ReadWrite),
    ]
}

/// One of the VM's own two disks.
pub fn own_disk(layout: &Layout, role: DiskRole) -> Disk {
    let path = match role {
        DiskRole::Work => &layout.work_disk,
        DiskRole::System | DiskRole::Base | DiskRole::Modules => &layout.system_disk,
    };
    Disk {
        role,
        path: path.clone(),
        access: Access::ReadWrite,
    }
}

/// What becomes process 1 of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// What the image has for that.
    OfImage,
    /// The agent, whatever the image has: nothing else runs.
    Agent,
}

/// The kernel's command line. It carries no secrets: every process of the guest can read it.
pub fn kernel_command_line(
    engine: EngineKind,
    name: &VmName,
    disks: &[Disk],
    network: Option<&NetworkPlan>,
    init: Init,
) -> String {
    let roles: Vec<&str> = disks.iter().map(|disk| disk.role.as_str()).collect();
    let mut line = format!("{KERNEL_PARAMETERS} {}={}", cmdline::DISKS, roles.join(","));
    if engine == EngineKind::Firecracker {
        line.push(' ');
        line.push_str(FIRECRACKER_PARAMETERS);
    }
    if init == Init::Agent {
        line.push_str(&format!(" {}=none", cmdline::INIT));
    }
    if let Some(network) = network {
        // Documentation/admin-guide/nfs/nfsroot.rst:
        // ip=<client>:<server>:<gateway>:<netmask>:<hostname>:<device>:<autoconf>:<dns0>
        line.push_str(&format!(
            " ip={}::{}:{}:{name}:{GUEST_NIC}:off:{} {}={}",
            network.ip,
            network.gateway,
            network.netmask(),
            network.dns,
            cmdline::MTU,
            network.mtu,
        ));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_net::NetworkConfig;

    fn paths() -> Paths {
        Paths {
            config: "/h/config".into(),
            state: "/h/state".into(),
            cache: "/h/cache".into(),
            runtime: "/h/run".into(),
        }
    }

    fn instance() -> InstanceId {
        "147a0000000000000000000000000000".parse().unwrap()
    }

    fn id() -> VmId {
        "0123456789abcdef0123456789abcdef".parse().unwrap()
    }

    #[test]
    fn every_path_follows_from_id_and_slot() {
        insta::assert_debug_snapshot!(Layout::of(&paths(), &instance(), &id(), 7));
    }

    #[test]
    fn the_machine_of_a_vm() {
        let layout = Layout::of(&paths(), &instance(), &id(), 7);
        let boot = BootFiles {
            rootfs: "/h/state/images/i/rootfs.ext4".into(),
            vmlinux: "/h/state/kernels/k/vmlinux".into(),
            modules_disk: "/h/state/kernels/k/modules.ext4".into(),
            initrd: "/h/state/kernels/k/initrd-1.img".into(),
        };
        let network = NetworkConfig {
            instance: instance(),
            bridge: ([172, 16, 0, 1].into(), 24),
            runtime_dir: paths().runtime,
            log_dir: paths().logs(),
            holder: Vec::new(),
        };
        let network = banger_net::plan::plan(&network, 7, 1400).unwrap();
        let disks = disks(&layout, &boot);
        let name: VmName = "calm-otter".parse().unwrap();
        insta::assert_debug_snapshot!((
            kernel_command_line(
                EngineKind::Qemu,
                &name,
                &disks,
                Some(&network),
                Init::OfImage
            ),
            kernel_command_line(EngineKind::Qemu, &name, &disks, None, Init::Agent),
            kernel_command_line(EngineKind::Firecracker, &name, &disks, None, Init::OfImage),
            &disks,
        ));
    }

    #[test]
    fn vms_share_no_path() {
        let one = Layout::of(&paths(), &instance(), &VmId::new(), 1);
        let two = Layout::of(&paths(), &instance(), &VmId::new(), 2);
        assert_ne!(one.directory, two.directory);
        assert_ne!(one.place.runtime_dir, two.place.runtime_dir);
    }
}

//! QEMU's argument vector, as a pure function of what was opened for it.
//!
//! QEMU is given descriptors instead of paths, so that it needs no right to any file, and no
//! value in the vector needs QEMU's own quoting (a comma doubled): all are numbers, names of
//! ours, and the kernel's command line, which is an argument of its own.

use std::ffi::OsString;
use std::os::fd::RawFd;

use banger_proto::agent::{DiskRole, SERIAL_PORT};
use banger_proto::size::ByteSize;

use crate::Access;

/// How QEMU runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accelerator {
    /// The CPU does.
    Kvm,
    /// Software does.
    Tcg,
}

/// What [`argv`] puts into words. The numbers are those of inherited descriptors.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub name: String,
    pub accelerator: Accelerator,
    pub vcpu: u32,
    pub memory: ByteSize,
    pub kernel: RawFd,
    pub initrd: RawFd,
    pub cmdline: String,
    pub disks: Vec<PlanDisk>,
    pub nic: Option<PlanNic>,
    pub console: RawFd,
    pub agent: RawFd,
    pub control: RawFd,
}

#[derive(Clone, Debug)]
pub(super) struct PlanDisk {
    pub role: DiskRole,
    pub access: Access,
    pub fd: RawFd,
}

#[derive(Clone, Debug)]
pub(super) struct PlanNic {
    pub mac: String,
    pub mtu: u16,
    pub tap: RawFd,
}

/// The id of the port behind which the agent is.
pub(super) const AGENT_PORT: &str = "agent-port";
/// Number of the descriptor set of the console; disks have 1 and up.
const CONSOLE_SET: usize = 0;

/// The arguments that follow the program's name.
pub(super) fn argv(plan: &Plan) -> Vec<OsString> {
    let mut argv = Argv::default();
    argv.machine(plan);
    argv.boot(plan);
    argv.console(plan.console);
    for (index, disk) in plan.disks.iter().enumerate() {
        argv.disk(index + 1, disk);
    }
    if let Some(nic) = &plan.nic {
        argv.nic(nic);
    }
    argv.agent(plan.agent);
    argv.control(plan.control);
    argv.0
}

#[derive(Default)]
struct Argv(Vec<OsString>);

impl Argv {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.into());
    }

    fn option(&mut self, flag: &str, value: impl Into<OsString>) {
        self.0.push(flag.into());
        self.0.push(value.into());
    }

    fn machine(&mut self, plan: &Plan) {
        self.option("-name", plan.name.as_str());
        self.flag("-no-user-config");
        self.flag("-nodefaults");
        // q35 rather than microvm: without HPET and PM timer, calibration of the TSC hangs
        // at times under emulation. The parts that are off cost boot time or are attack
        // surface.
        self.option(
            "-machine",
            "q35,usb=off,vmport=off,smm=off,sata=off,smbus=off,dump-guest-core=off",
        );
        match plan.accelerator {
            Accelerator::Kvm => {
                self.option("-accel", "kvm");
                self.option("-cpu", "host");
            }
            Accelerator::Tcg => {
                self.option("-accel", "tcg,thread=multi");
                // Without "fast string moves": the guest's kernel and its C library would copy
                // by `rep movsb`, which emulation carries out byte by byte. With other
                // instructions copies cost a third to a quarter of the time.
                self.option("-cpu", "max,-erms,-fsrm");
            }
        }
        self.option("-smp", format!("cpus={}", plan.vcpu));
        self.option("-m", format!("size={}M", plan.memory.mib()));
        self.option("-display", "none");
        // The end of a guest is the end of its machine, also when it wants to start again.
        self.flag("-no-reboot");
        self.option(
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        );
        self.option("-device", "virtio-rng-pci");
    }

    fn boot(&mut self, plan: &Plan) {
        // The loader opens its files by name, without regard to descriptor sets.
        self.option("-kernel", format!("/proc/self/fd/{}", plan.kernel));
        self.option("-initrd", format!("/proc/self/fd/{}", plan.initrd));
        self.option("-append", plan.cmdline.as_str());
    }

    fn console(&mut self, fd: RawFd) {
        self.option("-add-fd", format!("fd={fd},set={CONSOLE_SET}"));
        self.option(
            "-chardev",
            format!("file,id=console,path=/dev/fdset/{CONSOLE_SET},append=on"),
        );
        self.option("-serial", "chardev:console");
    }

    fn disk(&mut self, set: usize, disk: &PlanDisk) {
        let role = disk.role.as_str();
        let read_only = match disk.access {
            Access::ReadOnly => "on",
            Access::ReadWrite => "off",
        };
        self.option("-add-fd", format!("fd={},set={set}", disk.fd));
        self.option(
            "-blockdev",
            format!(
                "driver=raw,node-name={role},read-only={read_only},discard=unmap,\
                 file.driver=file,file.filename=/dev/fdset/{set}"
            ),
        );
        // When the host's disk is full the guest is told so, rather than held without a word.
        self.option(
            "-device",
            format!("virtio-blk-pci,drive={role},serial={role},rerror=report,werror=report"),
        );
    }

    fn nic(&mut self, nic: &PlanNic) {
        self.option("-netdev", format!("tap,id=net,fd={}", nic.tap));
        // Without a ROM: nobody boots from the network.
        self.option(
            "-device",
            format!(
                "virtio-net-pci,netdev=net,mac={},host_mtu={},romfile=",
                nic.mac, nic.mtu
            ),
        );
    }

    fn agent(&mut self, fd: RawFd) {
        self.option(
            "-chardev",
            format!("socket,id=agent,fd={fd},server=on,wait=off"),
        );
        self.option("-device", "virtio-serial-pci,max_ports=2");
        self.option(
            "-device",
            // With an id QEMU tells when the guest opens and closes the port.
            format!("virtserialport,id={AGENT_PORT},chardev=agent,name={SERIAL_PORT}"),
        );
    }

    fn control(&mut self, fd: RawFd) {
        self.option(
            "-chardev",
            format!("socket,id=control,fd={fd},server=on,wait=off"),
        );
        self.option("-mon", "chardev=control,mode=control");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            name: "banger-1f2e-7".to_owned(),
            accelerator: Accelerator::Tcg,
            vcpu: 2,
            memory: ByteSize::from_mib(1536),
            kernel: 10,
            initrd: 11,
            cmdline: "console=ttyS0 quiet banger.disks=base,system".to_owned(),
            disks: vec![
                PlanDisk {
                    role: DiskRole::Base,
                    access: Access::ReadOnly,
                    fd: 12,
                },
                PlanDisk {
                    role: DiskRole::System,
                    access: Access::ReadWrite,
                    fd: 13,
                },
            ],
            nic: Some(PlanNic {
                mac: "02:1f:2e:00:00:07".to_owned(),
                mtu: 1400,
                tap: 14,
            }),
            console: 15,
            agent: 16,
            control: 17,
        }
    }

    /// One option and its value a line.
    fn shown(plan: &Plan) -> String {
        let words: Vec<String> = argv(plan)
            .into_iter()
            .map(|word| word.into_string().unwrap())
            .collect();
        words.join(" ").replace(" -", "\n-")
    }

    #[test]
    fn the_argument_vector_under_software_emulation() {
        insta::assert_snapshot!(shown(&plan()));
    }

    #[test]
    fn kvm_changes_the_accelerator_and_the_cpu_only() {
        let kvm = Plan {
            accelerator: Accelerator::Kvm,
            ..plan()
        };
        let (tcg, kvm) = (shown(&plan()), shown(&kvm));
        let changed: Vec<(&str, &str)> = tcg
            .lines()
            .zip(kvm.lines())
            .filter(|(tcg, kvm)| tcg != kvm)
            .collect();
        assert_eq!(
            changed,
            [
                ("-accel tcg,thread=multi", "-accel kvm"),
                ("-cpu max,-erms,-fsrm", "-cpu host")
            ]
        );
    }

    #[test]
    fn a_machine_without_disks_and_network_is_whole() {
        let bare = Plan {
            disks: Vec::new(),
            nic: None,
            ..plan()
        };
        let shown = shown(&bare);
        assert!(!shown.contains("virtio-blk") && !shown.contains("virtio-net"));
        assert!(shown.contains("virtserialport"));
    }
}

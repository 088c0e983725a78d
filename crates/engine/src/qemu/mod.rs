//! The engine that needs nothing special: QEMU, with KVM where it is truly usable and
//! software emulation elsewhere.
//!
//! ```text
//! agent.sock    <- virtserialport banger.agent: the agent link
//! control.sock  <- QMP: power button, pause, and why the machine ended
//! console.log   <- ttyS0            engine.log <- QEMU's own output
//! ```
//!
//! The daemon opens everything and QEMU inherits descriptors, so that it runs as a user that
//! may open nothing.

mod argv;
mod binary;
mod link;
mod machine;
mod qmp;

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use banger_proto::api::EngineKind;

use self::argv::{Accelerator, Plan, PlanDisk, PlanNic, argv};
pub(crate) use self::binary::Binary;
use self::machine::QemuMachine;
use crate::checks::with_causes;
use crate::process::{Detached, Identity, Process};
use crate::{Engine, LaunchError, Machine, MachineSpec, Place, files, probe, socket};

pub use self::binary::QemuMissing;

/// How long QEMU may take until it has opened everything and runs the guest.
const LAUNCH_LIMIT: Duration = Duration::from_secs(30);

/// QEMU, found and probed.
#[derive(Debug)]
pub struct Qemu {
    binary: Binary,
    kvm: Result<(), probe::Unusable>,
}

impl Qemu {
    /// The QEMU at `chosen`, or else the one in `PATH`. Blocks for as long as QEMU needs to
    /// tell its version and KVM to make a VM: tens of milliseconds.
    ///
    /// # Errors
    /// There is none that can be used.
    pub fn find(chosen: Option<&Path>) -> Result<Self, QemuMissing> {
        Ok(Self {
            binary: Binary::find(chosen)?,
            kvm: probe::kvm(),
        })
    }

    fn accelerator(&self) -> Accelerator {
        match self.kvm {
            Ok(()) => Accelerator::Kvm,
            Err(_) => Accelerator::Tcg,
        }
    }

    fn identity(&self, place: &Place) -> Option<Identity> {
        let device = self.kvm.is_ok().then_some(Path::new(probe::DEVICE));
        Identity::for_engine(&place.instance, place.slot, device)
    }

    /// Opens all that `spec` names and starts the process.
    fn start(&self, spec: MachineSpec) -> Result<Process, LaunchError> {
        let identity = self.identity(&spec.place);
        let mut inherited = Inherited::default();
        let plan = self.plan(&spec, identity.is_some(), &mut inherited)?;
        // The tap goes last, because it is taken out of the spec.
        let nic = spec.nic.map(|nic| PlanNic {
            mac: nic.mac,
            mtu: nic.mtu,
            tap: inherited.push(nic.tap),
        });
        let plan = Plan { nic, ..plan };
        let detached = Detached {
            program: self.binary.path.clone(),
            arguments: argv(&plan),
            mark: spec.place.mark(),
            inherited: inherited.0,
            output: None,
            log: files::log(&spec.place.engine_log())?,
            directory: None,
            space: None,
            jail: None,
            cgroup: None,
            identity,
        };
        detached.spawn().map_err(|source| LaunchError::Spawn {
            program: self.binary.path.clone(),
            source,
        })
    }

    fn plan(
        &self,
        spec: &MachineSpec,
        by_another_user: bool,
        inherited: &mut Inherited,
    ) -> Result<Plan, LaunchError> {
        let place = &spec.place;
        let mut disks = Vec::new();
        for disk in &spec.disks {
            let what = format!("{} disk", disk.role.as_str());
            let file = opened(&what, &disk.path, |path| files::disk(path, disk.access))?;
            disks.push(PlanDisk {
                role: disk.role,
                access: disk.access,
                fd: inherited.push(file.into()),
            });
        }
        let kernel = opened("kernel", &spec.kernel, |path| {
            files::kernel(path, by_another_user)
        })?;
        let initrd = opened("initrd", &spec.initrd, |path| {
            files::reopenable(path, by_another_user)
        })?;
        let (kernel, initrd) = (inherited.push(kernel.into()), inherited.push(initrd.into()));
        let mut listening = |path: &Path| match socket::listen(path) {
            Ok(socket) => Ok(inherited.push(socket)),
            Err(source) => Err(LaunchError::Socket {
                path: path.to_owned(),
                source,
            }),
        };
        let agent = listening(&place.agent_socket())?;
        let control = listening(&place.control_socket())?;
        Ok(Plan {
            name: place.machine_name(),
            accelerator: self.accelerator(),
            vcpu: spec.vcpu,
            memory: spec.memory,
            kernel,
            initrd,
            cmdline: spec.cmdline.clone(),
            disks,
            nic: None,
            console: inherited.push(files::log(&place.console_log())?.into()),
            agent,
            control,
        })
    }
}

#[async_trait]
impl Engine for Qemu {
    fn kind(&self) -> EngineKind {
        EngineKind::Qemu
    }

    fn reason(&self) -> String {
        let version = self.binary.version;
        match &self.kvm {
            Ok(()) => format!("QEMU {version} with KVM"),
            Err(why) => {
                let why = with_causes(why);
                format!("QEMU {version} with software emulation (TCG): {why}")
            }
        }
    }

    fn patience(&self) -> u32 {
        match self.accelerator() {
            Accelerator::Kvm => 1,
            Accelerator::Tcg => 6,
        }
    }

    async fn launch(&self, spec: MachineSpec) -> Result<Arc<dyn Machine>, LaunchError> {
        let place = spec.place.clone();
        let process = self.start(spec)?;
        let machine = QemuMachine::new(place, process).await;
        machine.await_launch(LAUNCH_LIMIT * self.patience()).await?;
        Ok(Arc::new(machine))
    }
}

/// The machine of a process that runs already.
pub(crate) async fn adopted(place: Place, process: Process) -> Arc<dyn Machine> {
    Arc::new(QemuMachine::new(place, process).await)
}

/// The descriptors for QEMU. They stay open here until it runs.
#[derive(Debug, Default)]
struct Inherited(Vec<OwnedFd>);

impl Inherited {
    /// Adds one; returns its number, which is the same in QEMU.
    fn push(&mut self, fd: OwnedFd) -> RawFd {
        let number = fd.as_raw_fd();
        self.0.push(fd);
        number
    }
}

fn opened(
    what: &str,
    path: &Path,
    open: impl FnOnce(&Path) -> std::io::Result<File>,
) -> Result<File, LaunchError> {
    open(path).map_err(|source| LaunchError::Open {
        what: what.to_owned(),
        path: path.to_owned(),
        source,
    })
}

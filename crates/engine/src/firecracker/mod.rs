//! The engine for hosts with usable KVM: Firecracker.
//!
//! ```text
//! fc/api        <- its API: pause, resume, disks
//! fc/link       <- the guest's vsock: the agent link        fc/link_1024 -> the agent's knock
//! fc/log        -> its own log, which becomes engine.log
//! fc/metrics    -> what it counts
//! console.log   <- ttyS0 (standard output)
//! ```
//!
//! `fc` is the machine's directory among the sockets, and the process's working directory. The
//! daemon opens everything else and Firecracker inherits descriptors, which it opens once more by
//! `/proc/self/fd`. Only the tap is opened by name, from inside the network namespace that the
//! tap is in. Of the host's files it has its jail's alone (`process::jail`).

mod api;
mod binary;
mod config;
mod console;
mod directory;
mod disk_errors;
mod link;
mod machine;
mod pipes;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use self::binary::Binary;
use self::config::{Plan, PlanDisk, PlanNic};
use self::directory::Owner;
use self::link::Door;
use self::machine::FirecrackerMachine;
use self::pipes::Pipes;
use crate::birth::Birth;
use crate::process::{
    Allowance, Cgroup, Detached, Identity, Jail, Process, Space, give_tap, make_root, name_of_tap,
};
use crate::{Access, Engine, LaunchError, Machine, MachineSpec, Place, files, probe};
use async_trait::async_trait;
use banger_proto::api::EngineKind;

pub use self::binary::FirecrackerMissing;
pub(crate) use self::config::{API, LINK, LOG, METRICS};

/// How long Firecracker may take until it has opened everything and runs the guest.
const LAUNCH_LIMIT: Duration = Duration::from_secs(20);
/// How much longer everything takes where this host is itself a virtual machine.
const NESTED: u32 = 6;

/// Firecracker, found and its KVM probed.
#[derive(Debug)]
pub struct Firecracker {
    binary: Binary,
    nested: bool,
}

/// Why Firecracker cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FirecrackerUnusable {
    /// There is none.
    #[error(transparent)]
    Missing(#[from] FirecrackerMissing),
    /// It runs guests with KVM only.
    #[error("Firecracker needs KVM")]
    Kvm(#[source] probe::Unusable),
}

impl FirecrackerUnusable {
    /// What the user can do.
    pub fn fix(&self) -> &'static str {
        match self {
            Self::Missing(missing) => missing.fix(),
            Self::Kvm(unusable) => unusable.fix(),
        }
    }
}

impl Firecracker {
    /// The Firecracker at `chosen`, or else the one in `PATH`, or else the one that banger
    /// has installed at `installed`. Blocks for as long as Firecracker needs to tell its
    /// version and KVM to make a VM: some milliseconds.
    ///
    /// # Errors
    /// There is none that can be used, or no usable KVM.
    pub fn find(
        chosen: Option<&Path>,
        installed: Option<&Path>,
    ) -> Result<Self, FirecrackerUnusable> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        // KVM first: where it is not usable nobody misses the program.
        probe::kvm().map_err(FirecrackerUnusable::Kvm)?;
        Ok(Self {
            binary: Binary::find(chosen, installed, &path)?,
            nested: probe::is_virtual(),
        })
    }

    /// Opens all that `spec` names and starts the process, which waits for its orders.
    fn start(&self, spec: MachineSpec) -> Result<(Process, Plan), LaunchError> {
        let place = spec.place.clone();
        let identity = identity(&place);
        let mut inherited = Inherited::default();
        let mut plan = self.plan(&spec, identity.as_ref(), &mut inherited)?;
        let allowance = Allowance {
            vcpu: spec.vcpu,
            memory: spec.memory,
        };
        let mut space = None;
        if let Some(nic) = spec.nic {
            let network = |source| LaunchError::Network { source };
            space = Some(Space::of_tap(nic.tap.as_fd()).map_err(network)?);
            plan.nic = Some(PlanNic {
                mac: nic.mac,
                tap: name_of_tap(nic.tap.as_fd()).map_err(network)?,
            });
            let user = identity.as_ref().map(|identity| identity.uid);
            give_tap(
                nic.tap.as_fd(),
                user.unwrap_or_else(rustix::process::geteuid),
            )
            .map_err(network)?;
            // A tap has one user at a time. The device stays when it is closed.
            drop(nic.tap);
        }
        let work = place.machine_dir();
        let opened = |source| LaunchError::Open {
            what: "machine's directory".to_owned(),
            path: place.machine_dir(),
            source,
        };
        let may_mount = rustix::process::geteuid().is_root() || space.is_some();
        let jail = match may_mount {
            true => self.jail(&place)?,
            false => None,
        };
        let detached = Detached {
            program: self.binary.path.clone(),
            arguments: config::argv(&plan),
            mark: place.mark(),
            inherited: inherited.0,
            output: Some(files::log(&place.console_log())?),
            log: append(&place.engine_log())?,
            directory: Some(directory::open(&work).map_err(opened)?),
            space,
            jail,
            identity,
            cgroup: Cgroup::make(&place, allowance),
        };
        match detached.spawn() {
            Ok(process) => Ok((process, plan)),
            Err(source) => Err(LaunchError::Spawn {
                program: self.binary.path.clone(),
                source,
            }),
        }
    }

    /// The root directory of the process. `None`: it needs the host's.
    fn jail(&self, place: &Place) -> Result<Option<Jail>, LaunchError> {
        let root = place.jail_dir();
        make_root(&root).map_err(|source| LaunchError::Open {
            what: "engine's root directory".to_owned(),
            path: root.clone(),
            source,
        })?;
        let program = &self.binary.path;
        let jail = Jail::new(program, &place.machine_dir(), &root);
        jail.map_err(|source| LaunchError::Spawn {
            program: program.clone(),
            source,
        })
    }

    fn plan(
        &self,
        spec: &MachineSpec,
        identity: Option<&Identity>,
        inherited: &mut Inherited,
    ) -> Result<Plan, LaunchError> {
        let place = &spec.place;
        let mut disks = Vec::new();
        for disk in &spec.disks {
            let what = format!("{} disk", disk.role.as_str());
            let file = opened(&what, &disk.path, |path| {
                let file = files::disk(path, disk.access)?;
                match disk.access {
                    Access::ReadWrite => own(&file, identity)?,
                    Access::ReadOnly => allow_reading(&file, identity)?,
                }
                Ok(file)
            })?;
            disks.push(PlanDisk {
                role: disk.role,
                access: disk.access,
                fd: inherited.push(file.into()),
            });
        }
        let by_another_user = identity.is_some();
        let kernel = opened("kernel", &spec.kernel, |path| {
            files::kernel(path, by_another_user)
        })?;
        let initrd = opened("initrd", &spec.initrd, |path| {
            files::reopenable(path, by_another_user)
        })?;
        Ok(Plan {
            name: place.machine_name(),
            vcpu: spec.vcpu,
            memory: spec.memory,
            kernel: inherited.push(kernel.into()),
            initrd: inherited.push(initrd.into()),
            cmdline: spec.cmdline.clone(),
            disks,
            nic: None,
        })
    }
}

#[async_trait]
impl Engine for Firecracker {
    fn kind(&self) -> EngineKind {
        EngineKind::Firecracker
    }

    fn reason(&self) -> String {
        let version = self.binary.version;
        match self.nested {
            false => format!("Firecracker {version} with KVM"),
            true => format!("Firecracker {version} with KVM, inside of a virtual machine"),
        }
    }

    fn patience(&self) -> u32 {
        match self.nested {
            false => 1,
            true => NESTED,
        }
    }

    async fn launch(&self, spec: MachineSpec) -> Result<Arc<dyn Machine>, LaunchError> {
        let place = spec.place.clone();
        let owner = Owner::from(identity(&place).as_ref());
        let work = place.machine_dir();
        directory::make(&work, &owner).map_err(|source| LaunchError::Open {
            what: "machine's directory".to_owned(),
            path: work,
            source,
        })?;
        // All before the process runs: nothing that it does first is missed.
        let socket = |path| move |source| LaunchError::Socket { path, source };
        files::log(&place.engine_log())?;
        let pipes = Pipes::make(&place, &owner).map_err(socket(place.log_pipe()))?;
        let door = Door::open(&place.knock(), &owner).map_err(socket(place.knock()))?;
        let birth = Birth::watch(&place.api_socket()).map_err(socket(place.api_socket()))?;
        let (process, plan) = self.start(spec)?;
        let machine = FirecrackerMachine::new(place, process, door, Some(pipes));
        let limit = LAUNCH_LIMIT * self.patience();
        machine
            .set_up(&birth, config::requests(&plan), limit)
            .await?;
        Ok(Arc::new(machine))
    }
}

/// The machine of a process that runs already.
///
/// # Errors
/// The place where its agent knocks cannot be made anew, or its pipes cannot be read.
pub(crate) fn adopted(place: Place, process: Process) -> io::Result<Arc<dyn Machine>> {
    let owner = Owner::from(identity(&place).as_ref());
    let door = Door::open(&place.knock(), &owner)?;
    let pipes = Pipes::open(&place)?;
    Ok(Arc::new(FirecrackerMachine::new(
        place, process, door, pipes,
    )))
}

/// Whom the engine becomes.
fn identity(place: &Place) -> Option<Identity> {
    let device = Path::new(probe::DEVICE);
    Identity::for_engine(&place.instance, place.slot, Some(device))
}

/// Gives a file to the engine's user, where it has one: it opens by itself what it inherits.
fn own(file: &impl AsFd, identity: Option<&Identity>) -> io::Result<()> {
    match identity {
        Some(identity) => Ok(rustix::fs::fchown(
            file,
            Some(identity.uid),
            Some(identity.gid),
        )?),
        None => Ok(()),
    }
}

/// What is shared is not given away: it must be readable for everybody.
fn allow_reading(file: &File, identity: Option<&Identity>) -> io::Result<()> {
    match identity {
        Some(_) if file.metadata()?.mode() & 0o004 == 0 => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "root's engines run as users of their own, and it is not readable for everybody",
        )),
        _ => Ok(()),
    }
}

/// What the process prints before it has opened its log, and when it crashes.
fn append(log: &Path) -> Result<File, LaunchError> {
    let opened = File::options().append(true).open(log);
    opened.map_err(|source| LaunchError::Open {
        what: "log".to_owned(),
        path: log.to_owned(),
        source,
    })
}

/// The descriptors for Firecracker. They stay open here until it runs.
#[derive(Debug, Default)]
struct Inherited(Vec<OwnedFd>);

impl Inherited {
    /// Adds one; returns its number, which is the same in Firecracker.
    fn push(&mut self, fd: OwnedFd) -> RawFd {
        let number = fd.as_raw_fd();
        self.0.push(fd);
        number
    }
}

fn opened(
    what: &str,
    path: &Path,
    open: impl FnOnce(&Path) -> io::Result<File>,
) -> Result<File, LaunchError> {
    open(path).map_err(|source| LaunchError::Open {
        what: what.to_owned(),
        path: path.to_owned(),
        source,
    })
}

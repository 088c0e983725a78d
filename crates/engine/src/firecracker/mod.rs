//! The engine for hosts with usable KVM: Firecracker.
//!
//! ```text
//! fc/api        <- its API: pause, resume, disks
//! fc/link       <- the guest's vsock: the agent link        fc/link_1024 -> the agent's knock
//! console.log   <- ttyS0 (standard output)                  engine.log   <- its own log
//! ```
//!
//! `fc` is the machine's directory among the sockets, and the process's working directory, so
//! that no path of a socket is too long or to be walked by an engine that has a user of its
//! own. The daemon opens everything else and Firecracker inherits descriptors, which it opens
//! once more by `/proc/self/fd`. Only the tap is opened by name, from inside the network
//! namespace that the tap is in.

mod api;
mod binary;
mod config;
mod console;
mod link;
mod machine;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use banger_proto::api::EngineKind;
use rustix::fs::{Mode, OFlags};

pub(crate) use self::binary::Binary;
use self::config::{Plan, PlanDisk, PlanNic};
use self::link::Door;
use self::machine::FirecrackerMachine;
use crate::birth::Birth;
use crate::process::{Detached, Identity, Process, Space, give_tap, name_of_tap};
use crate::{Access, Engine, LaunchError, Machine, MachineSpec, Place, files, probe, socket};

pub use self::binary::FirecrackerMissing;
pub(crate) use self::config::{API, LINK};

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
        let directory = open_directory(&place).map_err(|source| LaunchError::Open {
            what: "machine's directory".to_owned(),
            path: place.machine_dir(),
            source,
        })?;
        let detached = Detached {
            program: self.binary.path.clone(),
            arguments: config::argv(&plan),
            mark: place.mark(),
            inherited: inherited.0,
            output: Some(files::log(&place.console_log())?),
            log: append(&place.engine_log())?,
            directory: Some(directory),
            space,
            identity,
        };
        match detached.spawn() {
            Ok(process) => Ok((process, plan)),
            Err(source) => Err(LaunchError::Spawn {
                program: self.binary.path.clone(),
                source,
            }),
        }
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
        let log = files::log(&place.engine_log())?;
        own(&log, identity).map_err(|source| LaunchError::Open {
            what: "log".to_owned(),
            path: place.engine_log(),
            source,
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
            log: inherited.push(log.into()),
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
        let identity = identity(&place);
        make_directory(&place.machine_dir(), identity.as_ref()).map_err(|source| {
            LaunchError::Open {
                what: "machine's directory".to_owned(),
                path: place.machine_dir(),
                source,
            }
        })?;
        // It binds no name that is taken.
        for path in [place.api_socket(), place.vsock()] {
            socket::remove(&path).map_err(|source| LaunchError::Socket { path, source })?;
        }
        // Both before the process runs: nothing that it does first is missed.
        let user = identity.map(|identity| identity.uid);
        let door = Door::open(&place.knock(), user).map_err(|source| LaunchError::Socket {
            path: place.knock(),
            source,
        })?;
        let birth = Birth::watch(&place.api_socket()).map_err(|source| LaunchError::Socket {
            path: place.api_socket(),
            source,
        })?;
        let (process, plan) = self.start(spec)?;
        let machine = FirecrackerMachine::new(place, process, door);
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
/// The place where its agent knocks cannot be made anew.
pub(crate) fn adopted(place: Place, process: Process) -> io::Result<Arc<dyn Machine>> {
    let identity = identity(&place);
    let door = Door::open(&place.knock(), identity.map(|identity| identity.uid))?;
    Ok(Arc::new(FirecrackerMachine::new(place, process, door)))
}

/// Whom the engine becomes.
fn identity(place: &Place) -> Option<Identity> {
    let device = Path::new(probe::DEVICE);
    Identity::for_engine(&place.instance, place.slot, Some(device))
}

/// Makes the machine's directory, which the engine's user writes its sockets into.
fn make_directory(path: &Path, identity: Option<&Identity>) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    own(&open(path)?, identity)
}

fn open_directory(place: &Place) -> io::Result<OwnedFd> {
    open(&place.machine_dir())
}

/// A link in the directory's place is not followed.
fn open(directory: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(directory, flags, Mode::empty())?)
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

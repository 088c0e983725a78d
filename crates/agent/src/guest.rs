//! The agent in a guest, from its start by init until the guest goes down.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_proto::agent::SERIAL_PORT;
use rustix::fs::{FileType, Mode, OFlags, fstat};
use rustix::io::{FdFlags, fcntl_setfd};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::agent::{Agent, Place};
use crate::boot::{self, Start};
use crate::link::{self, End, Wire};
use crate::power::Power;
use crate::report::{BootReport, REPORT_PATH};

/// The descriptor through which init hands the system disk's root directory over.
pub const SYSTEM_DESCRIPTOR: i32 = 3;

/// The agent's log in the guest.
pub const LOG_PATH: &str = "/run/banger/agent.log";

const PORTS: &str = "/sys/class/virtio-ports";

/// Why the guest's agent could not go on.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// No virtio-serial port has the link's name.
    #[error("there is no virtio-serial port named `{SERIAL_PORT}`")]
    NoPort,
    /// The port cannot be used.
    #[error("could not use the port {path}")]
    Port {
        /// Its device.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The vsock cannot be used.
    #[error("could not listen on the vsock")]
    Vsock(#[source] io::Error),
    /// Signals cannot be watched.
    #[error("could not watch signals")]
    Signals(#[source] io::Error),
}

/// Protects this process, names it, and takes over what init left for it. Called once, before
/// anything else opens a descriptor.
pub fn settle(name: &CStr) -> Option<OwnedFd> {
    // The kernel refuses neither to root; without them the agent works all the same.
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    let _ = rustix::thread::set_name(name);
    let _ = rustix::process::setsid();
    // SAFETY: nothing in this process has opened descriptor 3, which is init's if it is open:
    // the check decides, and nobody else takes ownership of it.
    let inherited = unsafe {
        if fcntl_setfd(
            std::os::fd::BorrowedFd::borrow_raw(SYSTEM_DESCRIPTOR),
            FdFlags::CLOEXEC,
        )
        .is_err()
        {
            return None;
        }
        OwnedFd::from_raw_fd(SYSTEM_DESCRIPTOR)
    };
    let is_directory = fstat(&inherited)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
    is_directory.then_some(inherited)
}

/// Serves the host until the machine is off.
///
/// # Errors
/// There is no link to serve.
pub async fn run(start: &Start, system: Option<OwnedFd>) -> Result<(), GuestError> {
    // Init systems send these to all processes at shutdown; the agent stays for the end.
    let ignored = [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
    ];
    let _handlers = ignored.map(|kind| signal(kind).map_err(GuestError::Signals));
    let mut boot = BootReport::read(Path::new(REPORT_PATH)).unwrap_or_default();
    boot.step("agent");
    if let Start::Again(how) = start {
        warn!(how, "the agent before has ended");
        boot.warnings
            .push(format!("the agent ended {how} and was started again"));
    }
    let power = Power::new(&boot.init, system);
    let agent = Arc::new(Agent::new(Place::Guest(power), boot));
    match boot::link() {
        boot::Link::Port => serve_port(start, agent).await,
        boot::Link::Vsock => link::vsock::serve(agent).await.map_err(GuestError::Vsock),
    }
}

async fn serve_port(start: &Start, agent: Arc<Agent>) -> Result<(), GuestError> {
    let path = find_port()?;
    let port = |source| GuestError::Port {
        path: path.clone(),
        source,
    };
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let descriptor =
        rustix::fs::open(&path, flags, Mode::empty()).map_err(|errno| port(errno.into()))?;
    let wire = Wire::new(descriptor, End::UntilReconnect).map_err(port)?;
    if matches!(start, Start::Again(_)) {
        link::break_off(&wire).await.map_err(port)?;
    }
    info!(port = %path.display(), "ready");
    link::serve(wire, agent, None).await.map_err(port)
}

/// The port's device, before udev has made names for it.
fn find_port() -> Result<PathBuf, GuestError> {
    let entries = fs::read_dir(PORTS)
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    let found = entries.map(|entry| entry.file_name()).find(|entry| {
        let name = fs::read_to_string(Path::new(PORTS).join(entry).join("name"));
        name.is_ok_and(|name| name.trim() == SERIAL_PORT)
    });
    found
        .map(|entry| Path::new("/dev").join(entry))
        .ok_or(GuestError::NoPort)
}

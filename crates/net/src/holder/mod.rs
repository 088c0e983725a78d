//! The holder: the process that keeps the namespace of the network.
//!
//! It outlives the daemon, since the VMs do. One kind of namespace serves root and others
//! alike: a user namespace in which the holder is root over nothing but its own network.
//!
//! ```text
//!  daemon ─ starts ─> outer process ─ unshare(user, pid), fork ─> the holder, PID 1 therein
//!                     (ends at once)                               ├─ thread: the host's network;
//!                                                                  │          minds pasta
//!                                                                  └─ unshare(net): bridge, taps,
//!                                                                     rules, the socket
//! ```
//!
//! As the holder is PID 1 of a PID namespace, the kernel kills pasta with it, however the
//! holder ends (pid_namespaces(7)); and a network namespace goes with its last process. So
//! to end is to exit, and there is nothing that a crash could leave but the socket's name.
//!
//! The holder ends when its last tap is deleted, or when it has had neither a tap nor a
//! connection for a while. A lock on `net.lock` makes it the only one of its directory.

mod arguments;
mod link;
mod log;
mod resolver;
mod serve;
mod space;
mod way_out;

use std::error::Error;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use banger_process::ProcessFailure;
use banger_proto::id::InstanceId;
use rustix::fs::{FlockOperation, Mode, OFlags};

pub(crate) use arguments::Arguments;
pub(crate) use link::{TUN, open_tun};
pub(crate) use log::FILE as LOG;

use crate::config::{self, InvalidConfig};
use crate::plan::{Instance, Subnet};
use crate::protocol::{Failure, Started, encode};
use log::Log;
use space::Side;

/// Why the holder ended with an error.
#[derive(Debug, thiserror::Error)]
pub enum HolderError {
    /// The command line is not one of [`crate::Network`]'s.
    #[error("the network holder's command line is wrong: {0}")]
    Arguments(String),
    /// The lock that makes it the only holder was not to be had.
    #[error("could not lock {}", path.display())]
    Lock {
        /// The lock's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The log was not to be opened.
    #[error("could not open the log {}", path.display())]
    Log {
        /// The log's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a namespace.
    #[error("could not {step}")]
    Namespace {
        /// What was being done.
        step: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The namespace was not to be furnished.
    #[error("could not {step}")]
    Furnish {
        /// What was being done.
        step: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// nft refused the rules.
    #[error("could not load the network's rules")]
    Rules(#[source] ProcessFailure),
    /// The daemon that started the holder is gone already.
    #[error("nobody waits for the network's holder")]
    Orphan(#[source] io::Error),
}

/// Runs the holder. `arguments` are those behind [`crate::NetworkConfig::holder`]'s.
///
/// The calling process forks: in the one that the caller started this returns soon, in the
/// holder proper when the network is not needed any more. Both shall then leave `main`.
///
/// Call it first thing in `main`: the process must have one thread, as it enters namespaces.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Result<(), HolderError> {
    let arguments = Arguments::parse(arguments).map_err(HolderError::Arguments)?;
    let result = match arguments {
        Arguments::Probe => space::probe(),
        Arguments::Hold(place) => hold(&place),
    };
    if let Err(error) = &result {
        // Whoever waits reads why, and nobody else needs to know.
        let _ = tell(&Started::Failed(Failure::from(error as &dyn Error)));
    }
    result
}

/// Where a holder holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) instance: InstanceId,
    pub(crate) bridge: (Ipv4Addr, u8),
    pub(crate) runtime_dir: PathBuf,
    pub(crate) log_dir: PathBuf,
    /// Whether the way out is wanted from the beginning, which saves the time of asking.
    pub(crate) open: bool,
}

fn hold(place: &Place) -> Result<(), HolderError> {
    let wrong = |error: InvalidConfig| HolderError::Arguments(error.to_string());
    let instance = Instance::of(&place.instance);
    let subnet = Subnet::new(place.bridge).map_err(wrong)?;
    space::leave_the_daemon()?;
    // Held until the process ends. Waiting is right: who holds it is on its way out, or
    // will find that nobody waits for it.
    let _lock = lock(place)?;
    if space::enter_user_and_pid()? == Side::Outer {
        return Ok(());
    }
    let log = Log::open(&place.log_dir)?;
    space::drop_capabilities()?;
    let way_out = way_out::start(log.clone())?;
    space::enter_network()?;
    let result = serve::serve(place, instance, subnet, way_out, &log);
    match &result {
        Ok(reason) => log.info(&format!("the holder ends: {reason}")),
        Err(error) => log.error(error),
    }
    result.map(drop)
}

fn lock(place: &Place) -> Result<File, HolderError> {
    let path = place.runtime_dir.join(config::LOCK);
    let lock = || {
        let file = open_lock(&path)?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    };
    lock().map_err(|source| HolderError::Lock {
        path: path.clone(),
        source,
    })
}

pub(crate) fn open_lock(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(Mode::from(0o600).as_raw_mode())
        .custom_flags(i32::try_from(flags.bits()).expect("flags fit an int"))
        .open(path)
}

/// Tells whoever started the holder how it went.
fn tell(started: &Started) -> io::Result<()> {
    let mut line = encode(started);
    line.push(b'\n');
    let mut output = io::stdout();
    output.write_all(&line)?;
    output.flush()
}

//! PID 1 of the initramfs: puts the image's root together and hands PID 1 over.
//!
//! ```text
//! early mounts -> modules -> devices, network -> root (base + system) -> modules disk
//!   -> work disk -> identity -> switch root -> keeper forked -> image's init executed
//!                                                           └ or stay (no init)
//! ```
//!
//! What the guest cannot do without ends the boot with one line on the console; everything
//! else becomes a warning that the agent reports.

mod cmdline;
mod disks;
mod files;
mod init;
mod keep;
mod modules;
mod network;
mod root;
mod seed;
mod signals;
mod stay;
mod volumes;

use std::convert::Infallible;
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use banger_proto::agent::DiskRole;
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::grow;
use crate::report::{BootReport, REPORT_PATH};
use cmdline::CommandLine;
pub(crate) use cmdline::Link;
pub use init::{Init, Request, detect};
use keep::Keeper;
pub use keep::{Start, keep};

/// Why the guest cannot come up.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file system cannot be mounted.
    #[error("could not mount {what} on {target}")]
    Mount {
        /// The file system or device.
        what: String,
        /// Where.
        target: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel's parameters cannot be read.
    #[error("could not read the kernel command line")]
    ReadCommandLine(#[source] io::Error),
    /// The kernel's parameters make no sense.
    #[error("could not understand the kernel command line")]
    CommandLine(#[from] cmdline::InvalidCommandLine),
    /// The kernel's events cannot be watched.
    #[error("could not listen to the kernel's events")]
    Events(#[source] io::Error),
    /// There is no base disk among the roles.
    #[error("no base disk: `banger.disks=` names none")]
    NoBase,
    /// A disk that was promised did not appear.
    #[error("the {role} disk did not appear as {device}")]
    MissingDisk {
        /// Its role.
        role: &'static str,
        /// Its device.
        device: String,
    },
    /// A disk has become larger, and its file system has not.
    #[error("its new room cannot be used")]
    Grow(#[from] grow::GrowError),
    /// The image's root cannot become the root.
    #[error("could not change into the image's root")]
    SwitchRoot(#[source] io::Error),
    /// The agent cannot be started.
    #[error("could not start the agent")]
    Agent(#[source] io::Error),
    /// Nothing can be waited for as PID 1.
    #[error("could not wait for processes")]
    Wait(#[source] io::Error),
}

/// Boots the guest. Returns only to say why that is not possible.
pub fn run() -> BootError {
    match boot() {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn boot() -> Result<Infallible, BootError> {
    let mut report = BootReport::default();
    report.step("init");
    root::mount_early()?;
    let text = fs::read_to_string("/proc/cmdline").map_err(BootError::ReadCommandLine)?;
    let cmdline = CommandLine::parse(&text)?;
    let events = disks::Events::listen().map_err(BootError::Events)?;
    modules::load(&mut report);
    report.step("modules");

    // All waits come first: what is waited for moves away with /dev and /sys.
    let base = disks::find(&events, &cmdline, DiskRole::Base)?.ok_or(BootError::NoBase)?;
    let mut optional = |role| disks::find_optional(&events, &cmdline, role, &mut report);
    let [system, modules, work] =
        [DiskRole::System, DiskRole::Modules, DiskRole::Work].map(&mut optional);
    if let Some(interface) = &cmdline.interface {
        // If it does not appear, setting its address fails and says so.
        disks::await_path(&events, &network::device_path(interface));
        warn(
            &mut report,
            "network",
            network::configure(interface, cmdline.mtu),
        );
    }
    report.step("devices");

    let new_root = Path::new(root::NEW_ROOT);
    let system_device = system;
    let system = root::assemble(&base, system_device.as_deref(), &mut report)?;
    if let (Some(device), Some(root)) = (&system_device, &system) {
        warn(&mut report, "system disk", grow(device, root));
    }
    report.step("root");
    if let Some(device) = modules {
        warn(
            &mut report,
            "modules disk",
            root::mount_modules(&device, new_root),
        );
    }
    if let Some(device) = work {
        let mounted = seed::mount_work(&device, new_root);
        warn(
            &mut report,
            "work disk",
            mounted.and_then(|()| grow(&device, &seed::open_work(new_root)?)),
        );
    }
    report.step("disks");
    files::write_identity(new_root, cmdline.interface.as_ref(), &mut report);
    report.step("identity");

    root::switch()?;
    let init = if cmdline.stay {
        Init::Banger
    } else {
        detect(Path::new("/"))
    };
    report.init = init.name().to_owned();
    report.step("switch root");
    // Without it the agent would know nothing of the boot, but work all the same.
    let _ = report.write(Path::new(REPORT_PATH));
    // As systemd has it: programs that use select(2) are safe, others may raise it.
    let files = Rlimit {
        current: Some(1024),
        maximum: Some(524_288),
    };
    let _ = setrlimit(Resource::Nofile, files);
    if let Some(path) = init.path() {
        keep::start_keeper(system.as_ref()).map_err(BootError::Agent)?;
        let error = hand_over(path);
        say(&format!("could not execute {path}: {error}"));
        return stay::stay(|| Keeper::without_agent(system));
    }
    stay::stay(|| Keeper::start(system))
}

/// Has a file system use all of its disk, which may have become larger while the guest was down.
fn grow(device: &str, root: &impl AsFd) -> Result<(), BootError> {
    Ok(grow::to_device(device, root)?)
}

/// What the host is behind.
pub(crate) fn link() -> Link {
    let text = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    CommandLine::parse(&text).unwrap_or_default().link
}

/// The device of a disk of this machine.
pub(crate) fn device(role: DiskRole) -> Option<String> {
    let text = fs::read_to_string("/proc/cmdline").ok()?;
    CommandLine::parse(&text).ok()?.device(role)
}

/// Waits until a device has at least `size` bytes, in bounded time; returns what it has.
///
/// # Errors
/// The device or the kernel's events cannot be looked at.
pub(crate) fn await_size(
    device: &str,
    size: u64,
    look: impl Fn(&str) -> io::Result<u64>,
) -> io::Result<u64> {
    // They come first, so that no event falls between the look and the wait.
    let events = disks::Events::listen()?;
    disks::await_size(&events, size, || look(device))
}

/// Says something on the console. Where there is none, nobody is told; `eprintln!` would end
/// the init, and the guest with it.
pub fn say(text: &str) {
    let _ = writeln!(io::stderr(), "banger: {text}");
}

/// Turns a failure into a warning: the guest comes up without it.
fn warn<E: std::error::Error>(report: &mut BootReport, what: &str, result: Result<(), E>) {
    if let Err(error) = result {
        let mut text = format!("{what}: {error}");
        let mut cause = error.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        say(&format!("warning: {text}"));
        report.warnings.push(text);
    }
}

/// Becomes the image's init; returns only why not.
#[expect(
    clippy::disallowed_methods,
    reason = "the guest's program shares nothing with the host's"
)]
fn hand_over(path: &str) -> io::Error {
    let mut command = Command::new(path);
    command.env_clear().env("HOME", "/").env("TERM", "linux");
    command.env(
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    );
    command.exec()
}

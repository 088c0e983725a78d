//! How the guest, or the agent alone, goes down.
//!
//! ```text
//! asked --init's own shutdown--> off
//!    └─ grace over (told on the console), or no init listens --> sync, freeze, off
//! ```

use std::fs;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use banger_proto::agent::Shutdown;
use rustix::fs::{Mode, OFlags};
use rustix::system::{RebootCommand, reboot};
use tokio::time::sleep;
use tracing::{info, warn};

use crate::agent::{Agent, Place};
use crate::boot::{Init, detect};

/// How long commands have to end where no init ends them.
const COMMANDS_GRACE: Duration = Duration::from_secs(2);
/// Where the work disk is mounted.
pub(crate) const WORK: &str = "/run/banger/work";
/// linux/fs.h: `FIFREEZE` is `_IOWR('X', 119, int)`.
const FIFREEZE: libc::c_ulong = 0xc004_5877;

/// What the agent needs to power a guest off.
#[derive(Debug)]
pub struct Power {
    /// What PID 1 is.
    pub init: Init,
    /// The root directory of the system disk, which no path leads to.
    pub system: Option<OwnedFd>,
}

impl Power {
    /// Finds out what PID 1 is, with the word of the boot report.
    pub fn new(reported: &str, system: Option<OwnedFd>) -> Self {
        let init = match reported {
            "banger" => Init::Banger,
            _ => detect(std::path::Path::new("/")),
        };
        Self { init, system }
    }
}

/// Begins to go down; the answer to the request is sent meanwhile.
pub fn shut_down(agent: Arc<Agent>, shutdown: Shutdown) {
    info!(grace_ms = shutdown.grace_ms, "going down");
    match &agent.place {
        Place::Process => agent.stop(),
        Place::Guest(_) => {
            tokio::spawn(async move { shut_guest_down(&agent, shutdown).await });
        }
    }
}

async fn shut_guest_down(agent: &Agent, shutdown: Shutdown) {
    let Place::Guest(power) = &agent.place else {
        return;
    };
    let grace = Duration::from_millis(shutdown.grace_ms);
    let_answer_out().await;
    if power.init == Init::Banger {
        // PID 1 cannot reap them: they are the agent's children.
        agent.end_commands(COMMANDS_GRACE.min(grace)).await;
    }
    if !grace.is_zero() {
        if ask(power.init) {
            sleep(grace).await;
            warn!("the init did not power off in time");
            tell_console("the guest's init did not power off in time: the agent does");
        } else {
            agent.end_commands(COMMANDS_GRACE.min(grace)).await;
        }
    }
    power_off(power.system.as_ref());
}

/// Lets the tasks run that write the answer to the request: where nothing else runs, the
/// machine may be off in a moment. The link takes bytes at once, so a few turns are enough.
async fn let_answer_out() {
    for _ in 0..16 {
        tokio::task::yield_now().await;
    }
}

/// Asks PID 1; says whether it could be asked.
#[expect(
    clippy::disallowed_methods,
    reason = "the guest's program shares nothing with the host's"
)]
fn ask(init: Init) -> bool {
    match init.power_off() {
        crate::boot::Request::Signal(signal) => {
            if init == Init::Systemd && !listens(signal) {
                info!("the init is not up yet");
                return false;
            }
            // SAFETY: kill has no memory to go wrong with.
            unsafe { libc::kill(1, signal) == 0 }
        }
        crate::boot::Request::Command(command) => {
            if init == Init::Runit && !runs("runsvdir") {
                info!("the init is not up yet");
                return false;
            }
            let spawned = std::process::Command::new(command[0])
                .args(&command[1..])
                .spawn();
            if let Err(error) = &spawned {
                warn!(command = command[0], %error, "could not ask the init to power off");
            }
            spawned.is_ok()
        }
    }
}

/// Whether a process of this name runs. runit hears nothing in its first stage
/// (runit(8)), which ends by becoming this; before, there is no service to be ended.
fn runs(name: &str) -> bool {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().as_encoded_bytes()[0].is_ascii_digit())
        .any(|entry| {
            let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            comm.trim_end() == name
        })
}

/// Whether PID 1 blocks (to read it from a descriptor) or catches a signal: proc(5). The
/// kernel drops what it does not: so early, there is nothing that systemd would have to end.
///
/// Inits that wait with sigtimedwait(2) block a signal only outside of that call, so that
/// this says nothing about them.
fn listens(signal: i32) -> bool {
    let status = fs::read_to_string("/proc/1/status").unwrap_or_default();
    let masks = status.lines().filter_map(|line| {
        let mask = line
            .strip_prefix("SigBlk:")
            .or_else(|| line.strip_prefix("SigCgt:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    });
    masks.fold(0, |all, mask| all | mask) & (1 << (signal - 1)) != 0
}

/// Powers the machine off at once, with its file systems whole.
///
/// Freezing writes everything down and leaves a clean journal, as a read-only remount
/// would, but does not mind files that are open for writing (ioctl_fifreeze(2)).
pub fn power_off(system: Option<&OwnedFd>) {
    rustix::fs::sync();
    if let Some(system) = system {
        freeze(system);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if is_mounted(WORK)
        && let Ok(work) = rustix::fs::open(WORK, flags, Mode::empty())
    {
        freeze(&work);
    }
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        warn!(%error, "could not power off");
    }
}

/// Says something where whoever looks for what became of the guest finds it when the agent is
/// gone. Where there is no console, nobody is told.
fn tell_console(text: &str) {
    let console = fs::OpenOptions::new().write(true).open("/dev/console");
    let _ = console.and_then(|mut console| writeln!(console, "banger: {text}"));
}

fn freeze(directory: &OwnedFd) {
    // SAFETY: the descriptor is open, and FIFREEZE takes no argument. Where it fails, the
    // sync before it has written everything, and only the journal has to be replayed.
    unsafe { libc::ioctl(directory.as_raw_fd(), FIFREEZE, 0) };
}

fn is_mounted(path: &str) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(path))
}

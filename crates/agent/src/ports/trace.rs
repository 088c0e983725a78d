//! The kernel's word that a TCP socket has begun or ceased to listen: the trace event
//! `sock:inet_sock_set_state` (`include/trace/events/sock.h`), filtered for the state
//! `TCP_LISTEN`, in a trace instance of the agent's own (Documentation/trace/ftrace.rst,
//! "Instances"), so that nobody else's tracing in the guest is disturbed.
//!
//! The file system of the tracer is mounted for this process alone, at no place. To make an
//! instance or to remove it takes milliseconds, and some hundred without hardware virtualisation.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::spawn_blocking;

use crate::watch::watch;

/// Begins the names of the agent's instances; behind it stand its process id and a number.
const PREFIX: &str = "banger-";
/// `TCP_LISTEN` is 10 (`include/net/tcp_states.h`).
const FILTER: &str = "newstate == 10 || oldstate == 10";
/// Kilobytes that each CPU keeps of what was not read: it is only asked whether there is any.
const BUFFER_KB: &str = "4";

/// Tells when a TCP socket has begun or ceased to listen.
pub(super) struct Trace {
    pipe: AsyncFd<OwnedFd>,
    /// Dropped last: what is open cannot be removed.
    _instance: Instance,
}

/// A trace instance; it is removed when this is dropped.
struct Instance {
    tracer: Arc<OwnedFd>,
    path: String,
}

impl Trace {
    /// Begins to trace. Blocks; within the runtime.
    pub(super) fn open() -> io::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let tracer = Arc::new(mount()?);
        let own = format!("{PREFIX}{}-", std::process::id());
        remove_others(&tracer, &own);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = format!("instances/{own}{number}");
        mkdirat(&*tracer, &path, Mode::RWXU)?;
        let instance = Instance { tracer, path };
        Ok(Self {
            pipe: instance.begin()?,
            _instance: instance,
        })
    }

    /// Returns once something was traced, and forgets what it was. Cancel-safe.
    pub(super) async fn spoke(&self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        let mut spoke = false;
        loop {
            let mut ready = self.pipe.readable().await?;
            let read = ready.try_io(|pipe| Ok(rustix::io::read(pipe, &mut buffer)?));
            match read {
                Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(Ok(_)) => spoke = true,
                Ok(Err(error)) => return Err(error),
                Err(_) if spoke => return Ok(()),
                Err(_) => {}
            }
        }
    }
}

impl Instance {
    /// Switches the event on and opens what it is read from.
    fn begin(&self) -> io::Result<AsyncFd<OwnedFd>> {
        self.set("buffer_size_kb", BUFFER_KB)?;
        self.set("events/sock/inet_sock_set_state/filter", FILTER)?;
        self.set("events/sock/inet_sock_set_state/enable", "1")?;
        let pipe = self.open("trace_pipe", OFlags::RDONLY | OFlags::NONBLOCK)?;
        watch(pipe, Interest::READABLE)
    }

    fn set(&self, file: &str, value: &str) -> io::Result<()> {
        let file = self.open(file, OFlags::WRONLY)?;
        rustix::io::write(&file, value.as_bytes())?;
        Ok(())
    }

    fn open(&self, file: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let path = format!("{}/{file}", self.path);
        let flags = flags | OFlags::CLOEXEC;
        Ok(openat(&*self.tracer, path, flags, Mode::empty())?)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let (tracer, path) = (self.tracer.clone(), std::mem::take(&mut self.path));
        spawn_blocking(move || remove(&tracer, &path));
    }
}

fn mount() -> io::Result<OwnedFd> {
    let context = fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    Ok(fsmount(context.as_fd(), flags, attributes)?)
}

/// Removes the instances of an agent that was killed.
fn remove_others(tracer: &OwnedFd, own: &str) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(instances) = openat(tracer, "instances", flags, Mode::empty()) else {
        return;
    };
    let Ok(entries) = rustix::fs::Dir::read_from(&instances) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy();
        if name.starts_with(PREFIX) && !name.starts_with(own) {
            remove(tracer, &format!("instances/{name}"));
        }
    }
}

/// One that cannot be removed is in use, or stays for the next agent to remove.
fn remove(tracer: &OwnedFd, instance: &str) {
    let _ = unlinkat(tracer, instance, AtFlags::REMOVEDIR);
}

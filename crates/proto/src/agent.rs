//! The agent protocol: what the daemon asks of the guest agent over HTTP/2, after the
//! handshake of [`crate::hello`].
//!
//! | method and path              | request body            | answer                        |
//! |------------------------------|-------------------------|-------------------------------|
//! | `GET /healthz`               | -                       | [`Health`]                    |
//! | `POST /v1/configure`         | [`Configure`]           | 204                           |
//! | `POST /v1/exec`              | [`crate::frame`] stream | [`crate::frame`] stream       |
//! | `POST /v1/ssh`               | bytes                   | bytes: an SSH connection      |
//! | `POST /v1/tcp?addr=A`        | bytes                   | bytes: a TCP connection to A  |
//! | `POST /v1/udp?addr=A`        | [`crate::datagram`]s    | [`crate::datagram`]s from A   |
//! | `GET /v1/ports`              | -                       | [`Listener`] list             |
//! | `GET /v1/ports/watch`        | -                       | lines, each a [`Listener`] list |
//! | `GET /v1/files?path=P`       | -                       | tar stream of P               |
//! | `PUT /v1/files?path=P`       | tar stream              | 204; unpacked below P         |
//! | `GET /v1/system`             | -                       | tar stream of the system      |
//! | `POST /v1/clock`             | [`Clock`]               | 204                           |
//! | `POST /v1/grow`              | [`Grow`]                | 204; the disk's room is there |
//! | `POST /v1/shutdown`          | [`Shutdown`]            | 202; the guest goes down      |
//! | `GET /v1/stats`              | -                       | [`Stats`]                     |
//! | `GET /v1/log`                | -                       | text: the agent's own log     |
//!
//! An error is a status of 4xx or 5xx with a JSON [`AgentError`]. The header
//! `x-request-id` carries the id of the request that all this serves; the agent logs it.
//! The agent keeps the newest part of its log for `GET /v1/log`.
//!
//! What a watch of the ports sends is the TCP ports, once and then whenever they have changed,
//! without the processes that have them: those take a look at every process of the guest.
//!
//! Files go as tar streams with modes, owners, times, symbolic and hard links, file
//! capabilities and `user.` attributes. Out: the entries are named from the base name of the
//! path on, so that `/etc/apt` gives `apt`, `apt/sources.list`, ..., a file gives just its own
//! entry, and `/` gives `./`, `./bin`, ...; a path that ends in `/` leads through a symbolic
//! link, which is else an entry itself. [`FILE_KIND_HEADER`] says what is there. In: below the
//! path, a directory that is made if it is missing; an entry that would lead out of it, by its
//! name or through a link, refuses the archive. The refusals: 400 for an archive that is none
//! or leads out, 403 for what may not be read or written, 404 for what is not there, 409 for
//! what is in the way (a file in a directory's place), 507 for a disk that is full.
//!
//! The system is all that an image of this guest consists of: `/` and what is below it on the same
//! file system, and `/root`, without the content of `/tmp` and `/var/tmp` and with an empty
//! machine id. Of file systems that are mounted elsewhere it has the directories. Holes in files
//! are left out, in GNU tar's form 1.0.
//!
//! Unknown fields are ignored on both sides, and new ones have defaults, so that an agent
//! and a daemon of different versions understand each other.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::port::Protocol;
use crate::size::ByteSize;

/// Header that carries the request id into the guest's log.
pub const REQUEST_ID_HEADER: &str = "x-request-id";
/// Header of the answer to `GET /v1/files` that says what the path leads to: `directory`,
/// `file`, or `other` (a device, a link that leads nowhere). Symbolic links are followed.
pub const FILE_KIND_HEADER: &str = "x-banger-file-kind";
/// Name of the virtio-serial port of the agent link, below `/dev/virtio-ports`.
pub const SERIAL_PORT: &str = "banger.agent";
/// The port of the guest's vsock on which the agent listens, and the host's port at which it
/// knocks once it does so: it connects and hangs up.
pub const VSOCK_PORT: u32 = 1024;

/// Parameters of the kernel command line that the agent reads as init.
///
/// The NIC's come from the kernel's own `ip=` (Documentation/admin-guide/nfs/nfsroot.rst:
/// `ip=<client>::<gateway>:<netmask>:<hostname>:<device>:off:<dns0>`).
pub mod cmdline {
    /// `banger.disks=base,system,modules,work`: the role of each virtio disk in order
    /// (`vda`, `vdb`, ...). See [`super::DiskRole`].
    pub const DISKS: &str = "banger.disks";
    /// `banger.mtu=1400`: the NIC's MTU.
    pub const MTU: &str = "banger.mtu";
    /// `banger.link=vsock`: the agent serves its port of the vsock ([`super::VSOCK_PORT`])
    /// rather than the virtio-serial port.
    pub const LINK: &str = "banger.link";
    /// `banger.init=none`: stay PID 1 even where the image has an init.
    pub const INIT: &str = "banger.init";
}

/// What a disk of the VM is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskRole {
    /// The image's read-only root file system (ext4).
    Base,
    /// Writable ext4 that overlays the base.
    System,
    /// Read-only ext4 with the kernel's modules: its root holds `<kernel release>/`.
    Modules,
    /// Writable ext4 that holds the user's home, mounted at `/root`.
    Work,
}

impl DiskRole {
    /// The word in `banger.disks=`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::System => "system",
            Self::Modules => "modules",
            Self::Work => "work",
        }
    }
}

/// What the agent tells of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// The agent's version.
    pub version: String,
    /// The version of the agent protocol.
    pub protocol: u32,
    /// Kernel release, as of `uname -r`.
    pub kernel: String,
    /// The guest's boot id (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// Microseconds since the kernel's start.
    pub uptime_us: u64,
    /// What is PID 1: `systemd`, `openrc`, `runit`, `sysvinit`, `busybox`, or `banger`.
    pub init: String,
    /// Steps of banger's init, with the time since the kernel's start at which each ended.
    #[serde(default)]
    pub boot: Vec<BootStep>,
    /// What went wrong in the boot without stopping it.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// One step of banger's init in the guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BootStep {
    /// What was done.
    pub name: String,
    /// Microseconds since the kernel's start at the end of the step.
    pub at_us: u64,
}

/// Identity of the guest; sent each time the daemon connects.
///
/// Secrets go this way and never into the kernel command line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Configure {
    /// Host name; also that of the VM.
    #[serde(default)]
    pub hostname: String,
    /// The SSH host key, in OpenSSH's private key format.
    #[serde(default)]
    pub ssh_host_key: String,
    /// Public keys that may log in, one `authorized_keys` line each.
    #[serde(default)]
    pub authorized_keys: Vec<String>,
    /// Nanoseconds since the Unix epoch, to set the clock.
    #[serde(default)]
    pub clock_unix_ns: Option<u64>,
    /// Environment that every command gets, from the image's config.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Directory in which commands start by default; `None`: the user's home.
    #[serde(default)]
    pub workdir: Option<String>,
    /// User that commands run as by default; empty: root.
    #[serde(default)]
    pub user: String,
}

/// A command to run in the guest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Argument vector; empty means the user's login shell.
    #[serde(default)]
    pub command: Vec<String>,
    /// Added to the default environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory; `None`: the default one. A missing directory refuses the command.
    #[serde(default)]
    pub cwd: Option<String>,
    /// User name or uid, with an optional `:group`; `None`: the default user.
    #[serde(default)]
    pub user: Option<String>,
    /// A terminal for the command, or pipes if `None`.
    #[serde(default)]
    pub pty: Option<Pty>,
    /// Whether the client sends input. Without it the command reads `/dev/null`.
    #[serde(default)]
    pub stdin: bool,
    /// Whether the client heeds [`ExecStarted::input_window`]. See [`crate::frame`].
    #[serde(default)]
    pub acknowledge_input: bool,
}

/// The terminal that the client has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pty {
    /// The value of `TERM`.
    pub term: String,
    /// Width in characters.
    pub columns: u16,
    /// Height in characters.
    pub rows: u16,
}

/// A command has started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExecStarted {
    /// Its process id in the guest.
    pub pid: u32,
    /// How many bytes of input may be on their way without a `taken`; 0: that is not heeded.
    #[serde(default)]
    pub input_window: u32,
}

/// Why a command was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecRefusal {
    /// No such command in the guest's PATH: exit status 127.
    NotFound,
    /// It is there but cannot be executed: exit status 126.
    NotExecutable,
    /// The working directory, user or terminal is not to be had: exit status 125.
    Unusable,
}

/// A command was not started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExecRefused {
    /// The reason as scripts see it.
    pub refusal: ExecRefusal,
    /// The reason in words.
    pub message: String,
}

/// The time to set.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Clock {
    /// Nanoseconds since the Unix epoch.
    pub unix_ns: u64,
}

/// A disk that has become larger under the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grow {
    /// Which disk.
    pub role: DiskRole,
    /// Its new size. The agent waits a bounded time until the kernel shows it.
    pub size: ByteSize,
}

/// How the guest goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shutdown {
    /// Milliseconds that the image's init gets before the agent syncs and powers off itself.
    pub grace_ms: u64,
}

/// What the guest uses at the moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// CPU time used by all CPUs since boot, in microseconds.
    pub cpu_us: u64,
    /// Load averages over 1, 5 and 15 minutes.
    pub load: [f64; 3],
    /// Memory that the guest has.
    pub memory_total: Option<ByteSize>,
    /// Memory that is available without swapping.
    pub memory_available: Option<ByteSize>,
    /// File systems: the root's overlay and the work disk.
    #[serde(default)]
    pub disks: Vec<DiskUsage>,
    /// Network interfaces but the loopback.
    #[serde(default)]
    pub network: Vec<NetworkUsage>,
    /// Number of processes.
    pub processes: u64,
    /// Microseconds since the kernel's start.
    #[serde(default)]
    pub uptime_us: u64,
}

/// What has gone through a network interface of the guest since its boot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkUsage {
    /// The interface.
    pub name: String,
    /// Bytes received.
    pub received: ByteSize,
    /// Bytes sent.
    pub sent: ByteSize,
}

/// A socket of the guest that waits for others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Listener {
    /// Its port.
    pub port: u16,
    /// Of which protocol it is.
    pub protocol: Protocol,
    /// The address that it is bound to: unspecified for all of the guest's.
    pub address: IpAddr,
    /// The process that has it, where that was asked for and is to be seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ListenerProcess>,
}

/// A process that has a [`Listener`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ListenerProcess {
    /// Its process id in the guest.
    pub pid: u32,
    /// Its name, as `/proc/PID/comm` has it.
    pub name: String,
    /// Its arguments, separated by blanks.
    pub command: String,
}

/// How full a file system of the guest is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiskUsage {
    /// Where it is mounted.
    pub mount: String,
    /// Its size.
    pub total: ByteSize,
    /// What an ordinary user can still write.
    pub available: ByteSize,
}

/// Body of a failed request to the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct AgentError {
    /// What failed and why.
    pub message: String,
}

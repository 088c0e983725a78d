//! What the host shows of an instance, besides files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::net::UnixStream;

use banger_config::{Config, Paths};
use banger_engine::Mark;
use banger_engine::process::{Look, cgroup_path, cgroups};
use banger_net::Network;
use banger_proto::id::InstanceId;
use rustix::net::sockopt::socket_peercred;

use crate::host;

/// Length of the command that names a process.
const COMMAND_MAX: usize = 120;

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Sight {
    /// Processes by id, with what they are.
    pub processes: BTreeMap<u32, Seen>,
    /// Slots that have a tap in the network's namespace.
    pub taps: BTreeSet<u16>,
    /// Slots that have a cgroup, with where it is.
    pub cgroups: BTreeMap<u16, String>,
    /// Interfaces of the host itself that have a name as taps have.
    pub interfaces: Vec<String>,
    /// Network namespaces of the network's holders, such as `net:[4026532567]`.
    pub namespaces: BTreeSet<String>,
    /// Mount points in banger's directories.
    pub mounts: Vec<String>,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// How it is known to be banger's.
    pub role: Role,
    /// The beginning of its command line.
    pub command: String,
}

/// How a process is known to be banger's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// It answers on the daemon's socket.
    Daemon,
    /// It carries a mark, or descends from one that does.
    Marked(Mark),
    /// It holds the network, or descends from one that does.
    Network,
}

impl Sight {
    /// Looks at the host. What cannot be looked at is added to `unseen`.
    pub async fn take(
        paths: &Paths,
        config: &Config,
        instance: Option<&InstanceId>,
        unseen: &mut Vec<String>,
    ) -> Self {
        let mut sight = Self {
            mounts: mounts(paths),
            ..Self::default()
        };
        if let Some(daemon) = daemon(paths) {
            sight.add(daemon, Role::Daemon);
        }
        let Some(instance) = instance else {
            return sight;
        };
        sight.interfaces = interfaces(instance);
        match host::network_config(paths, instance, config).map(Network::new) {
            Ok(Ok(network)) => match network.attached().await {
                Ok(taps) => sight.taps = taps,
                Err(error) => unseen.push(format!("could not look at the network: {error}")),
            },
            Ok(Err(error)) => unseen.push(format!("could not look at the network: {error}")),
            Err(error) => unseen.push(format!("could not look at the network: {error}")),
        }
        match cgroups(instance) {
            Ok(slots) => {
                let shown = |slot| cgroup_path(instance, slot).display().to_string();
                sight.cgroups = slots.into_iter().map(|slot| (slot, shown(slot))).collect();
            }
            Err(error) => unseen.push(format!("could not look at the cgroups: {error}")),
        }
        match Look::take_aside().await {
            Ok(look) => sight.add_processes(&look, instance),
            Err(error) => unseen.push(format!("could not look at the host's processes: {error}")),
        }
        sight
    }

    /// Whether something of the VM with this id runs.
    pub fn runs_of(&self, vm: &str) -> bool {
        self.has(|role| matches!(role, Role::Marked(mark) if mark.vm.as_str() == vm))
    }

    /// Whether a daemon serves its socket.
    pub fn has_daemon(&self) -> bool {
        self.has(|role| *role == Role::Daemon)
    }

    /// Whether somebody holds the network.
    pub fn has_network(&self) -> bool {
        self.has(|role| *role == Role::Network)
    }

    fn has(&self, is: impl Fn(&Role) -> bool) -> bool {
        self.processes.values().any(|seen| is(&seen.role))
    }

    fn add_processes(&mut self, look: &Look, instance: &InstanceId) {
        for holder in holders(instance) {
            for process in look.family([holder]) {
                self.add(process.pid, Role::Network);
                let namespace = fs::read_link(format!("/proc/{}/ns/net", process.pid));
                let own = fs::read_link("/proc/self/ns/net");
                if let (Ok(namespace), Ok(own)) = (namespace, own)
                    && namespace != own
                {
                    let name = namespace.to_string_lossy().into_owned();
                    self.namespaces.insert(name);
                }
            }
        }
        for marked in look.marked(instance) {
            for process in look.family([marked.process.pid]) {
                self.add(process.pid, Role::Marked(marked.mark.clone()));
            }
        }
    }

    fn add(&mut self, pid: u32, role: Role) {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut command = String::from_utf8_lossy(&words).replace('\0', " ");
        if let Some((end, _)) = command.char_indices().nth(COMMAND_MAX) {
            command.truncate(end);
        }
        let command = command.trim_end().to_owned();
        self.processes.insert(pid, Seen { role, command });
    }
}

/// The process that answers on the daemon's socket.
fn daemon(paths: &Paths) -> Option<u32> {
    let socket = UnixStream::connect(paths.socket()).ok()?;
    let peer = socket_peercred(&socket).ok()?;
    u32::try_from(peer.pid.as_raw_nonzero().get()).ok()
}

/// The processes that hold the network of this instance: their command lines say so.
fn holders(instance: &InstanceId) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let holder = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let words = fs::read(entry.path().join("cmdline")).ok()?;
        let has = |wanted: &str| {
            words
                .split(|byte| *byte == 0)
                .any(|word| word == wanted.as_bytes())
        };
        (has(crate::NET_HOLDER) && has(instance.as_str())).then_some(pid)
    };
    processes.filter_map(holder).collect()
}

/// banger makes none: what is called like this has escaped its namespace.
fn interfaces(instance: &InstanceId) -> Vec<String> {
    let prefix = format!("bgr-{}-", &instance.as_str()[..4]);
    let entries = fs::read_dir("/sys/class/net")
        .into_iter()
        .flatten()
        .flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(&prefix))
        .collect()
}

/// The fifth field of a line is the mount point, with `\040` for a space
/// (`proc_pid_mountinfo(5)`).
fn mounts(paths: &Paths) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let own = [
        &paths.vms(),
        &paths.runtime.join("vms"),
        &paths.state,
        &paths.runtime,
    ];
    mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| point.replace("\\040", " "))
        .filter(|point| {
            let point = std::path::Path::new(point);
            // One of these directories may be a mount of the user's.
            own.iter()
                .any(|directory| point.starts_with(directory) && point != **directory)
        })
        .collect()
}

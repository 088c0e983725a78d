//! Whose sockets are: by the descriptors of processes (proc_pid_fd(5)).

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use crate::Socket;

/// Longest command that is told.
const COMMAND_MAX: usize = 4096;

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its process id.
    pub pid: u32,
    /// Its name, as `/proc/PID/comm` has it.
    pub name: String,
    /// Its arguments, separated by blanks.
    pub command: String,
}

/// Every process there is, by number.
pub fn all() -> BTreeSet<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// The processes below `ancestor`.
pub fn descendants(ancestor: u32) -> BTreeSet<u32> {
    let parents: HashMap<u32, u32> = all()
        .into_iter()
        .filter_map(|pid| Some((pid, parent(pid)?)))
        .collect();
    let descends = |pid: &u32| {
        let line = std::iter::successors(parents.get(pid), |pid| parents.get(pid));
        // Longer only if numbers were given anew while they were read.
        line.take(parents.len()).any(|pid| *pid == ancestor)
    };
    parents.keys().copied().filter(descends).collect()
}

/// The fourth field of `/proc/PID/stat`, behind a name in parentheses that may hold anything.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The process that has each of the sockets, by the sockets' inodes. Of several the first; of
/// those that may not be looked at none.
pub fn owners(processes: BTreeSet<u32>, sockets: &[Socket]) -> HashMap<u64, Process> {
    let mut wanted: BTreeSet<u64> = sockets.iter().map(|socket| socket.inode).collect();
    let mut owners = HashMap::new();
    for pid in processes {
        if wanted.is_empty() {
            break;
        }
        let its: Vec<u64> = inodes(pid).filter(|inode| wanted.remove(inode)).collect();
        if its.is_empty() {
            continue;
        }
        let process = describe(pid);
        owners.extend(its.into_iter().map(|inode| (inode, process.clone())));
    }
    owners
}

/// The sockets among a process' descriptors. A process that is gone, or not to be looked at,
/// has none.
fn inodes(pid: u32) -> impl Iterator<Item = u64> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten();
    entries.flatten().filter_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        let inode = target.to_str()?.strip_prefix("socket:[")?;
        inode.strip_suffix(']')?.parse().ok()
    })
}

fn describe(pid: u32) -> Process {
    let directory = Path::new("/proc").join(pid.to_string());
    let read = |file: &str| fs::read(directory.join(file)).unwrap_or_default();
    let name = read("comm");
    let mut command = read("cmdline");
    command.truncate(COMMAND_MAX);
    let words = command
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty());
    let words: Vec<_> = words.map(String::from_utf8_lossy).collect();
    Process {
        pid,
        name: String::from_utf8_lossy(name.trim_ascii_end()).into_owned(),
        command: words.join(" "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_leads_to_its_process() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let own = std::process::id();
        let mut sockets = crate::tcp();
        sockets.retain(|socket| socket.port == port);
        let owners = owners([own].into(), &sockets);
        let process = &owners[&sockets[0].inode];
        assert_eq!(process.pid, own);
        assert!(!process.name.is_empty() && process.command.contains("banger"));
    }

    #[test]
    fn descendants_are_those_below() {
        let parent = parent(std::process::id()).unwrap();
        assert!(descendants(parent).contains(&std::process::id()));
        assert!(!descendants(std::process::id()).contains(&parent));
        assert!(!descendants(std::process::id()).contains(&std::process::id()));
    }
}

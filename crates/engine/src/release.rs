//! Removes what a machine has on the host, by its place alone.

use std::collections::HashMap;
use std::fs;
use std::io;

use crate::process::{Marked, ProcessId, marked};
use crate::{Place, ReleaseError, socket};

/// How often a machine's processes are looked for again: those that one has started while
/// it was being killed are found by the next look.
const ROUNDS: usize = 8;

/// Kills all that carries the mark of `place`, and their children, and removes the sockets.
pub(crate) async fn release(place: &Place) -> Result<(), ReleaseError> {
    kill(place).await.map_err(|(pid, source)| match pid {
        Some(pid) => ReleaseError::Kill { pid, source },
        None => ReleaseError::Processes(source),
    })?;
    for path in [place.agent_socket(), place.control_socket()] {
        socket::remove(&path).map_err(|source| ReleaseError::Socket { path, source })?;
    }
    Ok(())
}

/// Kills all that carries the mark of `place`, and their children. An error names the
/// process, or none if the host's processes cannot be looked at.
pub(crate) async fn kill(place: &Place) -> Result<(), (Option<u32>, io::Error)> {
    for _ in 0..ROUNDS {
        let found = machine_processes(place).map_err(|error| (None, error))?;
        if found.is_empty() {
            break;
        }
        for process in found {
            let pid = process.process.pid;
            process.kill().await.map_err(|error| (Some(pid), error))?;
        }
    }
    Ok(())
}

/// The marked processes of `place` and all that descends from them. A child may have cleared
/// its environment; it is of the machine all the same.
fn machine_processes(place: &Place) -> io::Result<Vec<Marked>> {
    let mark = place.mark();
    let mut found = marked(&place.instance)?;
    found.retain(|process| process.mark == mark);
    if found.is_empty() {
        return Ok(found);
    }
    let children = children()?;
    let mut next = 0;
    while let Some(parent) = found.get(next) {
        let more = children.get(&parent.process.pid).into_iter().flatten();
        let more: Vec<Marked> = more
            .filter_map(|pid| ProcessId::of(*pid).ok())
            .filter(|child| found.iter().all(|known| known.process != *child))
            .map(|process| Marked {
                mark: mark.clone(),
                process,
            })
            .collect();
        found.extend(more);
        next += 1;
    }
    Ok(found)
}

/// Every process's children.
fn children() -> io::Result<HashMap<u32, Vec<u32>>> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        if let Some(parent) = parent(&stat) {
            children.entry(parent).or_default().push(pid);
        }
    }
    Ok(children)
}

/// Field 4 of `/proc/<pid>/stat`.
fn parent(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_below_its_parent() {
        assert_eq!(parent("42 (a) R) S 17 42 42 0"), Some(17));
        let own = std::process::id();
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let siblings = children().unwrap();
        assert!(siblings[&parent(&stat).unwrap()].contains(&own));
    }
}

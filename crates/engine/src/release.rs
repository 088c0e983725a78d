//! Removes what a machine has on the host, by its place alone.

use std::collections::HashMap;
use std::fs;
use std::io;

use crate::process::marked::marked_at;
use crate::process::{Marked, ProcessId};
use crate::{Place, ReleaseError, socket};

/// How often a machine's processes are looked for again: those that one has started while
/// it was being killed are found by the next look.
const ROUNDS: usize = 8;

/// Ends whatever carries the mark of `place`, and its children, and removes the sockets, of
/// whichever engine it is. Succeeds when there is nothing. The logs stay.
///
/// # Errors
/// Something is left over.
pub async fn release(place: &Place) -> Result<(), ReleaseError> {
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
    kill_all(|| machine_processes(place)).await
}

/// Kills what `look` finds until it finds nothing.
async fn kill_all(
    look: impl Fn() -> io::Result<Vec<Marked>>,
) -> Result<(), (Option<u32>, io::Error)> {
    for _ in 0..ROUNDS {
        let found = look().map_err(|error| (None, error))?;
        if found.is_empty() {
            return Ok(());
        }
        for process in found {
            let pid = process.process.pid;
            process.kill().await.map_err(|error| (Some(pid), error))?;
        }
    }
    match look().map_err(|error| (None, error))?.first() {
        None => Ok(()),
        Some(survivor) => {
            let error = io::Error::other("new processes appear as fast as they are killed");
            Err((Some(survivor.process.pid), error))
        }
    }
}

/// The marked processes of `place` and all that descends from them. A child may have cleared
/// its environment; it is of the machine all the same.
fn machine_processes(place: &Place) -> io::Result<Vec<Marked>> {
    let mark = place.mark();
    let mut found = marked_at(place)?;
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
    use crate::Mark;
    use std::cell::Cell;
    use std::process::Command;

    #[tokio::test]
    async fn what_comes_back_as_fast_as_it_is_killed_is_an_error() {
        let mark = Mark {
            instance: "1f2e".to_owned(),
            slot: 7,
            vm: banger_proto::id::VmId::new(),
        };
        let started = Cell::new(Vec::new());
        let respawn = |most: usize| {
            let mut children = started.take();
            let found = (children.len() < most).then(|| {
                let child = Command::new("sleep").arg("60").spawn().unwrap();
                let process = ProcessId::of(child.id()).unwrap();
                children.push(child);
                Marked {
                    mark: mark.clone(),
                    process,
                }
            });
            started.set(children);
            Ok(Vec::from_iter(found))
        };
        let reap = || {
            let children = started.take();
            let pids: Vec<u32> = children.iter().map(std::process::Child::id).collect();
            for mut child in children {
                child.kill().unwrap();
                child.wait().unwrap();
            }
            pids
        };

        let stubborn = kill_all(|| respawn(usize::MAX)).await;
        let pids = reap();
        let (survivor, _) = stubborn.unwrap_err();
        assert_eq!(survivor, pids.last().copied());

        // The last round counts.
        let yielding = kill_all(|| respawn(ROUNDS)).await;
        assert_eq!(reap().len(), ROUNDS);
        assert!(yielding.is_ok());
    }

    #[test]
    fn a_process_is_found_below_its_parent() {
        assert_eq!(parent("42 (a) R) S 17 42 42 0"), Some(17));
        let own = std::process::id();
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let siblings = children().unwrap();
        assert!(siblings[&parent(&stat).unwrap()].contains(&own));
    }
}

//! Removes what a machine has on the host, by its place alone.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::process::{Look, Marked, remove_cgroup};
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
    let look = Look::take_aside().await.map_err(ReleaseError::Processes)?;
    release_seen(place, &look).await
}

/// The same for whoever has looked at the host already. What the look did not show is not
/// looked for: nobody may have started anything at `place` since then.
///
/// # Errors
/// Something is left over.
pub async fn release_seen(place: &Place, look: &Look) -> Result<(), ReleaseError> {
    let mut first = Some(look.machine(place).map_err(ReleaseError::Processes)?);
    if first.as_ref().is_some_and(|found| !found.is_empty()) {
        let killed = kill_all(|| {
            let seen = first.take();
            async {
                match seen {
                    Some(found) => Ok(found),
                    None => Look::take_aside().await?.machine(place),
                }
            }
        });
        killed.await.map_err(|(pid, source)| match pid {
            Some(pid) => ReleaseError::Kill { pid, source },
            None => ReleaseError::Processes(source),
        })?;
    }
    // What cannot be removed keeps nothing else from going.
    let removals = [
        remove_socket(place.agent_socket()),
        remove_socket(place.control_socket()),
        remove_directory(place.machine_dir()),
        remove_cgroup(&place.instance, place.slot)
            .await
            .map_err(ReleaseError::Cgroup),
    ];
    let mut errors = removals.into_iter().filter_map(Result::err);
    let first = errors.next();
    for error in errors {
        tracing::warn!(%error, "a further thing of a machine is left over");
    }
    first.map_or(Ok(()), Err)
}

fn remove_socket(path: PathBuf) -> Result<(), ReleaseError> {
    socket::remove(&path).map_err(|source| ReleaseError::Socket { path, source })
}

/// With whatever a Firecracker may have put there, of whatever kind.
fn remove_directory(path: PathBuf) -> Result<(), ReleaseError> {
    match fs::remove_dir_all(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(ReleaseError::Socket { path, source })
        }
        _ => Ok(()),
    }
}

/// Kills all that carries the mark of `place`, and their children. An error names the
/// process, or none if the host's processes cannot be looked at.
pub(crate) async fn kill(place: &Place) -> Result<(), (Option<u32>, io::Error)> {
    kill_all(|| async { Look::take_aside().await?.machine(place) }).await
}

/// Kills what `look` finds until it finds nothing.
async fn kill_all<L>(mut look: impl FnMut() -> L) -> Result<(), (Option<u32>, io::Error)>
where
    L: Future<Output = io::Result<Vec<Marked>>>,
{
    for _ in 0..ROUNDS {
        let found = look().await.map_err(|error| (None, error))?;
        if found.is_empty() {
            return Ok(());
        }
        for process in found {
            let pid = process.process.pid;
            process.kill().await.map_err(|error| (Some(pid), error))?;
        }
    }
    match look().await.map_err(|error| (None, error))?.first() {
        None => Ok(()),
        Some(survivor) => {
            let error = io::Error::other("new processes appear as fast as they are killed");
            Err((Some(survivor.process.pid), error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mark;
    use crate::process::ProcessId;
    use std::cell::Cell;

    #[tokio::test]
    async fn whatever_an_engine_has_put_into_its_directory_goes_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let outside = directory.path().join("outside");
        fs::write(&outside, "stays").unwrap();
        let place = Place {
            instance: banger_proto::id::InstanceId::new(),
            slot: 7,
            vm: banger_proto::id::VmId::new(),
            runtime_dir: directory.path().to_owned(),
            log_dir: directory.path().to_owned(),
        };
        fs::create_dir_all(place.knock().join("a directory in its place")).unwrap();
        std::os::unix::fs::symlink(&outside, place.vsock()).unwrap();
        std::os::unix::fs::symlink(directory.path(), place.api_socket()).unwrap();
        release_seen(&place, &Look::default()).await.unwrap();
        assert!(!place.machine_dir().exists());
        assert_eq!(fs::read_to_string(&outside).unwrap(), "stays");
        release_seen(&place, &Look::default()).await.unwrap();
    }

    #[tokio::test]
    async fn what_comes_back_as_fast_as_it_is_killed_is_an_error() {
        let mark = Mark {
            instance: banger_proto::id::InstanceId::new(),
            slot: 7,
            vm: banger_proto::id::VmId::new(),
        };
        let started = Cell::new(Vec::new());
        let respawn = |most: usize| {
            let mut children = started.take();
            let found = (children.len() < most).then(|| {
                let child = banger_process::command("sleep").arg("60").spawn().unwrap();
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

        let stubborn = kill_all(|| std::future::ready(respawn(usize::MAX))).await;
        let pids = reap();
        let (survivor, _) = stubborn.unwrap_err();
        assert_eq!(survivor, pids.last().copied());

        // The last round counts.
        let yielding = kill_all(|| std::future::ready(respawn(ROUNDS))).await;
        assert_eq!(reap().len(), ROUNDS);
        assert!(yielding.is_ok());
    }
}

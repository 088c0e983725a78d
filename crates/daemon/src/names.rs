//! What follows from the VMs' names, and is kept true whenever a VM comes, goes or gets another
//! one: the file by which ssh knows their host keys.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_proto::api::{Event, Happened};
use banger_proto::name::VmName;
use tokio::sync::Mutex;

use crate::events::Follower;
use crate::fleet::Fleet;
use crate::vm::lifecycle::Phase;

/// Behind the name of a file that is being written. There is one writer.
const DRAFT: &str = ".new";

/// What this daemon keeps by the VMs' names.
#[derive(Debug, Default)]
pub struct Names {
    writing: Mutex<()>,
}

/// Keeps everything true that follows from names. It ends with the daemon.
pub async fn keep(fleet: Arc<Fleet>) {
    let mut changes = Changes(fleet.host().events.follow_new());
    loop {
        pin(&fleet).await;
        changes.next().await;
    }
}

/// Waits for what may change a name, or a VM's key.
struct Changes(Follower);

impl Changes {
    async fn next(&mut self) {
        loop {
            match self.0.next().await {
                Some(event) if is_of_name(&event) => return,
                Some(_) => {}
                // Nobody tells of anything any more: the daemon ends.
                None => std::future::pending().await,
            }
        }
    }
}

fn is_of_name(event: &Event) -> bool {
    matches!(
        event.what,
        Happened::VmCreated { .. }
            | Happened::VmChanged { .. }
            | Happened::VmDeleted { .. }
            | Happened::VmState { .. }
    )
}

/// Writes down the host keys that ssh shall expect, by the names that the VMs have now. Who is
/// about to let ssh in waits for it. What cannot be written is told in the log: ssh then refuses
/// to connect, which is safe.
pub async fn pin(fleet: &Fleet) {
    let host = fleet.host();
    let writing = host.names.writing.lock().await;
    let keys: BTreeMap<VmName, PathBuf> = fleet
        .handles()
        .iter()
        .filter(|vm| vm.look(|status| status.row.phase != Phase::Deleting))
        .map(|vm| {
            vm.look(|status| {
                (
                    status.row.id.clone(),
                    status.row.slot,
                    status.row.name.clone(),
                )
            })
        })
        .map(|(id, slot, name)| (name, host.layout(&id, slot).known_hosts))
        .collect();
    let path = host.paths.ssh_known_hosts();
    let written = crate::blocking(move || write(&path, &known_hosts(&keys))).await;
    if let Err(error) = written {
        tracing::error!(%error, "could not write down the host keys of VMs");
    }
    drop(writing);
}

/// The lines of known_hosts (sshd(8)) of all VMs that have a key.
fn known_hosts(keys: &BTreeMap<VmName, PathBuf>) -> String {
    let line = |(name, file): (&VmName, &PathBuf)| {
        let text = fs::read_to_string(file).ok()?;
        // The names in there may be older ones.
        let (_, key) = text.trim().split_once(' ')?;
        Some(format!("{name}.vm {key}\n"))
    };
    keys.iter().filter_map(line).collect()
}

/// Replaces the file if it holds something else.
fn write(path: &Path, text: &str) -> io::Result<()> {
    if fs::read(path).is_ok_and(|found| found == text.as_bytes()) {
        return Ok(());
    }
    let mut draft = path.as_os_str().to_owned();
    draft.push(DRAFT);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)?;
    file.write_all(text.as_bytes())?;
    fs::rename(&draft, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_pinned_by_the_names_of_now() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let name = |name: &str| name.parse().unwrap();
        let keys = [
            (name("new"), file("a", "old,old.vm ssh-ed25519 AAAA\n")),
            (name("b"), file("b", "b,b.vm ssh-ed25519 BBBB\n")),
            (name("torn"), file("c", "torn")),
            (name("none"), dir.path().join("d")),
        ];
        let text = known_hosts(&keys.into());
        assert_eq!(text, "b.vm ssh-ed25519 BBBB\nnew.vm ssh-ed25519 AAAA\n");
        let path = dir.path().join("known");
        write(&path, &text).unwrap();
        write(&path, "").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 4, "{left:?}");
    }
}

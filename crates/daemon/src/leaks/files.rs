//! Whose the files in banger's state and runtime directories are, and which are missing.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use banger_config::Paths;
use banger_proto::doctor::{Thing, ThingKind};
use banger_proto::id::VmId;

use super::judge::{self, Lost, Owner, Rowless, of_vm, thing};
use super::look::Sight;
use crate::files::is_draft;
use crate::store::{Rows, schema};
use crate::vm::lifecycle::Phase;
use crate::vm::record;

/// What removes things that no VM has.
const DAEMON_REMOVES: &str = "a starting daemon removes it: `banger daemon restart`";

/// What is in the directories, and what rows say should be there.
pub fn things(
    paths: &Paths,
    sight: &Sight,
    rows: &Rows,
    lost: &Lost,
    unseen: &mut Vec<String>,
) -> Vec<Thing> {
    let mut found = Vec::new();
    for path in entries(&paths.state, unseen) {
        found.push(in_state(paths, &path));
    }
    for path in entries(&paths.runtime, unseen) {
        found.push(in_runtime(&path, sight));
    }
    for path in entries(&paths.vms(), unseen) {
        found.push(vm_directory(&path, sight, rows, lost));
        for inside in entries(&path, unseen)
            .into_iter()
            .filter(|path| is_named_draft(path))
        {
            found.push(thing(
                ThingKind::File,
                show(&inside),
                Err(format!("nobody writes it any more; {DAEMON_REMOVES}")),
            ));
        }
    }
    for path in entries(&paths.runtime.join("vms"), unseen) {
        let owner = slot_owner(&path, sight, rows, lost);
        for inside in entries(&path, unseen) {
            found.push(thing(kind(&inside), show(&inside), owner.clone()));
        }
        found.push(thing(kind(&path), show(&path), owner));
    }
    found.extend(missing(paths, rows));
    found
}

fn in_state(paths: &Paths, path: &Path) -> Thing {
    let name = name(path);
    let database = self::name(&paths.database());
    let damaged = schema::damaged_ones(&paths.database());
    let of_damaged = |kept: &std::path::PathBuf| name.starts_with(&self::name(kept));
    let owner = match name.as_str() {
        "bangerd.lock" | "instance" | "vms" => Ok("the daemon"),
        "images" | "kernels" => Ok("the store of images and kernels"),
        "engines" => Ok("engines that you installed"),
        "ssh_known_hosts" | "ssh_known_hosts.new" => Ok("ssh: the host keys of VMs"),
        "logs" => Ok("the daemon's and the network's logs"),
        _ if name == database
            || [0, 1, 2].iter().any(|end| {
                name.strip_prefix(&database) == Some(["-wal", "-shm", "-journal"][*end])
            }) =>
        {
            Ok("the database")
        }
        _ if name.starts_with(&format!("{database}.v")) && name.ends_with(".bak") => {
            Ok("the database: a copy of it before a migration")
        }
        _ if damaged.iter().any(of_damaged) => Ok("you: a damaged database, kept"),
        _ if is_draft(&name) => Err("nobody writes it any more; remove it"),
        _ => Err("banger does not know it; see what it is, and move it away"),
    };
    let owner = owner.map(str::to_owned).map_err(str::to_owned);
    thing(kind(path), show(path), owner)
}

fn in_runtime(path: &Path, sight: &Sight) -> Thing {
    let owner = match name(path).as_str() {
        "bangerd.lock" | "vms" => Ok("the daemon"),
        "net.lock" => Ok("the network"),
        "bangerd.sock" if sight.has_daemon() => Ok("the daemon"),
        "bangerd.sock" => Err(
            "a daemon that was killed has left it; the next one replaces it: `banger daemon start`",
        ),
        "net.sock" if sight.has_network() => Ok("the network"),
        "net.sock" => Err("a holder that was killed has left it; `banger daemon restart`"),
        _ => Err("banger does not know it; see what it is, and move it away"),
    };
    let owner = owner.map(str::to_owned).map_err(str::to_owned);
    thing(kind(path), show(path), owner)
}

/// VMs that have a directory and no row.
pub fn lost(paths: &Paths, rows: &Rows) -> Lost {
    let has_row = |vm: &VmId| {
        let malformed = rows.malformed.iter().any(|row| row.id == vm.as_str());
        malformed || rows.vms.iter().any(|row| row.id == *vm)
    };
    let directories = entries(&paths.vms(), &mut Vec::new()).into_iter();
    let without = directories.filter_map(|path| {
        let vm: VmId = name(&path).parse().ok()?;
        let rowless = match record::read(&path) {
            Some(_) => Rowless::ComesBack,
            None => Rowless::LeftAlone,
        };
        (!has_row(&vm)).then_some((vm, rowless))
    });
    without.collect()
}

fn vm_directory(path: &Path, sight: &Sight, rows: &Rows, lost: &Lost) -> Thing {
    let name = name(path);
    let row = rows.vms.iter().find(|row| row.id.as_str() == name);
    let malformed = rows.malformed.iter().any(|row| row.id == name);
    let rowless = name.parse().ok().and_then(|vm: VmId| lost.get(&vm));
    let owner = match (row, rowless) {
        (Some(row), _) => Ok(of_vm(row)),
        (None, _) if malformed => Ok(format!("VM {name}, whose row is malformed")),
        (None, Some(rowless)) => {
            let runs = sight.runs_of(&name);
            Err(rowless.fix(match runs {
                true => {
                    "it may hold disks, and its process runs: look at them, end the process, then \
                     remove it"
                }
                false => "it may hold disks; look at them, then remove it",
            }))
        }
        (None, None) => Err("banger does not know it; see what it is, and move it away".to_owned()),
    };
    thing(kind(path), show(path), owner)
}

fn slot_owner(path: &Path, sight: &Sight, rows: &Rows, lost: &Lost) -> Result<String, String> {
    let slot = name(path).parse().ok();
    let rowless = slot.and_then(|slot| judge::lost_in_slot(sight, lost, slot));
    match slot.and_then(|slot| judge::in_slot(rows, slot)) {
        Some(Owner::Vm(row)) => {
            judge::active(row).map_err(|why| format!("{why}; {DAEMON_REMOVES}"))
        }
        Some(Owner::Malformed(words)) => Ok(words),
        None => Err(match rowless {
            Some(rowless) => rowless.fix("it goes after the process in its slot"),
            None => format!("no VM has its slot; {DAEMON_REMOVES}"),
        }),
    }
}

/// Disks that a row speaks of and that are not there. Rows that come or go have none yet or no
/// more.
fn missing(paths: &Paths, rows: &Rows) -> Vec<Thing> {
    let mut missing = Vec::new();
    for row in &rows.vms {
        if matches!(row.phase, Phase::Creating | Phase::Deleting) {
            continue;
        }
        for disk in ["system.ext4", "work.ext4"] {
            let path = paths.vms().join(row.id.as_str()).join(disk);
            if !path.is_file() {
                let fix = format!(
                    "VM `{0}` has lost it: put it back, or `banger vm delete {0}`",
                    row.name
                );
                missing.push(thing(ThingKind::Disk, show(&path), Err(fix)));
            }
        }
    }
    missing
}

fn entries(directory: &Path, unseen: &mut Vec<String>) -> Vec<std::path::PathBuf> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        // It may be a file, or have gone meanwhile.
        Err(error) => {
            let expected = matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            );
            if !expected {
                unseen.push(format!("could not read `{}`: {error}", directory.display()));
            }
            Vec::new()
        }
    }
}

fn is_named_draft(path: &Path) -> bool {
    is_draft(&name(path))
}

fn kind(path: &Path) -> ThingKind {
    match fs::symlink_metadata(path).map(|found| found.file_type()) {
        Ok(found) if found.is_dir() => ThingKind::Directory,
        Ok(found) if found.is_socket() => ThingKind::Socket,
        _ => ThingKind::File,
    }
}

fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

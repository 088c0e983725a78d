//! What the tests with real VMs share: the three programs in one directory, and a store that
//! holds one image and its kernel, made once by the real `banger image pull`, and the systems
//! with other inits or with Docker that images are made of.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;
use crate::workspace::{AGENT, HOST_PROGRAMS, Workspace, place_program};

/// The image that the tests boot.
pub const IMAGE: &str = "debian-bookworm-slim";
/// What of a `BANGER_HOME` the tests share.
const SHARED: [&str; 2] = ["images", "kernels"];
/// Small Debian systems: where they are in the store, and the packages that make them. First
/// those with another init than the image's, then the one with Docker as the default image has it.
const SYSTEMS: [(&str, &str); 4] = [
    ("inits/openrc", "openrc,sysvinit-core"),
    ("inits/runit", "runit-init"),
    ("inits/sysvinit", "sysvinit-core,sysv-rc"),
    (
        "docker",
        "systemd-sysv,dbus,docker.io,apparmor,iptables,kmod,ca-certificates",
    ),
];
/// The release that these are of.
const RELEASE: &str = "bookworm";

/// Puts the programs built for the tests into one directory, and returns it.
///
/// `host_programs` are where cargo left `banger` and `bangerd`.
///
/// # Errors
/// A program is missing.
pub fn programs(workspace: &Workspace, host_programs: &Path, agent: &Path) -> Result<PathBuf> {
    let directory = workspace.target.join("test-programs");
    for program in HOST_PROGRAMS {
        place_program(&host_programs.join(program), &directory)?;
    }
    place_program(agent, &directory)?;
    debug_assert!(directory.join(AGENT).is_file());
    Ok(directory)
}

/// Pulls the image into a home of its own unless an earlier run did, and returns the
/// directory with `images/` and `kernels/`.
///
/// # Errors
/// The pull fails.
pub fn store(workspace: &Workspace, programs: &Path) -> Result<PathBuf> {
    let store = workspace.target.join("test-store");
    image(workspace, programs, &store)?;
    systems(&store)?;
    Ok(store)
}

/// Makes those systems that are not there yet, each the tar of its files.
fn systems(store: &Path) -> Result<()> {
    for (name, packages) in SYSTEMS {
        let (made, draft) = (
            store.join(format!("{name}.tar")),
            store.join(format!("{name}.new.tar")),
        );
        if made.is_file() {
            continue;
        }
        let directory = made.parent().unwrap_or(store);
        fs::create_dir_all(directory)
            .with_context(|| format!("could not make {}", directory.display()))?;
        let mut command = Command::new("mmdebstrap");
        command
            .args(["--quiet", "--mode=unshare", "--variant=essential"])
            .arg(format!("--include={packages}"))
            .arg("--dpkgopt=path-exclude=/usr/share/doc/*")
            .arg("--dpkgopt=path-exclude=/usr/share/man/*")
            .arg("--dpkgopt=path-exclude=/usr/share/locale/*")
            .arg(RELEASE)
            .arg(&draft);
        process::run(&mut command)?;
        fs::rename(&draft, &made).with_context(|| format!("could not make {}", made.display()))?;
    }
    Ok(())
}

fn image(workspace: &Workspace, programs: &Path, store: &Path) -> Result<()> {
    if SHARED.iter().all(|name| store.join(name).is_dir()) {
        eprintln!(
            "the image of {} is used again; --fresh makes a new one",
            store.display()
        );
        return Ok(());
    }
    // Sockets live below the home, and their paths must be short: not below the target.
    let home = tempfile::Builder::new().prefix("bgr-").tempdir()?;
    let banger = |arguments: &[&str]| {
        let mut command = Command::new(programs.join("banger"));
        command.args(arguments).env("BANGER_HOME", home.path());
        process::run(&mut command)
    };
    let pulled = banger(&["image", "pull", IMAGE]);
    let stopped = banger(&["daemon", "stop"]);
    pulled.and(stopped)?;

    forget(workspace)?;
    fs::create_dir_all(store)?;
    for name in SHARED {
        let made = home.path().join("state").join(name);
        // The target may be on another file system, where a rename does not reach.
        process::run(
            Command::new("cp")
                .args(["--archive", "--sparse=always", "--reflink=auto"])
                .arg(&made)
                .arg(store),
        )?;
    }
    Ok(())
}

/// Removes the shared store, so that the next [`store`] makes a new one.
///
/// # Errors
/// It cannot be removed.
pub fn forget(workspace: &Workspace) -> Result<()> {
    let store = workspace.target.join("test-store");
    match fs::remove_dir_all(&store) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("could not remove {}", store.display()))
        }
        _ => Ok(()),
    }
}

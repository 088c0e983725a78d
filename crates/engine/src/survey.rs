//! Which engines' programs this host has, whether they can be used or not: for lists, and for
//! whoever installs one.

use std::path::{Path, PathBuf};

use banger_proto::api::ProgramOrigin;

use crate::firecracker::Binary as FirecrackerBinary;
use crate::process::is_static;
use crate::qemu::Binary as QemuBinary;
use crate::{FirecrackerMissing, QemuMissing, probe};

/// Where to look for programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// The config's QEMU.
    pub qemu: Option<PathBuf>,
    /// The config's Firecracker.
    pub firecracker: Option<PathBuf>,
    /// Where banger installs a Firecracker.
    pub installed_firecracker: Option<PathBuf>,
}

/// A program that is there and tells its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Where it is.
    pub path: PathBuf,
    /// Its version, such as `1.16.1`.
    pub version: String,
    /// How it was found.
    pub origin: ProgramOrigin,
    /// Whether it can have a root directory of its own. A QEMU has the host's.
    pub may_be_jailed: bool,
}

/// What this host has.
#[derive(Debug)]
pub struct Survey {
    /// QEMU's program.
    pub qemu: Result<Program, QemuMissing>,
    /// Firecracker's program. VMs run on it only where KVM is usable.
    pub firecracker: Result<Program, FirecrackerMissing>,
    /// Whether KVM is usable.
    pub kvm: Result<(), probe::Unusable>,
}

/// Looks at all of it. Blocks for tens of milliseconds.
pub fn survey(places: &Places) -> Survey {
    let Places {
        qemu,
        firecracker,
        installed_firecracker,
    } = places;
    Survey {
        qemu: QemuBinary::find(qemu.as_deref()).map(|found| Program {
            version: found.version.to_string(),
            path: found.path,
            origin: match qemu {
                Some(_) => ProgramOrigin::Config,
                None => ProgramOrigin::Path,
            },
            may_be_jailed: false,
        }),
        firecracker: find_firecracker(firecracker.as_deref(), installed_firecracker.as_deref()),
        kvm: probe::kvm(),
    }
}

fn find_firecracker(
    chosen: Option<&Path>,
    installed: Option<&Path>,
) -> Result<Program, FirecrackerMissing> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = FirecrackerBinary::find(chosen, installed, &path)?;
    let origin = match chosen {
        Some(_) => ProgramOrigin::Config,
        None if Some(found.path.as_path()) == installed => ProgramOrigin::Installed,
        None => ProgramOrigin::Path,
    };
    Ok(Program {
        // What cannot be read is not jailed either.
        may_be_jailed: is_static(&found.path).unwrap_or_default(),
        path: found.path,
        version: found.full_version,
        origin,
    })
}

/// The version of the Firecracker at `program`, which is run for it.
///
/// # Errors
/// It cannot be run here, is something else, or too old.
pub fn firecracker_version(program: &Path) -> Result<String, FirecrackerMissing> {
    let found = FirecrackerBinary::find(Some(program), None, std::ffi::OsStr::new(""))?;
    Ok(found.full_version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_program_tells_how_it_was_found() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("firecracker");
        std::fs::write(&program, "#!/bin/sh\necho Firecracker v1.16.1\n").unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let config = find_firecracker(Some(&program), None).unwrap();
        assert_eq!(config.origin, ProgramOrigin::Config);
        assert_eq!(config.version, "1.16.1");
        assert_eq!(firecracker_version(&program).unwrap(), "1.16.1");
        match find_firecracker(None, Some(&program)).unwrap() {
            found if found.origin == ProgramOrigin::Installed => assert_eq!(found.path, program),
            found => eprintln!("skipped: this host has {} in PATH", found.path.display()),
        }
    }
}

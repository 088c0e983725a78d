//! Which QEMU there is.

use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_process::RunError;

/// Whether a process or the whole host has as many files open as it may (errno(3): EMFILE, ENFILE).
fn is_out_of_files(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE)
    )
}

/// What the program is called.
const NAME: &str = "qemu-system-x86_64";
/// Oldest version that has all that is used here.
const OLDEST: Version = Version(6, 0);
/// How long a program may take to tell its version.
const VERSION_LIMIT: Duration = Duration::from_secs(10);

/// QEMU's major and minor version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub u16, pub u16);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// A QEMU that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Binary {
    pub path: PathBuf,
    pub version: Version,
}

/// Why there is no QEMU to use.
#[derive(Debug, thiserror::Error)]
pub enum QemuMissing {
    /// It is not installed.
    #[error("there is no {NAME} in PATH")]
    NotFound,
    /// It cannot be executed.
    #[error(transparent)]
    Run(RunError),
    /// It is something else.
    #[error("`{}` does not tell QEMU's version but `{printed}`", path.display())]
    NotQemu {
        /// The program.
        path: PathBuf,
        /// The beginning of what it printed.
        printed: String,
    },
    /// It is too old.
    #[error("`{}` is QEMU {version}; banger needs {OLDEST} or later", path.display())]
    TooOld {
        /// The program.
        path: PathBuf,
        /// Its version.
        version: String,
    },
}

impl QemuMissing {
    /// What the user can do.
    pub fn fix(&self) -> &'static str {
        match self {
            Self::NotFound => "install it: `sudo apt install qemu-system-x86`",
            Self::Run(RunError::Start { source, .. }) if is_out_of_files(source) => {
                "raise the limit of open files (`ulimit -n`), then `banger daemon restart`"
            }
            Self::Run(_) | Self::NotQemu { .. } => {
                "set `qemu_bin` in the config to the path of qemu-system-x86_64, or remove it \
                 to use the one in PATH"
            }
            Self::TooOld { .. } => {
                "install a newer one: `sudo apt install qemu-system-x86`, or set `qemu_bin` in \
                 the config"
            }
        }
    }
}

impl Binary {
    /// The QEMU at `chosen`, or else the one in `PATH`. Runs it to see its version.
    pub(crate) fn find(chosen: Option<&Path>) -> Result<Self, QemuMissing> {
        let path = match chosen {
            Some(path) => path.to_owned(),
            None => in_path(&std::env::var_os("PATH").unwrap_or_default())
                .ok_or(QemuMissing::NotFound)?,
        };
        let mut ask = banger_process::command(&path);
        ask.arg("--version").env("LC_ALL", "C.UTF-8");
        let printed =
            banger_process::run(&mut ask, Some(VERSION_LIMIT)).map_err(QemuMissing::Run)?;
        let printed = String::from_utf8_lossy(&printed);
        match version(&printed) {
            Some(version) if version >= OLDEST => Ok(Self { path, version }),
            Some(version) => Err(QemuMissing::TooOld {
                path,
                version: version.to_string(),
            }),
            None => Err(QemuMissing::NotQemu {
                path,
                printed: printed
                    .lines()
                    .next()
                    .unwrap_or_default()
                    .chars()
                    .take(80)
                    .collect(),
            }),
        }
    }
}

fn in_path(path: &std::ffi::OsStr) -> Option<PathBuf> {
    std::env::split_paths(path)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(NAME))
        .find(|file| {
            file.metadata()
                .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
        })
}

/// Reads `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)`.
fn version(printed: &str) -> Option<Version> {
    let number = printed.strip_prefix("QEMU emulator version ")?;
    let mut parts = number.split(|c: char| !c.is_ascii_digit());
    Some(Version(
        parts.next()?.parse().ok()?,
        parts.next()?.parse().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_distributions_are_read() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright";
        assert_eq!(version(debian), Some(Version(7, 2)));
        assert_eq!(
            version("QEMU emulator version 10.0.50\n"),
            Some(Version(10, 0))
        );
        assert_eq!(version("GNU bash, version 5.2"), None);
        assert!(Version(10, 0) > OLDEST && Version(5, 2) < OLDEST);
    }

    #[test]
    fn a_wrong_program_is_told_from_qemu() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("qemu");
        std::fs::write(&script, "#!/bin/sh\necho something else\n").unwrap();
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
        let error = Binary::find(Some(&script)).unwrap_err();
        assert!(
            matches!(error, QemuMissing::NotQemu { printed, .. } if printed == "something else")
        );
        let error = Binary::find(Some(Path::new("/nonexistent/qemu"))).unwrap_err();
        insta::assert_snapshot!(error, @"could not start `/nonexistent/qemu`");
        assert_eq!(in_path(std::ffi::OsStr::new("/nonexistent:relative")), None);
    }
}

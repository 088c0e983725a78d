//! Which Firecracker there is.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_process::RunError;

/// What the program is called.
const NAME: &str = "firecracker";
/// Oldest version that has all that is used here.
const OLDEST: Version = Version(1, 10);
/// How long a program may take to tell its version.
const VERSION_LIMIT: Duration = Duration::from_secs(10);

/// Firecracker's major and minor version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub u16, pub u16);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// A Firecracker that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Binary {
    pub path: PathBuf,
    pub version: Version,
    /// The same with all that belongs to it, such as `1.16.1`.
    pub full_version: String,
}

/// Why there is no Firecracker to use.
#[derive(Debug, thiserror::Error)]
pub enum FirecrackerMissing {
    /// It is not installed.
    #[error("there is no {NAME} in PATH, and banger has installed none")]
    NotFound,
    /// It cannot be executed.
    #[error(transparent)]
    Run(RunError),
    /// It is something else.
    #[error("`{}` does not tell Firecracker's version but `{printed}`", path.display())]
    NotFirecracker {
        /// The program.
        path: PathBuf,
        /// The beginning of what it printed.
        printed: String,
    },
    /// It is too old.
    #[error("`{}` is Firecracker {version}; banger needs {OLDEST} or later", path.display())]
    TooOld {
        /// The program.
        path: PathBuf,
        /// Its version.
        version: String,
    },
}

impl FirecrackerMissing {
    /// What the user can do.
    pub fn fix(&self) -> &'static str {
        match self {
            Self::NotFound => "install it: `banger engine install firecracker`",
            Self::Run(_) | Self::NotFirecracker { .. } => {
                "set `firecracker_bin` in the config to the path of firecracker, or remove it to \
                 use the one in PATH or `banger engine install firecracker`"
            }
            Self::TooOld { .. } => {
                "remove it, and install a newer one: `banger engine install firecracker`"
            }
        }
    }
}

impl Binary {
    /// The Firecracker at `chosen`, or else the one of `path` (as the variable `PATH` has it),
    /// or else the one that banger has installed, at `installed`. Runs it to see its version.
    pub(crate) fn find(
        chosen: Option<&Path>,
        installed: Option<&Path>,
        path: &OsStr,
    ) -> Result<Self, FirecrackerMissing> {
        let found = match chosen {
            Some(path) => Some(path.to_owned()),
            None => std::env::split_paths(path)
                .filter(|directory| directory.is_absolute())
                .map(|directory| directory.join(NAME))
                .find(|file| is_executable(file))
                .or_else(|| {
                    installed
                        .filter(|file| is_executable(file))
                        .map(Path::to_owned)
                }),
        };
        let path = found.ok_or(FirecrackerMissing::NotFound)?;
        let mut ask = banger_process::command(&path);
        ask.arg("--version").env("LC_ALL", "C.UTF-8");
        let printed =
            banger_process::run(&mut ask, Some(VERSION_LIMIT)).map_err(FirecrackerMissing::Run)?;
        let printed = String::from_utf8_lossy(&printed);
        match version(&printed) {
            Some((version, full)) if version >= OLDEST => Ok(Self {
                path,
                version,
                full_version: full.to_owned(),
            }),
            Some((_, full)) => Err(FirecrackerMissing::TooOld {
                path,
                version: full.to_owned(),
            }),
            None => {
                let first = printed.lines().next().unwrap_or_default();
                let printed = first.chars().take(80).collect();
                Err(FirecrackerMissing::NotFirecracker { path, printed })
            }
        }
    }
}

fn is_executable(file: &Path) -> bool {
    file.metadata()
        .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

/// Reads `Firecracker v1.16.1` or `Firecracker v1.17.0-dev`: what is compared, and all of it.
fn version(printed: &str) -> Option<(Version, &str)> {
    let after = printed.strip_prefix("Firecracker v")?;
    let full = after.split_whitespace().next()?;
    let mut parts = full.split(|c: char| !c.is_ascii_digit());
    let version = Version(parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some((version, full))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn script(directory: &Path, version: &str) -> PathBuf {
        fs::create_dir_all(directory).unwrap();
        let path = directory.join(NAME);
        fs::write(&path, format!("#!/bin/sh\necho {version}\n")).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn versions_of_releases_and_builds_are_read() {
        let release = "Firecracker v1.16.1\n\nSupported snapshot data format versions: 8.0.0\n";
        assert_eq!(version(release), Some((Version(1, 16), "1.16.1")));
        let built = version("Firecracker v1.17.0-dev\n");
        assert_eq!(built, Some((Version(1, 17), "1.17.0-dev")));
        assert_eq!(version("Firecracker v"), None);
        assert_eq!(version("QEMU emulator version 7.2.22"), None);
        assert!(Version(1, 9) < OLDEST && Version(1, 10) >= OLDEST && Version(2, 0) > OLDEST);
    }

    #[test]
    fn the_config_goes_before_the_path_and_the_path_before_what_banger_installed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| script(&directory.path().join(name), "Firecracker v1.12.0");
        let (chosen, in_path, installed) = (at("chosen"), at("path"), at("installed"));
        let path = in_path.parent().unwrap().as_os_str();
        let found = |chosen, path| Binary::find(chosen, Some(&installed), path).map(|it| it.path);
        assert_eq!(found(Some(&chosen), path).unwrap(), chosen);
        assert_eq!(found(None, path).unwrap(), in_path);
        assert_eq!(found(None, OsStr::new("relative")).unwrap(), installed);
        let nothing = Binary::find(None, None, OsStr::new("/nonexistent"));
        assert!(matches!(nothing, Err(FirecrackerMissing::NotFound)));
    }

    #[test]
    fn a_wrong_or_old_program_is_told_from_firecracker() {
        let directory = tempfile::tempdir().unwrap();
        let find = |path: &Path| Binary::find(Some(path), None, OsStr::new("")).unwrap_err();
        let other = find(&script(&directory.path().join("other"), "something else"));
        assert!(
            other.to_string().ends_with("but `something else`"),
            "{other}"
        );
        let old = find(&script(&directory.path().join("old"), "Firecracker v1.9.1"));
        assert!(
            old.to_string()
                .ends_with("is Firecracker 1.9.1; banger needs 1.10 or later"),
            "{old}"
        );
    }
}

//! Where banger keeps its things: the XDG base directories, or all of them below
//! `BANGER_HOME`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Longest path of a Unix socket that Linux takes, without the final NUL (unix(7)).
pub const SOCKET_PATH_MAX: usize = 107;
/// Room that banger's own socket names need below the runtime directory:
/// `/vms/65535/fc/link_1024` and a little to spare.
const SOCKET_NAME_ROOM: usize = 28;

/// banger's directories. None of them need exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Config file and ssh key.
    pub config: PathBuf,
    /// Database, VMs, images, kernels, logs: what must not be lost.
    pub state: PathBuf,
    /// What can be made again.
    pub cache: PathBuf,
    /// Sockets and locks: of no use after a reboot.
    pub runtime: PathBuf,
}

/// Why there is no place for banger's things.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathsError {
    /// Neither `BANGER_HOME` nor `HOME` is set.
    #[error("neither HOME nor BANGER_HOME is set, so there is no place for banger's files")]
    NoHome,
    /// A variable holds a relative path.
    #[error("{variable} is `{}`, which is not an absolute path", .path.display())]
    Relative {
        /// The environment variable.
        variable: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// Socket paths below the runtime directory would be too long for the kernel.
    #[error(
        "the runtime directory `{}` is too long for Unix sockets: use at most {} bytes",
        .0.display(), SOCKET_PATH_MAX - SOCKET_NAME_ROOM
    )]
    RuntimeTooLong(PathBuf),
}

impl Paths {
    /// Reads the environment of this process.
    ///
    /// # Errors
    /// There is no home, a variable is relative, or the runtime directory is too long.
    pub fn from_env() -> Result<Self, PathsError> {
        Self::resolve(
            |name| std::env::var_os(name),
            rustix::process::getuid().as_raw(),
        )
    }

    /// The same for any environment: `variable` looks one up, `uid` is the user's.
    ///
    /// # Errors
    /// As [`Paths::from_env`].
    pub fn resolve(
        variable: impl Fn(&str) -> Option<OsString>,
        uid: u32,
    ) -> Result<Self, PathsError> {
        let absolute = |name: &'static str| -> Result<Option<PathBuf>, PathsError> {
            match variable(name).filter(|value| !value.is_empty()) {
                None => Ok(None),
                Some(value) if Path::new(&value).is_absolute() => Ok(Some(value.into())),
                Some(value) => Err(PathsError::Relative {
                    variable: name,
                    path: value.into(),
                }),
            }
        };
        let paths = if let Some(home) = absolute("BANGER_HOME")? {
            Self {
                config: home.join("config"),
                state: home.join("state"),
                cache: home.join("cache"),
                runtime: home.join("run"),
            }
        } else {
            let home = absolute("HOME")?;
            let base = |name: &'static str, below_home: &str| match (absolute(name)?, &home) {
                (Some(base), _) => Ok(base.join("banger")),
                (None, Some(home)) => Ok(home.join(below_home).join("banger")),
                (None, None) => Err(PathsError::NoHome),
            };
            Self {
                config: base("XDG_CONFIG_HOME", ".config")?,
                state: base("XDG_STATE_HOME", ".local/state")?,
                cache: base("XDG_CACHE_HOME", ".cache")?,
                runtime: match absolute("XDG_RUNTIME_DIR")? {
                    Some(base) => base.join("banger"),
                    None => PathBuf::from(format!("/tmp/banger-{uid}")),
                },
            }
        };
        if paths.runtime.as_os_str().len() + SOCKET_NAME_ROOM > SOCKET_PATH_MAX {
            return Err(PathsError::RuntimeTooLong(paths.runtime));
        }
        Ok(paths)
    }

    /// The config file.
    pub fn config_file(&self) -> PathBuf {
        self.config.join("config.toml")
    }

    /// The user's private ssh key for VMs, made on first use; its public half has `.pub`.
    pub fn ssh_key(&self) -> PathBuf {
        self.config.join("ssh/id_ed25519")
    }

    /// What ssh must know to reach VMs by name, for `~/.ssh/config` to include.
    pub fn ssh_config(&self) -> PathBuf {
        self.config.join("ssh/config")
    }

    /// The host keys of all VMs by their names, as ssh reads them. The daemon keeps it.
    pub fn ssh_known_hosts(&self) -> PathBuf {
        self.state.join("ssh_known_hosts")
    }

    /// The daemon's API socket.
    pub fn socket(&self) -> PathBuf {
        self.runtime.join("bangerd.sock")
    }

    /// The file that the one daemon of these directories holds locked.
    pub fn lock(&self) -> PathBuf {
        self.runtime.join("bangerd.lock")
    }

    /// The database.
    pub fn database(&self) -> PathBuf {
        self.state.join("banger.db")
    }

    /// Logs of the daemon and the network holder.
    pub fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }

    /// The daemon's log.
    pub fn daemon_log(&self) -> PathBuf {
        self.logs().join("bangerd.log")
    }

    /// One directory per VM, named by its id.
    pub fn vms(&self) -> PathBuf {
        self.state.join("vms")
    }

    /// Where banger installs releases of Firecracker.
    pub fn firecracker_releases(&self) -> PathBuf {
        self.state.join("engines/firecracker")
    }

    /// The program of the release that is installed, if one is.
    pub fn installed_firecracker(&self) -> PathBuf {
        self.firecracker_releases().join("current/firecracker")
    }

    /// What was fetched and may be needed again.
    pub fn downloads(&self) -> PathBuf {
        self.cache.join("downloads")
    }

    /// Sockets of the VM in `slot`.
    pub fn vm_runtime(&self, slot: u16) -> PathBuf {
        self.runtime.join("vms").join(slot.to_string())
    }

    /// The file with the id of this instance, by which its things on the host are told from
    /// those of every other: see [`crate::instance`].
    pub fn instance(&self) -> PathBuf {
        self.state.join("instance")
    }
}

/// Finds a program that is installed with banger.
///
/// In this order: what `variable` names; beside the running program; in `../lib/banger` from
/// there. `None` if it is in none of them.
pub fn companion(variable: &str, name: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable).filter(|value| !value.is_empty()) {
        return Some(path.into());
    }
    let own = std::env::current_exe().ok()?;
    let directory = own.parent()?;
    [
        directory.join(name),
        directory.join("../lib/banger").join(name),
    ]
    .into_iter()
    .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(variables: &[(&str, &str)]) -> Result<Paths, PathsError> {
        Paths::resolve(
            |name| {
                let (_, value) = variables.iter().find(|(known, _)| *known == name)?;
                Some(OsString::from(value))
            },
            1000,
        )
    }

    #[test]
    fn without_xdg_variables_everything_is_below_home() {
        let paths = resolve(&[("HOME", "/home/u")]).unwrap();
        assert_eq!(paths.config, Path::new("/home/u/.config/banger"));
        assert_eq!(paths.state, Path::new("/home/u/.local/state/banger"));
        assert_eq!(paths.cache, Path::new("/home/u/.cache/banger"));
        assert_eq!(paths.runtime, Path::new("/tmp/banger-1000"));
    }

    #[test]
    fn xdg_variables_move_their_directory() {
        let paths = resolve(&[
            ("HOME", "/home/u"),
            ("XDG_RUNTIME_DIR", "/run/user/1000"),
            ("XDG_STATE_HOME", "/var/state"),
        ])
        .unwrap();
        assert_eq!(paths.runtime, Path::new("/run/user/1000/banger"));
        assert_eq!(paths.state, Path::new("/var/state/banger"));
    }

    #[test]
    fn banger_home_moves_everything() {
        let paths = resolve(&[("HOME", "/home/u"), ("BANGER_HOME", "/t")]).unwrap();
        assert_eq!(paths.database(), Path::new("/t/state/banger.db"));
        assert_eq!(paths.socket(), Path::new("/t/run/bangerd.sock"));
        assert_eq!(paths.config_file(), Path::new("/t/config/config.toml"));
    }

    #[test]
    fn what_cannot_work_is_refused() {
        assert_eq!(resolve(&[]), Err(PathsError::NoHome));
        assert!(matches!(
            resolve(&[("BANGER_HOME", "t")]),
            Err(PathsError::Relative { .. })
        ));
        let long = format!("/{}", "x".repeat(90));
        assert!(matches!(
            resolve(&[("BANGER_HOME", &long)]),
            Err(PathsError::RuntimeTooLong(_))
        ));
    }
}

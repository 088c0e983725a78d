//! The host's tools that this crate runs, and the packages that they come in.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A program of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tool {
    /// Its file name.
    pub(crate) name: &'static str,
    /// The Debian package that has it.
    pub(crate) package: &'static str,
}

pub(crate) const MKE2FS: Tool = Tool {
    name: "mke2fs",
    package: "e2fsprogs",
};
pub(crate) const DEPMOD: Tool = Tool {
    name: "depmod",
    package: "kmod",
};
pub(crate) const MMDEBSTRAP: Tool = Tool {
    name: "mmdebstrap",
    package: "mmdebstrap",
};
pub(crate) const TIMEOUT: Tool = Tool {
    name: "timeout",
    package: "coreutils",
};
pub(crate) const UNSHARE: Tool = Tool {
    name: "unshare",
    package: "util-linux",
};
pub(crate) const NEWUIDMAP: Tool = Tool {
    name: "newuidmap",
    package: "uidmap",
};
pub(crate) const APT_CONFIG: Tool = Tool {
    name: "apt-config",
    package: "apt",
};

/// Where administration tools are, which ordinary users often lack in their `PATH`.
const MORE_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];
/// Most of a tool's talk that an error repeats.
const STDERR_END: usize = 2000;

/// Why a tool did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It is not installed.
    #[error("`{tool}` is not installed")]
    Missing {
        /// Its name.
        tool: &'static str,
        /// What to do.
        fix: String,
    },
    /// It could not be started.
    #[error("could not start `{tool}`")]
    Start {
        /// Its name.
        tool: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It failed.
    #[error("`{tool}` failed ({status}): {stderr}")]
    Failed {
        /// Its name.
        tool: &'static str,
        /// How it ended.
        status: String,
        /// The end of what it said.
        stderr: String,
    },
}

impl ToolError {
    /// What the user can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Missing { fix, .. } => Some(fix.clone()),
            _ => None,
        }
    }
}

impl Tool {
    /// Where it is.
    pub(crate) fn find(self) -> Result<PathBuf, ToolError> {
        std::env::split_paths(&search_path())
            .map(|directory| directory.join(self.name))
            .find(|candidate| is_executable(candidate))
            .ok_or_else(|| ToolError::Missing {
                tool: self.name,
                fix: self.fix(),
            })
    }

    /// How to install it.
    pub(crate) fn fix(self) -> String {
        format!("install it: sudo apt-get install {}", self.package)
    }

    /// A command that runs it, with nothing to read and nowhere to write.
    pub(crate) fn command(self) -> Result<Command, ToolError> {
        let mut command = Command::new(self.find()?);
        command
            .env("PATH", search_path())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(command)
    }

    /// Runs `command`, one of this tool's, to its end. Blocks.
    pub(crate) fn run(self, command: &mut Command) -> Result<Vec<u8>, ToolError> {
        let output = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .output()
            .map_err(|source| ToolError::Start {
                tool: self.name,
                source,
            })?;
        match output.status.success() {
            true => Ok(output.stdout),
            false => Err(ToolError::Failed {
                tool: self.name,
                status: output.status.to_string(),
                stderr: end_of(&output.stderr),
            }),
        }
    }
}

/// `PATH` with the directories of administration tools.
fn search_path() -> std::ffi::OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(MORE_DIRECTORIES.map(PathBuf::from));
    std::env::join_paths(directories).unwrap_or(path)
}

fn is_executable(path: &Path) -> bool {
    path.is_absolute()
        && path.is_file()
        && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

fn end_of(stderr: &[u8]) -> String {
    let start = stderr.len().saturating_sub(STDERR_END);
    String::from_utf8_lossy(&stderr[start..]).trim().to_owned()
}

//! The host's tools that this crate runs, and the packages that they come in.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use banger_process::RunError;

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
pub(crate) const NPM: Tool = Tool {
    name: "npm",
    package: "npm",
};
pub(crate) const APT_CONFIG: Tool = Tool {
    name: "apt-config",
    package: "apt",
};

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
    /// It did not do its work.
    #[error(transparent)]
    Run(#[from] RunError),
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
        banger_process::find(self.name).ok_or_else(|| ToolError::Missing {
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
        let mut command = banger_process::command(self.find()?);
        command
            .env("PATH", banger_process::search_path())
            .current_dir("/")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(command)
    }
}

/// Runs a tool's `command` to its end, however long that takes, and returns what it prints.
/// Blocks.
pub(crate) fn run(command: &mut Command) -> Result<Vec<u8>, ToolError> {
    Ok(banger_process::run(command, None)?)
}

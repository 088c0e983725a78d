//! Where the sources are, where cargo builds, and how banger's three programs are built.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;

/// The guest companion's name.
pub const AGENT: &str = "banger-vsock-agent";
/// The programs that run on the host.
pub const HOST_PROGRAMS: [&str; 2] = ["banger", "bangerd"];

/// How the programs of the host are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Soon.
    Dev,
    /// As they ship.
    Release,
}

/// The checkout that this program was built from.
#[derive(Clone)]
pub struct Workspace {
    /// The directory of the workspace's `Cargo.toml`.
    pub root: PathBuf,
    /// Where cargo builds.
    pub target: PathBuf,
}

impl Workspace {
    /// Asks cargo. Where there is none, as in the lab, nothing is built, and everything is where it
    /// is by default.
    ///
    /// # Errors
    /// cargo cannot read the workspace.
    pub fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("xtask lives in a directory of the workspace")
            .to_owned();
        if !has_cargo() {
            let target = root.join("target");
            return Ok(Self { root, target });
        }
        let mut command = Command::new(cargo_program());
        command.current_dir(&root);
        command.args(["metadata", "--no-deps", "--format-version=1"]);
        let metadata: serde_json::Value = serde_json::from_str(&process::output(&mut command)?)
            .context("cargo metadata is no JSON")?;
        let target = metadata["target_directory"]
            .as_str()
            .context("cargo metadata names no target directory")?
            .into();
        Ok(Self { root, target })
    }

    /// cargo, in the workspace.
    pub fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(cargo_program());
        command.current_dir(&self.root).args(arguments);
        command
    }

    /// Builds the static guest companion, and returns where it is.
    ///
    /// # Errors
    /// It does not build.
    pub fn build_agent(&self) -> Result<PathBuf> {
        let triple = host_triple()?;
        let mut flags = std::env::var_os("RUSTFLAGS").unwrap_or_default();
        flags.push(" -C target-feature=+crt-static");
        process::run(
            self.cargo(&["build", "--package=banger-agent", "--profile=guest"])
                .arg(format!("--target={triple}"))
                .env("RUSTFLAGS", flags),
        )?;
        Ok(self.target.join(triple).join("guest").join(AGENT))
    }

    /// Builds the programs of the host, and returns the directory they are in.
    ///
    /// # Errors
    /// They do not build.
    pub fn build_host_programs(&self, profile: Profile) -> Result<PathBuf> {
        let packages = ["--package=banger-cli", "--package=banger-daemon"];
        let (name, directory) = match profile {
            Profile::Dev => ("dev", "debug"),
            Profile::Release => ("release", "release"),
        };
        process::run(self.cargo(&["build", "--profile", name]).args(packages))?;
        Ok(self.target.join(directory))
    }
}

/// Copies a program under a temporary name and renames it, so that one that runs at this
/// moment is replaced rather than written to.
///
/// # Errors
/// It cannot be read or written.
pub fn place_program(from: &Path, directory: &Path) -> Result<()> {
    let name = from.file_name().context("a program has a name")?;
    let temporary = directory.join(format!(".{}.new", name.to_string_lossy()));
    fs::create_dir_all(directory)
        .with_context(|| format!("could not make {}", directory.display()))?;
    fs::copy(from, &temporary).with_context(|| {
        format!(
            "could not copy {} to {}",
            from.display(),
            directory.display()
        )
    })?;
    fs::rename(&temporary, directory.join(name))
        .with_context(|| format!("could not rename {}", temporary.display()))
}

fn has_cargo() -> bool {
    let mut ask = Command::new(cargo_program());
    ask.arg("--version");
    process::run_quietly(&mut ask).is_ok()
}

fn cargo_program() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// The target triple that this machine builds for, such as `x86_64-unknown-linux-gnu`.
fn host_triple() -> Result<String> {
    let version = process::output(Command::new("rustc").arg("-vV"))?;
    version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .context("`rustc -vV` names no host")
}

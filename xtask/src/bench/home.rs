//! A banger of the benchmarks' own, with the image in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;

use crate::process;

/// A `BANGER_HOME` of its own. When it goes, so do its VMs and its daemon, unless it is kept.
pub struct Home {
    directory: PathBuf,
    /// There while it is to be removed in the end.
    temporary: Option<TempDir>,
    programs: PathBuf,
}

impl Home {
    /// Makes one that boots `image` by default, sharing the files of `store`.
    pub fn new(programs: &Path, store: &Path, image: &str) -> Result<Self> {
        // Not $TMPDIR: the paths of sockets must be short.
        let directory = tempfile::Builder::new().prefix("bgr-").tempdir_in("/tmp")?;
        let home = Self {
            directory: directory.path().to_owned(),
            temporary: Some(directory),
            programs: programs.to_owned(),
        };
        fs::create_dir_all(home.path().join("state"))?;
        fs::create_dir_all(home.path().join("config"))?;
        for kind in ["images", "kernels"] {
            process::run(
                Command::new("cp")
                    .args(["--archive", "--sparse=always", "--reflink=auto"])
                    .arg(store.join(kind))
                    .arg(home.path().join("state")),
            )?;
        }
        let config = format!("default_image_name = \"{image}\"\n");
        fs::write(home.path().join("config/config.toml"), config)?;
        Ok(home)
    }

    /// One that an earlier run has kept.
    pub fn kept(directory: PathBuf, programs: &Path) -> Self {
        Self {
            directory,
            temporary: None,
            programs: programs.to_owned(),
        }
    }

    /// Has it stay, with all that runs in it.
    pub fn keep(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            self.directory = temporary.keep();
        }
    }

    /// Adds to its config; before its daemon starts.
    pub fn configure(&self, lines: &str) -> Result<()> {
        let file = self.path().join("config/config.toml");
        let text = fs::read_to_string(&file)? + lines;
        Ok(fs::write(&file, text)?)
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// One of banger's programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// `banger` with these arguments.
    pub fn banger(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.program("banger"));
        command.args(arguments).env("BANGER_HOME", self.path());
        command
    }

    /// What `banger` with these arguments prints.
    pub fn text(&self, arguments: &[&str]) -> Result<String> {
        process::quiet_output(&mut self.banger(arguments))
    }

    /// The same, as JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        serde_json::from_str(&self.text(arguments)?).context("banger's output is no JSON")
    }

    /// Makes a VM that runs, and returns what it is.
    pub fn create(&self, name: &str) -> Result<Value> {
        self.json(&["vm", "create", "--quiet", "--json", "--name", name])
    }

    /// Deletes a VM.
    pub fn delete(&self, name: &str) -> Result<()> {
        self.text(&["vm", "delete", "--quiet", name]).map(drop)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if self.temporary.is_none() {
            return;
        }
        let clean = || -> Result<()> {
            if let Value::Array(vms) = self.json(&["vm", "list", "--json"])? {
                for vm in vms {
                    self.delete(vm["name"].as_str().context("a VM has a name")?)?;
                }
            }
            self.text(&["daemon", "stop"]).map(drop)
        };
        if let Err(error) = clean() {
            eprintln!("warning: {}: {error:#}", self.path().display());
        }
    }
}

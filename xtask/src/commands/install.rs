//! `cargo xtask install`: the programs below a prefix, after which the checkout is not needed.
//!
//! `banger` and `bangerd` go to `bin/`; the guest companion, which nobody types, goes to
//! `lib/banger/`, where `bangerd` looks for it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use lexopt::Arg;

use crate::commands::build;
use crate::workspace::{AGENT, HOST_PROGRAMS, Workspace, place_program};

/// Builds and installs.
pub fn run(workspace: &Workspace, arguments: lexopt::Parser) -> Result<ExitCode> {
    install(workspace, &prefix(arguments)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Builds, installs below `prefix`, and returns where `banger` is.
pub fn install(workspace: &Workspace, prefix: &Path) -> Result<PathBuf> {
    let built = build::build(workspace)?;
    let programs = prefix.join("bin");
    place_program(&built.join(AGENT), &prefix.join("lib/banger"))?;
    for program in HOST_PROGRAMS {
        place_program(&built.join(program), &programs)?;
    }
    println!("banger is installed in {}", programs.display());
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|directory| directory == programs) {
        println!(
            "add it to your PATH: export PATH=\"{}:$PATH\"",
            programs.display()
        );
    }
    Ok(programs.join("banger"))
}

/// Reads `--prefix`; `~/.local` if it is not given.
pub fn prefix(mut arguments: lexopt::Parser) -> Result<PathBuf> {
    let mut prefix = None;
    while let Some(argument) = arguments.next()? {
        match argument {
            Arg::Long("prefix") => prefix = Some(PathBuf::from(arguments.value()?)),
            other => return Err(other.unexpected().into()),
        }
    }
    match prefix {
        Some(prefix) => std::path::absolute(&prefix)
            .with_context(|| format!("`{}` is no path to install to", prefix.display())),
        None => {
            Ok(PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".local"))
        }
    }
}

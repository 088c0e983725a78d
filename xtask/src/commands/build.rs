//! `cargo xtask build`: banger's three programs into `build/bin/`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use crate::workspace::{HOST_PROGRAMS, Profile, Workspace, place_program};

/// Builds, and says where the programs are.
pub fn run(workspace: &Workspace, arguments: lexopt::Parser) -> Result<ExitCode> {
    super::no_more(arguments)?;
    let directory = build(workspace)?;
    println!("banger is in {}", directory.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds everything, and returns the directory that holds all three programs.
pub fn build(workspace: &Workspace) -> Result<PathBuf> {
    let directory = workspace.root.join("build/bin");
    place_program(&workspace.build_agent()?, &directory)?;
    let built = workspace.build_host_programs(Profile::Release)?;
    for program in HOST_PROGRAMS {
        place_program(&built.join(program), &directory)?;
    }
    Ok(directory)
}

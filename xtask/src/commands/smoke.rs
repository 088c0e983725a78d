//! `cargo xtask smoke`: one real VM of the release build boots, runs a command and leaves
//! nothing. The quickest answer to "does it work here?".

use std::process::ExitCode;

use anyhow::Result;

use crate::artifacts;
use crate::commands::{build, test};
use crate::process;
use crate::workspace::Workspace;

/// Runs it.
pub fn run(workspace: &Workspace, arguments: lexopt::Parser) -> Result<ExitCode> {
    super::no_more(arguments)?;
    let programs = build::build(workspace)?;
    let store = artifacts::store(workspace, &programs)?;
    let only = ["-p", "banger-e2e", "-E", "test(/^a_command_runs_in_a_vm/)"];
    process::run(
        workspace
            .cargo(&["nextest", "run"])
            .args(only)
            .env(test::PROGRAMS_VARIABLE, programs)
            .env(test::STORE_VARIABLE, store),
    )?;
    Ok(ExitCode::SUCCESS)
}

//! `cargo xtask quickstart`: from the sources to a command that ran in a real VM.
//!
//! The host's packages and the toolchain are the concern of `scripts/`, which `make
//! quickstart` runs before this can be built.

use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::commands::install;
use crate::process;
use crate::workspace::Workspace;

/// Builds, installs, and runs `uname -a` in a VM.
pub fn run(workspace: &Workspace, arguments: lexopt::Parser) -> Result<ExitCode> {
    let banger = install::install(workspace, &install::prefix(arguments)?)?;
    println!("a first command in a VM of its own (the first run gets the image and the kernel):");
    let image = ["--image", "debian-bookworm-slim"];
    process::run(
        Command::new(&banger)
            .args(["vm", "run", "--rm"])
            .args(image)
            .args(["--", "uname", "-a"]),
    )?;
    println!(
        "it works. Now a shell in a fresh VM: {} vm run",
        banger.display()
    );
    Ok(ExitCode::SUCCESS)
}

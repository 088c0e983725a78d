//! `cargo xtask lint`: what must hold of the sources without running them.

use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::process;
use crate::summary::Outcome;
use crate::workspace::Workspace;

/// Seconds that the advisory database may take to arrive before it counts as out of reach.
const ADVISORY_SECONDS: &str = "60";

/// Runs every check, stopping at the first that fails.
pub fn run(workspace: &Workspace, arguments: lexopt::Parser) -> Result<ExitCode> {
    super::no_more(arguments)?;
    ensure_deny(workspace)?;
    for check in [format, clippy, dependencies, advisories, documentation] {
        if let Outcome::Skipped(reason) = check(workspace)? {
            eprintln!("skipped: {reason}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Installs cargo-deny where it is missing. It is built quickly rather than to be quick: it
/// runs for seconds.
pub fn ensure_deny(workspace: &Workspace) -> Result<()> {
    if process::output(&mut workspace.cargo(&["deny", "--version"])).is_ok() {
        return Ok(());
    }
    process::run(&mut workspace.cargo(&["install", "--locked", "--debug", "cargo-deny"]))
}

/// rustfmt has nothing to change.
pub fn format(workspace: &Workspace) -> Result<Outcome> {
    process::run(&mut workspace.cargo(&["fmt", "--all", "--check"]))?;
    Ok(Outcome::Passed)
}

/// clippy has nothing to say.
pub fn clippy(workspace: &Workspace) -> Result<Outcome> {
    let everything = ["--workspace", "--all-targets", "--all-features"];
    process::run(
        workspace
            .cargo(&["clippy"])
            .args(everything)
            .args(["--", "--deny=warnings"]),
    )?;
    Ok(Outcome::Passed)
}

/// Licences, banned crates and their sources are as `deny.toml` says.
pub fn dependencies(workspace: &Workspace) -> Result<Outcome> {
    let kinds = ["bans", "licenses", "sources"];
    let check = ["deny", "check", "--hide-inclusion-graph"];
    process::run(workspace.cargo(&check).args(kinds))?;
    Ok(Outcome::Passed)
}

/// No dependency has a known weakness, as far as the database can be had.
pub fn advisories(workspace: &Workspace) -> Result<Outcome> {
    let mut fetch = Command::new("timeout");
    fetch
        .current_dir(&workspace.root)
        .args([ADVISORY_SECONDS, "cargo", "deny", "fetch", "db"]);
    if process::run(&mut fetch).is_err() {
        let reason = "cargo deny: the advisory database cannot be reached";
        return Ok(Outcome::Skipped(reason.to_owned()));
    }
    let check = ["deny", "check", "--disable-fetch", "advisories"];
    process::run(&mut workspace.cargo(&check))?;
    Ok(Outcome::Passed)
}

/// The documentation builds without a warning.
pub fn documentation(workspace: &Workspace) -> Result<Outcome> {
    process::run(
        workspace
            .cargo(&["doc", "--workspace", "--no-deps", "--all-features"])
            .env("RUSTDOCFLAGS", "--deny=warnings"),
    )?;
    Ok(Outcome::Passed)
}

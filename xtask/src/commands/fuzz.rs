//! `cargo xtask fuzz`: the targets of `fuzz/`, each for some minutes. It ends at the first that
//! finds something, and leaves in `fuzz/artifacts` what that was.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use lexopt::Arg;

use crate::process;
use crate::workspace::Workspace;

/// Minutes for each target, where none are given.
const MINUTES: u64 = 2;
/// Longest input: what is wrong shows in little.
const LONGEST: u32 = 4096;
/// Seconds after which one input counts as one that hangs.
const HANGS: u32 = 30;

/// Runs it.
pub fn run(workspace: &Workspace, mut arguments: lexopt::Parser) -> Result<ExitCode> {
    let (mut minutes, mut wanted) = (MINUTES, Vec::new());
    while let Some(argument) = arguments.next()? {
        match argument {
            Arg::Long("minutes") => minutes = arguments.value()?.to_string_lossy().parse()?,
            Arg::Value(target) => wanted.push(target.to_string_lossy().into_owned()),
            other => return Err(other.unexpected().into()),
        }
    }
    let known = targets(&workspace.root.join("fuzz/targets"))?;
    if let Some(unknown) = wanted.iter().find(|target| !known.contains(target)) {
        bail!("`{unknown}` is none of the targets: {}", known.join(", "));
    }
    ensure_cargo_fuzz(workspace)?;
    for target in known {
        if wanted.is_empty() || wanted.contains(&target) {
            fuzz(workspace, &target, minutes)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn fuzz(workspace: &Workspace, target: &str, minutes: u64) -> Result<()> {
    let mut run = workspace.cargo(&["fuzz", "run", "--fuzz-dir=fuzz", target, "--"]);
    run.arg(format!("-max_total_time={}", minutes * 60))
        .arg(format!("-max_len={LONGEST}"))
        .arg(format!("-timeout={HANGS}"))
        // The instrumentation is not stable; the compiler that everything else is built with has it.
        .env("RUSTC_BOOTSTRAP", "1");
    // Some write thousands of small disks.
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        run.env("TMPDIR", memory);
    }
    process::run(&mut run)
}

/// One file for each target.
fn targets(directory: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(directory)
        .with_context(|| format!("could not read {}", directory.display()))?;
    let mut targets = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if let Some(name) = path.file_stem() {
            targets.push(name.to_string_lossy().into_owned());
        }
    }
    targets.sort();
    Ok(targets)
}

fn ensure_cargo_fuzz(workspace: &Workspace) -> Result<()> {
    if process::output(&mut workspace.cargo(&["fuzz", "--version"])).is_ok() {
        return Ok(());
    }
    process::run(&mut workspace.cargo(&["install", "--locked", "cargo-fuzz"]))
}

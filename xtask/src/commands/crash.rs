//! `cargo xtask crash`: the crash test of the daemon, for longer than the tests run it, and with
//! real VMs as well. It ends at the first violation, with the seed.

use std::process::ExitCode;

use anyhow::{Result, bail};
use lexopt::Arg;

use crate::commands::test::STORE_VARIABLE;
use crate::workspace::{Profile, Workspace};
use crate::{artifacts, process};

/// Rounds on the fake engine, and with real VMs, where none are given.
const ROUNDS: (u32, u32) = (1000, 25);

/// Runs it.
pub fn run(workspace: &Workspace, mut arguments: lexopt::Parser) -> Result<ExitCode> {
    let (mut rounds, mut seed, mut engine) = (None, None, "fake".to_owned());
    while let Some(argument) = arguments.next()? {
        match argument {
            Arg::Long("rounds") => rounds = Some(arguments.value()?.to_string_lossy().parse()?),
            Arg::Long("seed") => seed = Some(arguments.value()?.to_string_lossy().parse::<u64>()?),
            Arg::Long("engine") => engine = arguments.value()?.to_string_lossy().into_owned(),
            other => return Err(other.unexpected().into()),
        }
    }
    let rounds: u32 = match (rounds, engine.as_str()) {
        (Some(rounds), "fake" | "qemu") => rounds,
        (None, "fake") => ROUNDS.0,
        (None, "qemu") => ROUNDS.1,
        (_, other) => bail!("`{other}` is neither fake nor qemu"),
    };
    // Not by nextest: it would end what takes so long.
    let mut test = workspace.cargo(&["test", "--package=banger-daemon", "--test=crash"]);
    test.args(["--", "--nocapture"])
        .env("BANGER_CRASH_ROUNDS", rounds.to_string())
        .env("BANGER_CRASH_ENGINE", &engine);
    if let Some(seed) = seed {
        test.env("BANGER_CRASH_SEED", seed.to_string());
    }
    if engine == "qemu" {
        // The guests' agent must be the static one.
        let programs = workspace.build_host_programs(Profile::Dev)?;
        let agent = workspace.build_agent()?;
        let programs = artifacts::programs(workspace, &programs, &agent)?;
        test.env(STORE_VARIABLE, artifacts::store(workspace, &programs)?);
        test.env("BANGER_TEST_AGENT", agent);
    }
    process::run(&mut test)?;
    Ok(ExitCode::SUCCESS)
}

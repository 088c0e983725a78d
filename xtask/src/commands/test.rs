//! `cargo xtask test`: everything that must hold, in the order in which a failure is cheap
//! to find, and a summary that counts it.
//!
//! A stage that fails does not keep the later ones from running, unless they need what it
//! was to make.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use lexopt::Arg;
use serde::Deserialize;

use crate::commands::{lab, lint};
use crate::process;
use crate::room;
use crate::summary::{Named, Outcome, Summary};
use crate::workspace::{AGENT, Workspace};
use crate::{artifacts, junit};

/// Tells the tests the directory of the three programs.
pub const PROGRAMS_VARIABLE: &str = "BANGER_TEST_BIN";
/// Tells the tests the directory with `images/` and `kernels/`.
pub const STORE_VARIABLE: &str = "BANGER_TEST_ARTIFACTS";
/// Tells the tests as which ordinary user to run banger.
const USER_VARIABLE: &str = "BANGER_TEST_USER";

/// Names the Firecracker that the VM tests run on too.
const FIRECRACKER_VARIABLE: &str = "BANGER_TEST_FIRECRACKER";

/// nextest's results of the profile that `.config/nextest.toml` describes.
const JUNIT: &str = "target/nextest/default/junit.xml";

/// A name for `--only`, and what it does.
type Stage = (&'static str, fn(&Run) -> Result<Outcome>);

const STAGES: &[Stage] = &[
    ("format", |run| lint::format(&run.workspace)),
    ("clippy", |run| lint::clippy(&run.workspace)),
    ("dependencies", |run| lint::dependencies(&run.workspace)),
    ("advisories", |run| lint::advisories(&run.workspace)),
    ("documentation", |run| lint::documentation(&run.workspace)),
    ("build", Run::build),
    ("tests", Run::tests),
    ("doctests", Run::doctests),
    ("image", Run::image),
    ("vms", Run::vms),
    ("ordinary-user", Run::ordinary_user),
    ("firecracker", Run::firecracker),
];

/// What the stages share.
struct Run {
    workspace: Workspace,
    programs: PathBuf,
    fresh: bool,
}

/// Runs the stages, prints the summary last.
pub fn run(workspace: &Workspace, mut arguments: lexopt::Parser) -> Result<ExitCode> {
    let mut only: Vec<String> = Vec::new();
    let mut fresh = false;
    while let Some(argument) = arguments.next()? {
        match argument {
            Arg::Long("only") => only.push(arguments.value()?.to_string_lossy().into_owned()),
            Arg::Long("fresh") => fresh = true,
            other => return Err(other.unexpected().into()),
        }
    }
    if let Some(unknown) = only
        .iter()
        .find(|name| STAGES.iter().all(|(known, _)| known != name))
    {
        let known: Vec<_> = STAGES.iter().map(|(name, _)| *name).collect();
        bail!("`{unknown}` is none of the stages: {}", known.join(", "));
    }
    let wanted = |name: &str| only.is_empty() || only.iter().any(|only| only == name);

    if only.is_empty() {
        room::require(workspace)?;
    }
    ensure_nextest(workspace)?;
    if wanted("dependencies") || wanted("advisories") {
        lint::ensure_deny(workspace)?;
    }
    let run = Run {
        workspace: workspace.clone(),
        programs: workspace.target.join("test-programs"),
        fresh,
    };
    let mut summary = Summary::default();
    for (name, stage) in STAGES.iter().filter(|(name, _)| wanted(name)) {
        eprintln!("\n== {name}");
        let begin = Instant::now();
        let outcome = stage(&run);
        summary.add(name, begin.elapsed(), outcome);
    }
    print!("{summary}");
    Ok(match summary.is_good() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

impl Run {
    /// Builds all tests and the programs that they start. The agent is the one that ships;
    /// the others are of the dev profile, which the unit tests use anyway.
    fn build(&self) -> Result<Outcome> {
        let everything = ["--workspace", "--all-targets", "--all-features"];
        process::run(self.workspace.cargo(&["build"]).args(everything))?;
        let agent = self.workspace.build_agent()?;
        let debug = self.workspace.target.join("debug");
        artifacts::programs(&self.workspace, &debug, &agent)?;
        Ok(Outcome::Passed)
    }

    /// Unit, property and snapshot tests, and the daemon on the fake engine.
    fn tests(&self) -> Result<Outcome> {
        let selection = ["--workspace", "--exclude=banger-e2e", "--all-features"];
        let agent = self.programs.join(AGENT);
        self.nextest(
            &selection,
            &[
                ("BANGER_TEST_AGENT", &agent),
                ("BANGER_TEST_NETWORK", "1".as_ref()),
            ],
        )
    }

    fn doctests(&self) -> Result<Outcome> {
        let selection = ["test", "--doc", "--workspace", "--all-features"];
        process::run(&mut self.workspace.cargo(&selection))?;
        Ok(Outcome::Passed)
    }

    /// The image and the kernel that the VMs boot, by the way a user gets them.
    fn image(&self) -> Result<Outcome> {
        if self.fresh {
            artifacts::forget(&self.workspace)?;
        }
        artifacts::store(&self.workspace, &self.programs)?;
        Ok(Outcome::Passed)
    }

    /// The whole product, with real VMs.
    fn vms(&self) -> Result<Outcome> {
        let store = artifacts::store(&self.workspace, &self.programs)?;
        self.nextest(
            &["--package=banger-e2e", "--all-features"],
            &[(STORE_VARIABLE, &store)],
        )
    }

    /// The same for someone who is not root, which needs root to set up: a user made for
    /// this run alone.
    fn ordinary_user(&self) -> Result<Outcome> {
        if !is_root()? {
            return Ok(Outcome::Skipped(
                "this user is an ordinary one: the stage `vms` was that run".to_owned(),
            ));
        }
        let store = artifacts::store(&self.workspace, &self.programs)?;
        let user = OrdinaryUser::make()?;
        let selection = ["--package=banger-e2e", "-E", "binary(user)"];
        self.nextest(
            &selection,
            &[
                (STORE_VARIABLE, &store),
                (USER_VARIABLE, user.name.as_ref()),
            ],
        )
    }

    /// The same on Firecracker, wherever there is one to be tested.
    fn firecracker(&self) -> Result<Outcome> {
        match std::env::var_os(FIRECRACKER_VARIABLE) {
            Some(path) => lab::tests(&self.workspace, &self.programs, path.as_ref()),
            None => Ok(Outcome::Skipped(format!(
                "{FIRECRACKER_VARIABLE} names no Firecracker to test with"
            ))),
        }
    }

    fn nextest(&self, selection: &[&str], variables: &[(&str, &Path)]) -> Result<Outcome> {
        // nextest's store is there whatever the target directory is.
        let results = self.workspace.root.join(JUNIT);
        let _ = fs::remove_file(&results); // there is none yet in a clean clone
        let with_environment = |command: &mut Command| {
            command
                .env(PROGRAMS_VARIABLE, &self.programs)
                .envs(variables.iter().copied());
        };
        let mut run = self.workspace.cargo(&["nextest", "run", "--no-tests=pass"]);
        if std::env::var_os("CI").is_some() {
            // The summary tells of each test that needed it.
            run.arg("--retries=1");
        }
        run.args(selection);
        with_environment(&mut run);
        let status = process::run(&mut run);

        let Ok(xml) = fs::read_to_string(&results) else {
            status?;
            bail!("nextest left no results");
        };
        let mut tests = junit::parse(&xml)?;
        if tests.failed.is_empty() {
            // A failure that is no test's: the build, or the set-up.
            status?;
        }
        tests.skipped.extend(self.ignored(selection)?);
        Ok(Outcome::Tests(tests))
    }

    /// The tests that `#[ignore]` leaves out; nextest's results do not name them.
    fn ignored(&self, selection: &[&str]) -> Result<Vec<Named>> {
        let mut list = self.workspace.cargo(&["nextest", "list"]);
        list.args(["--message-format=json", "--run-ignored=only"]);
        let list: List = serde_json::from_str(&process::output(list.args(selection))?)
            .context("nextest's list is not as expected")?;
        let mut skipped = Vec::new();
        for (suite, binary) in list.suites {
            for (name, case) in binary.cases {
                if case.ignored && case.filter.status == "matches" {
                    skipped.push(Named {
                        name: format!("{suite} {name}"),
                        reason: "marked #[ignore]".to_owned(),
                    });
                }
            }
        }
        Ok(skipped)
    }
}

/// `cargo nextest list --message-format=json`, as far as it matters here.
#[derive(Deserialize)]
struct List {
    #[serde(rename = "rust-suites")]
    suites: BTreeMap<String, Suite>,
}

#[derive(Deserialize)]
struct Suite {
    #[serde(rename = "testcases", default)]
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    ignored: bool,
    #[serde(rename = "filter-match")]
    filter: Filter,
}

#[derive(Deserialize)]
struct Filter {
    status: String,
}

/// An account of the host for one test run, with a home and subordinate ids.
struct OrdinaryUser {
    name: String,
}

impl OrdinaryUser {
    fn make() -> Result<Self> {
        let user = Self {
            name: format!("bgr-test-{}", std::process::id()),
        };
        process::run(
            Command::new("useradd")
                .args(["--create-home", "--user-group", "--shell=/bin/sh"])
                .arg(&user.name),
        )?;
        Ok(user)
    }
}

impl Drop for OrdinaryUser {
    fn drop(&mut self) {
        if let Err(error) = process::run(Command::new("userdel").args(["--remove", &self.name])) {
            eprintln!("warning: {error:#}");
        }
    }
}

fn is_root() -> Result<bool> {
    Ok(process::output(Command::new("id").arg("-u"))?.trim() == "0")
}

/// Installs nextest unless it is there.
pub fn ensure_nextest(workspace: &Workspace) -> Result<()> {
    if process::output(&mut workspace.cargo(&["nextest", "--version"])).is_ok() {
        return Ok(());
    }
    process::run(&mut workspace.cargo(&["install", "--locked", "cargo-nextest"]))
}

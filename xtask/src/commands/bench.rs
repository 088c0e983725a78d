//! `cargo xtask bench`: how fast the release build is on this machine.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use lexopt::Arg;

use crate::artifacts;
use crate::bench::home::Home;
use crate::bench::report::{Report, Row};
use crate::bench::{agent, create, daemon, exec, oci, rows, run};
use crate::commands::build;
use crate::workspace::Workspace;

/// The benchmarks by their numbers.
const ALL: [&str; 8] = ["B1", "B2", "B5", "B7", "B8", "B9", "B11", "B13"];

/// What was asked for.
struct Options {
    /// How often each thing is done.
    runs: usize,
    /// The image that VMs boot.
    image: String,
    /// The benchmarks; all if empty.
    only: Vec<String>,
    /// The directory of the three programs; the release build's if nowhere.
    programs: Option<PathBuf>,
    /// Where the JSON goes; standard output if nowhere.
    json: Option<PathBuf>,
}

/// Runs `bench all` or `bench create`.
pub fn run(workspace: &Workspace, mut arguments: lexopt::Parser) -> Result<ExitCode> {
    let which = match arguments.next()? {
        Some(Arg::Value(which)) => which.to_string_lossy().into_owned(),
        _ => bail!("say which: `bench all` or `bench create`"),
    };
    let options = options(arguments)?;
    let programs = match &options.programs {
        Some(programs) => programs.clone(),
        None => build::build(workspace)?,
    };
    let store = artifacts::store(workspace, &programs)?;
    let home = Home::new(&programs, &store, &options.image)?;
    match which.as_str() {
        "create" => {
            let times = create::to_ssh(&home, &options.image, options.runs)?;
            write_json(&options, &serde_json::to_value(times)?)?;
        }
        "all" => {
            let report = measure(workspace, &home, &options)?;
            eprintln!("{report}");
            write_json(&options, &report.to_json())?;
        }
        unknown => bail!("`{unknown}` is neither `all` nor `create`"),
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(workspace: &Workspace, home: &Home, options: &Options) -> Result<Report> {
    let wanted = |id: &&str| options.only.is_empty() || options.only.iter().any(|only| only == id);
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        engine: engine(home)?,
        rows: Vec::new(),
    };
    for id in ALL.iter().filter(|id| wanted(id)) {
        eprintln!("measuring {id}");
        let rows: Vec<Row> = match *id {
            "B1" => vec![run::measure(home, options.runs)?],
            "B2" => exec::round_trip(home, options.runs.max(20))?,
            "B5" => oci::measure(home, &workspace.target, options.runs)?,
            "B7" => create::without_start(home, options.runs)?,
            "B8" => rows::measure(home, options.runs)?,
            "B9" => daemon::measure(home)?,
            "B11" => vec![exec::throughput(home)?],
            _ => agent::measure(home)?,
        };
        report.rows.extend(rows);
    }
    Ok(report)
}

/// Which engine it is that all this is measured on.
fn engine(home: &Home) -> Result<String> {
    home.text(&["vm", "create", "--quiet", "--no-start", "--name", "probe"])?;
    let probe = home.json(&["vm", "show", "--json", "probe"])?;
    home.delete("probe")?;
    let reason = probe["engine_reason"]
        .as_str()
        .context("a VM has an engine")?;
    Ok(reason.to_owned())
}

fn options(mut arguments: lexopt::Parser) -> Result<Options> {
    let mut options = Options {
        runs: 5,
        image: artifacts::IMAGE.to_owned(),
        only: Vec::new(),
        programs: None,
        json: None,
    };
    while let Some(argument) = arguments.next()? {
        match argument {
            Arg::Long("runs") => options.runs = arguments.value()?.to_string_lossy().parse()?,
            Arg::Long("image") => options.image = arguments.value()?.to_string_lossy().into(),
            Arg::Long("only") => options
                .only
                .push(arguments.value()?.to_string_lossy().into()),
            Arg::Long("programs") => options.programs = Some(arguments.value()?.into()),
            Arg::Long("json") => options.json = Some(arguments.value()?.into()),
            other => return Err(other.unexpected().into()),
        }
    }
    if options.runs == 0 {
        bail!("--runs must be at least 1");
    }
    if let Some(unknown) = options
        .only
        .iter()
        .find(|only| !ALL.contains(&only.as_str()))
    {
        bail!("`{unknown}` is none of the benchmarks: {}", ALL.join(", "));
    }
    Ok(options)
}

fn write_json(options: &Options, json: &serde_json::Value) -> Result<()> {
    let text = serde_json::to_string_pretty(json)? + "\n";
    match &options.json {
        None => print!("{text}"),
        Some(file) => std::fs::write(file, text)
            .with_context(|| format!("could not write {}", file.display()))?,
    }
    Ok(())
}

//! `cargo xtask`: what the Makefile's targets do, one file for each command.

#![expect(
    clippy::disallowed_methods,
    reason = "the developer's tools run in front of them, as a shell would run them"
)]

mod artifacts;
mod bench;
mod commands;
mod junit;
mod process;
mod room;
mod summary;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use lexopt::Arg;

use crate::workspace::Workspace;

const HELP: &str = "\
cargo xtask COMMAND

  build                      banger, bangerd and banger-vsock-agent into build/bin/
  install [--prefix DIR]     build, and install below DIR (~/.local)
  quickstart [--prefix DIR]  install, and run a first command in a VM
  lint                       formatting, clippy, dependencies, documentation
  test [--only STAGE]...     everything that must hold
       [--fresh]             make the image for the tests again
  smoke                      one real VM
  crash [--rounds N] [--seed S] [--engine fake|qemu]
                             kill the daemon at random moments, and look for losses and leaks
  fuzz [--minutes N] [TARGET]...
                             strangers' bytes against all that reads them
  lab --firecracker PATH [--keep] [--user] [-- NEXTEST...]
                             the VM tests on Firecracker, in a VM that has KVM, which stays
                             for the next run with --keep; as an ordinary user with --user
      --bench [-- BENCH...]  B1, B2 and B11 in there instead, beside the bare Firecracker
  bench create [--runs N] [--image NAME]
                             times of `vm create` as JSON
  bench all [--runs N] [--image NAME] [--only B1]... [--json FILE]
                             a table of everything, and JSON
       [--programs DIR]      of these programs instead of the release build's
";

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            for cause in error.chain().skip(1) {
                eprintln!("  caused by: {cause}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    let mut arguments = lexopt::Parser::from_env();
    let command = match arguments.next()? {
        Some(Arg::Value(command)) => command.to_string_lossy().into_owned(),
        Some(Arg::Long("help") | Arg::Short('h')) | None => "help".to_owned(),
        Some(other) => return Err(other.unexpected().into()),
    };
    let workspace = Workspace::find()?;
    match command.as_str() {
        "build" => commands::build::run(&workspace, arguments),
        "install" => commands::install::run(&workspace, arguments),
        "quickstart" => commands::quickstart::run(&workspace, arguments),
        "lint" => commands::lint::run(&workspace, arguments),
        "test" => commands::test::run(&workspace, arguments),
        "bench" => commands::bench::run(&workspace, arguments),
        "crash" => commands::crash::run(&workspace, arguments),
        "fuzz" => commands::fuzz::run(&workspace, arguments),
        "lab" => commands::lab::run(&workspace, arguments),
        "smoke" => commands::smoke::run(&workspace, arguments),
        "help" => {
            print!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        unknown => anyhow::bail!("`{unknown}` is none of the commands:\n\n{HELP}"),
    }
}

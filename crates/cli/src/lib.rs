//! The `banger` command: reads what was typed, asks the daemon, shows what comes back.
//!
//! ```text
//! args      what was typed                              no I/O
//! settings  + environment                               no I/O
//! commands  one file each: asks the daemon through banger-client
//! session   a guest command joined to this terminal or these pipes
//! follow    an operation joined to the progress display
//! archive   trees of files as tar streams, for `vm cp`
//! render    objects -> text                             no I/O
//! ui        all talk, on standard error; `output` all data, on standard output
//! ```
//!
//! It is a library so that other programs of the workspace can see the command's definition
//! (for man pages); [`main`] is all of the program.

mod archive;
mod args;
mod commands;
mod complete;
mod credentials;
mod duration;
mod failure;
mod filter;
mod follow;
mod near;
mod output;
mod progress;
mod render;
mod session;
mod settings;
mod signals;
mod source;
mod ssh_config;
mod ssh_words;
mod ui;
mod usage;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::args::Cli;
use crate::failure::{Failure, Outcome};
use crate::settings::Settings;

/// The whole command, with its subcommands, arguments and help.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Does what was typed, and says by the exit status how it went
/// ([`banger_proto::exit`] has the list).
pub fn main() -> ExitCode {
    session::restore_terminal_on_panic();
    if let Some(status) = complete::answer_shell() {
        return status;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let words: Vec<String> = std::env::args_os()
                .map(|word| word.to_string_lossy().into_owned())
                .collect();
            return say_usage(&usage::with_tip(error, &words));
        }
    };
    let otherwise = cli.command.failure_status();
    let settings = match Settings::from_env() {
        Ok(settings) => settings,
        Err(failure) => return ui::Ui::from_env().conclude(Err(failure), otherwise),
    };
    let outcome = run_to_completion(cli, &settings);
    settings.ui.conclude(outcome, otherwise)
}

/// Runs the command on this thread alone: what the CLI does is waiting.
fn run_to_completion(cli: Cli, settings: &Settings) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::system("could not start", &error))?;
    let outcome = runtime.block_on(cli.command.run(settings));
    // A read of standard input that never returns must not hold the process.
    runtime.shutdown_background();
    outcome
}

/// Prints clap's own text: help and version on standard output, mistakes on standard error.
fn say_usage(usage: &clap::Error) -> ExitCode {
    // If nobody reads it, there is nobody to tell.
    let _ = usage.print();
    ExitCode::from(u8::try_from(usage.exit_code()).unwrap_or(banger_proto::exit::USAGE))
}

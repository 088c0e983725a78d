//! `bangerd`: serves in the foreground, or answers one question and ends.

use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use banger_config::{Config, Paths};
use banger_daemon::{NET_HOLDER, doctor, leaks, server};
use banger_proto::doctor::CheckStatus;
use banger_proto::error::ApiError;
use serde::Serialize;

const USAGE: &str = "\
bangerd owns your VMs. `banger` starts it when it is needed.

usage: bangerd                    serve in the foreground
       bangerd doctor [--json]    check what VMs need of this host
       bangerd doctor --leaks [--json]
                                  find what was left over on this host
       bangerd version [--json]
";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    // The holder forks and enters namespaces, so it must come before any thread.
    if arguments.first().is_some_and(|first| first == NET_HOLDER) {
        return hold_network(arguments);
    }
    let words: Vec<&str> = arguments
        .iter()
        .map(|word| word.to_str().unwrap_or("?"))
        .collect();
    match words[..] {
        [] => serve(),
        ["doctor"] => diagnose(false),
        ["doctor", "--json"] => diagnose(true),
        ["doctor", "--leaks"] => find_leaks(false),
        ["doctor", "--leaks", "--json"] => find_leaks(true),
        ["version"] => {
            print(&format!("bangerd {}\n", banger_proto::VERSION));
            ExitCode::SUCCESS
        }
        ["version", "--json"] => {
            print_json(&banger_daemon::version());
            ExitCode::SUCCESS
        }
        ["help" | "--help" | "-h"] => {
            print(USAGE);
            ExitCode::SUCCESS
        }
        _ => {
            complain(USAGE);
            ExitCode::from(banger_proto::exit::USAGE)
        }
    }
}

fn hold_network(arguments: Vec<OsString>) -> ExitCode {
    match banger_net::holder::run(arguments.into_iter().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| {
                error.source()
            });
            let words: Vec<String> = causes.map(ToString::to_string).collect();
            complain(&format!("error: {}\n", words.join(": ")));
            ExitCode::FAILURE
        }
    }
}

fn serve() -> ExitCode {
    #[derive(Serialize)]
    struct NotReady {
        error: ApiError,
    }
    match server::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Who reads the line that a program waits for needs no other; a terminal is read by
            // a person.
            match io::stdout().is_terminal() {
                true => complain(&format!("error: {error}\n")),
                false => print_json(&NotReady { error }),
            }
            ExitCode::FAILURE
        }
    }
}

fn diagnose(json: bool) -> ExitCode {
    let report = doctor::report();
    match json {
        true => print_json(&report),
        false => print(&doctor::render(&report)),
    }
    match report.worst() {
        CheckStatus::Fail => ExitCode::FAILURE,
        CheckStatus::Pass | CheckStatus::Warn => ExitCode::SUCCESS,
    }
}

/// Fails if something has no owner, or could not be looked at.
fn find_leaks(json: bool) -> ExitCode {
    let paths = match Paths::from_env() {
        Ok(paths) => paths,
        Err(error) => {
            complain(&format!("error: {error}\n"));
            return ExitCode::FAILURE;
        }
    };
    // A config that cannot be read is for the other checks to tell.
    let config = Config::load(&paths.config_file()).unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let inventory = match runtime {
        Ok(runtime) => runtime.block_on(leaks::inventory(&paths, &config)),
        Err(error) => {
            complain(&format!("error: could not look at the host: {error}\n"));
            return ExitCode::FAILURE;
        }
    };
    match json {
        true => print_json(&inventory),
        false => print(&leaks::render(&inventory)),
    }
    match inventory.leaks().next().is_none() && inventory.unseen.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn print_json(value: &impl Serialize) {
    let line = serde_json::to_string(value).expect("API objects have only string keys");
    print(&format!("{line}\n"));
}

/// Output may be closed: whoever closed it does not want to know.
fn print(text: &str) {
    let mut out = io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn complain(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

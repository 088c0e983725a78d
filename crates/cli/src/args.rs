//! What can be typed.

use std::time::Duration;

use banger_proto::api::EngineKind;
use banger_proto::exit;
use banger_proto::size::ByteSize;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::commands;
use crate::failure::Outcome;
use crate::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  banger vm run                          a shell in a fresh VM
  banger vm run --rm -- uname -a         one command, and nothing left behind
  banger vm list                         your VMs
  banger doctor                          what this host lacks, and how to mend it

Data goes to standard output, talk to standard error. `--json` gives the API's own objects.
A guest command's exit status is banger's own: 128 + n for a signal, 125 if banger failed,
126 if the command cannot be executed, 127 if there is none, 124 if it took too long.";

/// One-command development sandboxes on microVMs.
#[derive(Debug, Parser)]
#[command(
    name = "banger",
    version = banger_proto::VERSION,
    after_help = EXAMPLES,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make VMs and work in them
    #[command(subcommand)]
    Vm(commands::vm::Vm),
    /// Get, keep and carry images
    #[command(subcommand)]
    Image(commands::image::Image),
    /// List kernels, and bring your own
    #[command(subcommand)]
    Kernel(commands::kernel::Kernel),
    /// List and install the programs that run VMs
    #[command(subcommand)]
    Engine(commands::engine::Engine),
    /// Look at work that goes on in the daemon, and call it off
    #[command(subcommand)]
    Operation(commands::operation::Operation),
    /// Print what happens: VMs that change, operations that begin and end
    Events(commands::events::Events),
    /// Check what this host has and lacks, with the fix for each
    Doctor(commands::doctor::Doctor),
    /// Look at the daemon, start it, stop it
    #[command(subcommand)]
    Daemon(commands::daemon::Daemon),
    /// Show and check the config file
    #[command(subcommand)]
    Config(commands::config::Config),
    /// Have `ssh NAME.vm`, and all that goes by ssh, reach VMs
    SshConfig(commands::ssh_config::SshConfig),
    /// Print the versions of banger and of the running daemon
    Version(commands::version::Version),
    /// Print a script that completes banger's commands and names in a shell
    Completion(commands::completion::Completion),
    /// Connect standard input and output to a VM's SSH server
    #[command(hide = true)]
    SshProxy(commands::ssh_proxy::SshProxy),
}

impl Command {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        match self {
            Self::Vm(command) => command.run(settings).await,
            Self::Image(command) => command.run(settings).await,
            Self::Kernel(command) => command.run(settings).await,
            Self::Engine(command) => command.run(settings).await,
            Self::Operation(command) => command.run(settings).await,
            Self::Events(command) => command.run(settings).await,
            Self::Doctor(command) => command.run(settings).await,
            Self::Daemon(command) => command.run(settings).await,
            Self::Config(command) => command.run(settings),
            Self::Version(command) => command.run(settings).await,
            Self::Completion(command) => command.run(),
            Self::SshConfig(command) => command.run(settings),
            Self::SshProxy(command) => command.run(settings).await,
        }
    }

    /// The exit status of banger's own failures: where a guest command's status is passed on,
    /// one that those seldom use.
    pub(crate) fn failure_status(&self) -> u8 {
        use commands::vm::Vm;
        match self {
            Self::Vm(Vm::Run(_) | Vm::Exec(_) | Vm::Ssh(_)) => exit::BANGER,
            _ => exit::FAILURE,
        }
    }
}

/// An engine, as it is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum EngineArg {
    Qemu,
    Firecracker,
    #[value(hide = true)]
    Fake,
}

impl From<EngineArg> for EngineKind {
    fn from(engine: EngineArg) -> Self {
        match engine {
            EngineArg::Qemu => Self::Qemu,
            EngineArg::Firecracker => Self::Firecracker,
            EngineArg::Fake => Self::Fake,
        }
    }
}

/// `--json` of commands that print facts.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Json {
    /// Print the API's objects as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `--quiet` of commands that take their time.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Quiet {
    /// Say nothing but errors
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// How a guest command is run.
#[derive(Clone, Debug, Args)]
pub(crate) struct ExecArgs {
    /// Set a variable of the command's environment; without =VAL, to its value here
    #[arg(long, short, value_name = "KEY[=VAL]", value_parser = variable, help_heading = "Command options")]
    pub(crate) env: Vec<(String, Option<String>)>,
    /// Start the command in this directory of the guest
    #[arg(long, short, value_name = "DIR", help_heading = "Command options")]
    pub(crate) workdir: Option<String>,
    /// Run the command as this user of the guest, or USER:GROUP
    #[arg(long, short, value_name = "USER", help_heading = "Command options")]
    pub(crate) user: Option<String>,
    /// Give the command a terminal, even if there is none here
    #[arg(
        short = 't',
        long = "tty",
        overrides_with = "no_tty",
        help_heading = "Command options"
    )]
    pub(crate) tty: bool,
    /// Give the command no terminal, even if there is one here
    #[arg(
        short = 'T',
        long = "no-tty",
        overrides_with = "tty",
        help_heading = "Command options"
    )]
    pub(crate) no_tty: bool,
    /// End the command after this time (such as 30s, 5m, 1h), with exit status 124
    #[arg(long, value_name = "TIME", value_parser = crate::duration::parse, help_heading = "Command options")]
    pub(crate) timeout: Option<Duration>,
    /// The command and its arguments; the user's shell if left out
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

/// What a VM may be named by; the daemon knows which ones there are.
pub(crate) fn vm_selector(text: &str) -> Result<String, String> {
    match text.trim().is_empty() {
        true => {
            Err("a VM is named by its name, its id, or the first 4 or more digits of its id".into())
        }
        false => Ok(text.to_owned()),
    }
}

/// A size above zero.
pub(crate) fn size(text: &str) -> Result<ByteSize, String> {
    if text.starts_with('-') {
        return Err(NOTHING.into());
    }
    let size: ByteSize = text
        .parse()
        .map_err(|error: banger_proto::size::InvalidSize| error.to_string())?;
    match size.bytes() {
        0 => Err(NOTHING.into()),
        _ => Ok(size),
    }
}

const NOTHING: &str =
    "a size must be more than nothing: write for example `512M`, `8G` or `1.5GiB`";

/// The most virtual CPUs that any VM may be asked for; the host may allow fewer.
const VCPU_MAX: u32 = 1024;

/// A number of virtual CPUs.
pub(crate) fn vcpu(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|n| (1..=VCPU_MAX).contains(n));
    number.ok_or_else(|| {
        format!(
            "write a whole number, from 1 to the number of this host's CPUs (at most {VCPU_MAX})"
        )
    })
}

/// A signal by its name, with or without `SIG`, or by its number (signal(7)).
pub(crate) fn signal(text: &str) -> Result<i32, String> {
    if let Ok(number) = text.parse::<i32>() {
        return match (1..=64).contains(&number) {
            true => Ok(number),
            false => Err("a signal's number is 1 to 64".into()),
        };
    }
    let upper = text.to_ascii_uppercase();
    let name = match upper.starts_with("SIG") {
        true => upper,
        false => format!("SIG{upper}"),
    };
    match name.parse::<nix::sys::signal::Signal>() {
        Ok(signal) => Ok(signal as i32),
        Err(_) => Err("write a signal's name or number, such as TERM, SIGTERM or 15".into()),
    }
}

/// A SHA-256, as `sha256sum` prints it.
pub(crate) fn sha256(text: &str) -> Result<String, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match digits && text.len() == 64 {
        true => Ok(text.to_ascii_lowercase()),
        false => Err("write the 64 hexadecimal digits that `sha256sum` prints".into()),
    }
}

/// A label's key.
pub(crate) fn label_key(text: &str) -> Result<String, String> {
    match text.is_empty() || text.contains('=') {
        true => Err("write the label's KEY alone".into()),
        false => Ok(text.to_owned()),
    }
}

/// `KEY=VALUE` with something before the first `=`.
pub(crate) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".into()),
    }
}

fn variable(text: &str) -> Result<(String, Option<String>), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    match name.is_empty() || text.contains('\0') {
        true => Err("write KEY=VAL, or KEY to pass a variable on".into()),
        false => Ok((name.to_owned(), value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    fn all_commands(command: &clap::Command, path: &str, found: &mut Vec<(String, clap::Command)>) {
        found.push((path.to_owned(), command.clone()));
        for sub in command.get_subcommands() {
            all_commands(sub, &format!("{path} {}", sub.get_name()), found);
        }
    }

    fn commands() -> Vec<(String, clap::Command)> {
        let mut root = Cli::command();
        root.build();
        let mut found = Vec::new();
        all_commands(&root, "banger", &mut found);
        found
    }

    #[test]
    fn help_of_every_command() {
        let mut text = String::new();
        for (path, _) in commands() {
            let help = error_of(&format!("{path} --help").split(' ').collect::<Vec<_>>());
            text.push_str(&format!("$ {path} --help\n{help}\n"));
        }
        insta::assert_snapshot!(text);
    }

    #[test]
    fn every_example_in_the_help_is_understood() {
        let mut seen = 0;
        for (path, command) in commands() {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            for line in help
                .lines()
                .filter_map(|line| line.strip_prefix("  banger "))
            {
                // The words of the comment stand apart by two spaces, those of a pipe behind it.
                let line = line
                    .split("  ")
                    .next()
                    .unwrap()
                    .split(['|', '>', '<'])
                    .next()
                    .unwrap();
                let words = line.split_whitespace().map(|word| word.trim_matches('\''));
                let words = std::iter::once("banger").chain(words);
                if let Err(error) = Cli::try_parse_from(words) {
                    panic!("{path}: `banger {line}`: {error}");
                }
                seen += 1;
            }
        }
        assert!(seen > 20, "only {seen} examples");
    }

    fn error_of(words: &[&str]) -> String {
        // Whatever terminal the test runs in.
        let command = Cli::command().term_width(100);
        command.try_get_matches_from(words).unwrap_err().to_string()
    }

    #[test]
    fn nonsense_is_refused_before_anything_happens() {
        let mut text = String::new();
        for words in [
            &["banger", "vm", "run", "--memory", "8X"][..],
            &["banger", "vm", "run", "--disk-size", "0"],
            &["banger", "vm", "run", "--memory", "900P"],
            &["banger", "vm", "run", "--memory", "-1G"],
            &["banger", "vm", "run", "--vcpu", "0"],
            &["banger", "vm", "run", "--vcpu", "-2"],
            &["banger", "vm", "run", "--vcpu", "many"],
            &["banger", "vm", "run", "--ttl", "0"],
            &["banger", "vm", "run", "--name", "Not A Name"],
            &["banger", "vm", "run", "--image", "../x"],
            &["banger", "vm", "run", "--engine", "bochs"],
            &["banger", "vm", "run", "--label", "x"],
            &["banger", "vm", "run", "--env", "=x"],
            &["banger", "vm", "run", "--timeout", "soon"],
            &["banger", "vm", "exec"],
            &["banger", "vm", "stop"],
            &["banger", "vm", "set", "a"],
            &["banger", "vm", "set", "a", "--unlabel", "x=y"],
            &["banger", "vm", "rename", "a", "B"],
            &["banger", "vm", "kill", "a", "--signal", "SIGNOPE"],
            &["banger", "vm", "kill", "a", "--signal", "-9"],
            &["banger", "vm", "list", "--filter", "state=up"],
            &["banger", "vm", "list", "--filter", "colour=red"],
            &["banger", "vm", "wait", "a", "--for", "up"],
            &["banger", "vm", "cp", "a"],
            &["banger", "vm", "lst"],
            &["banger", "engine", "install"],
            &["banger", "engine", "install", "bochs"],
            &[
                "banger",
                "engine",
                "install",
                "firecracker",
                "--sha256",
                "12",
            ],
        ] {
            text.push_str(&format!("$ {}\n{}\n", words.join(" "), error_of(words)));
        }
        insta::assert_snapshot!(text);
    }

    #[test]
    fn only_commands_that_pass_a_status_on_fail_with_125() {
        let status = |words: &[&str]| Cli::try_parse_from(words).unwrap().command.failure_status();
        assert_eq!(status(&["banger", "vm", "run"]), 125);
        assert_eq!(status(&["banger", "vm", "exec", "a", "--", "ls"]), 125);
        assert_eq!(status(&["banger", "vm", "ssh", "a"]), 125);
        assert_eq!(status(&["banger", "vm", "list"]), 1);
    }

    #[test]
    fn a_signal_has_names_and_a_number() {
        for text in ["9", "KILL", "kill", "SIGKILL", "sigkill"] {
            assert_eq!(signal(text), Ok(9), "{text}");
        }
        for text in ["", "0", "65", "-1", "SIG", "SIGX"] {
            assert!(signal(text).is_err(), "{text}");
        }
    }
}

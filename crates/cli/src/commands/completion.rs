//! `banger completion`

use clap::{Args, ValueEnum};

use crate::complete;
use crate::failure::Outcome;
use crate::output;

const EXAMPLES: &str = "\
Examples:
  banger completion bash > ~/.local/share/bash-completion/completions/banger
  banger completion zsh > ~/.local/share/zsh/site-functions/_banger
  banger completion fish > ~/.config/fish/completions/banger.fish

The script asks banger itself for what fits, names of VMs and images included; it never starts
the daemon.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Completion {
    /// The shell to print a script for
    shell: Shell,
}

/// A shell that can be helped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Completion {
    pub(crate) fn run(self) -> Outcome {
        output::write(&complete::script(self.shell))?;
        Ok(0)
    }
}

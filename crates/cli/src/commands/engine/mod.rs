//! `banger engine`

mod install;
mod list;
mod show;
mod uninstall;

use clap::Subcommand;

use crate::failure::Outcome;
use crate::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  banger engine list
  banger engine show firecracker
  banger engine install firecracker
  banger engine uninstall firecracker

An engine runs VMs. Firecracker is used where KVM is usable and its program is found: what
`firecracker_bin` in the config names, else what PATH has, else what banger has installed. QEMU is
used everywhere else, and comes with the host's packages.";

#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(crate) enum Engine {
    /// List the engines, and which one new VMs get
    #[command(visible_alias = "ls")]
    List(list::List),
    /// Show everything about an engine
    Show(show::Show),
    /// Download and install an engine, or install it from a file
    Install(install::Install),
    /// Remove an engine that banger has installed
    Uninstall(uninstall::Uninstall),
}

impl Engine {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        match self {
            Self::List(command) => command.run(settings).await,
            Self::Show(command) => command.run(settings).await,
            Self::Install(command) => command.run(settings).await,
            Self::Uninstall(command) => command.run(settings).await,
        }
    }
}

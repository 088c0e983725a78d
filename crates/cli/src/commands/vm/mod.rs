//! `banger vm`

mod create;
mod delete;
mod each;
mod exec;
mod list;
mod logs;
mod run;
mod show;
mod ssh;
mod start;
mod stop;

use clap::Subcommand;

use crate::failure::Outcome;
use crate::settings::Settings;

#[derive(Debug, Subcommand)]
pub(crate) enum Vm {
    /// Make a VM and work in it: a shell, or one command
    Run(run::Run),
    /// Make a VM and print its name
    Create(create::Create),
    /// List all VMs
    #[command(visible_alias = "ls")]
    List(list::List),
    /// List the VMs that run
    Ps(list::Ps),
    /// Show everything about a VM
    Show(show::Show),
    /// Run a command, or a shell, in a running VM
    Exec(exec::Exec),
    /// Connect to a running VM with ssh
    Ssh(ssh::Ssh),
    /// Print a VM's log
    Logs(logs::Logs),
    /// Start VMs
    Start(start::Start),
    /// Shut VMs down; their disks stay
    Stop(stop::Stop),
    /// Delete VMs with their disks
    #[command(visible_alias = "rm")]
    Delete(delete::Delete),
}

impl Vm {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        match self {
            Self::Run(command) => command.run(settings).await,
            Self::Create(command) => command.run(settings).await,
            Self::List(command) => command.run(settings).await,
            Self::Ps(command) => command.run(settings).await,
            Self::Show(command) => command.run(settings).await,
            Self::Exec(command) => command.run(settings).await,
            Self::Ssh(command) => command.run(settings).await,
            Self::Logs(command) => command.run(settings).await,
            Self::Start(command) => command.run(settings).await,
            Self::Stop(command) => command.run(settings).await,
            Self::Delete(command) => command.run(settings).await,
        }
    }
}

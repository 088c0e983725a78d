//! `banger vm`

mod commit;
mod cp;
mod create;
mod delete;
mod each;
mod exec;
mod health;
mod kill;
mod list;
mod logs;
mod look;
mod pause;
mod ports;
mod prune;
mod rename;
mod restart;
mod resume;
mod run;
mod set;
mod show;
mod ssh;
mod start;
mod stats;
mod stop;
mod wait;

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
    /// Copy files and trees into a VM, out of it, or from one to another
    Cp(cp::Cp),
    /// Make an image of a stopped VM
    Commit(commit::Commit),
    /// Print a VM's log
    Logs(logs::Logs),
    /// List the ports that guests listen on, and where this host reaches them
    Ports(ports::Ports),
    /// Show what VMs use: CPU, memory, disk, network
    Stats(stats::Stats),
    /// Say whether VMs run and their agents answer
    #[command(visible_alias = "ping")]
    Health(health::Health),
    /// Wait until VMs are in a state
    Wait(wait::Wait),
    /// Start VMs
    Start(start::Start),
    /// Shut VMs down; their disks stay
    Stop(stop::Stop),
    /// Shut VMs down and start them again
    Restart(restart::Restart),
    /// End VMs at once, without shutting them down; their disks stay
    Kill(kill::Kill),
    /// Hold VMs where they are, with their memory
    Pause(pause::Pause),
    /// Let paused VMs go on
    Resume(resume::Resume),
    /// Change VMs: CPUs, memory, disks, network, labels, how long they live
    Set(set::Set),
    /// Give a VM another name
    Rename(rename::Rename),
    /// Delete VMs with their disks
    #[command(visible_alias = "rm")]
    Delete(delete::Delete),
    /// Delete the VMs that do not run, with their disks
    Prune(prune::Prune),
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
            Self::Cp(command) => command.run(settings).await,
            Self::Commit(command) => command.run(settings).await,
            Self::Logs(command) => command.run(settings).await,
            Self::Ports(command) => command.run(settings).await,
            Self::Stats(command) => command.run(settings).await,
            Self::Health(command) => command.run(settings).await,
            Self::Wait(command) => command.run(settings).await,
            Self::Start(command) => command.run(settings).await,
            Self::Stop(command) => command.run(settings).await,
            Self::Restart(command) => command.run(settings).await,
            Self::Kill(command) => command.run(settings).await,
            Self::Pause(command) => command.run(settings).await,
            Self::Resume(command) => command.run(settings).await,
            Self::Set(command) => command.run(settings).await,
            Self::Rename(command) => command.run(settings).await,
            Self::Delete(command) => command.run(settings).await,
            Self::Prune(command) => command.run(settings).await,
        }
    }
}

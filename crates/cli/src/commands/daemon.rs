//! `banger daemon`

mod logs;

use std::io;
use std::os::fd::OwnedFd;

use banger_client::{Client, ClientError};
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::exit;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::args::Json;
use crate::failure::{Failure, Outcome};
use crate::output::{print, print_json};
use crate::render::lists::daemon_text;
use crate::settings::Settings;

/// How long a daemon may take to end.
const END_LIMIT: Timespec = Timespec {
    tv_sec: 30,
    tv_nsec: 0,
};

const EXAMPLES: &str = "\
Examples:
  banger daemon status
  banger daemon restart
  banger daemon logs -f

Every command that needs the daemon starts it. Stopping or restarting it stops no VM. It does end
what goes through the daemon: commands and shells in VMs, copies, creates and starts that are not
done, and VMs of `vm run --rm`. While there are any, it asks, or without a terminal refuses;
--force goes on.";

#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(crate) enum Daemon {
    /// Say whether the daemon runs, and what it does
    Status(Status),
    /// Start the daemon if it does not run
    Start,
    /// Stop the daemon; VMs go on running
    Stop(Ending),
    /// Stop the daemon and start it again; VMs go on running
    Restart(Ending),
    /// Print the path of the daemon's socket
    Socket,
    /// Print the daemon's log
    Logs(logs::Logs),
}

#[derive(Debug, Args)]
pub(crate) struct Status {
    #[command(flatten)]
    json: Json,
}

#[derive(Debug, Args)]
pub(crate) struct Ending {
    /// Also if commands in VMs, copies or operations end with it
    #[arg(long, short)]
    force: bool,
}

impl Daemon {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        match self {
            Self::Status(status) => status.run(settings).await?,
            Self::Start => {
                settings.connect().await?;
                settings.ui.note("the daemon runs");
            }
            Self::Stop(ending) => match settings.connect_if_running().await? {
                Some(client) => {
                    ending.stop(&client, settings).await?;
                    settings
                        .ui
                        .note("the daemon has stopped; VMs go on running");
                }
                None => settings.ui.note("the daemon does not run"),
            },
            Self::Restart(ending) => {
                // One of another API can still be stopped: that is what a restart is for.
                if let Some(client) = settings.connect_if_running().await? {
                    ending.stop(&client, settings).await?;
                }
                settings.connect().await?;
                settings.ui.note("the daemon runs");
            }
            Self::Socket => print(&format!("{}\n", settings.paths.socket().display()))?,
            Self::Logs(logs) => logs.run(&settings.paths.daemon_log())?,
        }
        Ok(0)
    }
}

impl Status {
    async fn run(self, settings: &Settings) -> Result<(), Failure> {
        let Some(client) = settings.connect_if_running().await? else {
            let error = ApiError::new(ErrorKind::Unavailable, "the daemon does not run").with_hint(
                "any command that needs it starts it, and so does `banger daemon start`",
            );
            return Err(error.into());
        };
        let status = client.daemon_status().await?;
        match self.json.json {
            true => print_json(&status),
            false => print(&daemon_text(&status, Timestamp::now())),
        }
    }
}

impl Ending {
    /// Asks the daemon to end and waits until its process has. What would end with it is said
    /// before.
    async fn stop(&self, client: &Client, settings: &Settings) -> Result<(), Failure> {
        let pid = client.daemon_status().await?.pid;
        let process = watch(pid)
            .map_err(|error| Failure::system(format!("could not watch process {pid}"), &error))?;
        let stopped = match client.stop_idle_daemon().await {
            Err(ClientError::Api(error)) if error.kind == ErrorKind::Conflict => {
                self.go_on(error, settings)?;
                client.stop_daemon().await
            }
            stopped => stopped,
        };
        match stopped {
            // It may be gone before its answer is through.
            Ok(()) | Err(ClientError::Transport { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        match process.is_none_or(|process| has_ended(&process)) {
            true => Ok(()),
            false => Err(still_runs(pid).into()),
        }
    }

    /// Whether what would end with the daemon may: by `--force`, or by who sits at the terminal.
    fn go_on(&self, at_work: ApiError, settings: &Settings) -> Result<(), Failure> {
        if self.force {
            settings.ui.warn(&at_work.to_string());
            return Ok(());
        }
        if !settings.ui.can_ask() {
            return Err(at_work.into());
        }
        settings.ui.warn(&at_work.to_string());
        match settings.ui.confirm("end it all the same?")? {
            true => Ok(()),
            false => {
                settings.ui.note("the daemon goes on");
                Err(Failure::silent(exit::FAILURE))
            }
        }
    }
}

fn still_runs(pid: u32) -> ApiError {
    let message = format!(
        "the daemon (process {pid}) did not stop within {} s",
        END_LIMIT.tv_sec
    );
    ApiError::new(ErrorKind::Timeout, message).with_hint("run `banger daemon logs`")
}

/// A descriptor of the process (pidfd_open(2)); `None` if it has ended.
fn watch(pid: u32) -> io::Result<Option<OwnedFd>> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => Ok(Some(process)),
        Err(Errno::SRCH) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Blocks until the process ends, at most for [`END_LIMIT`]. Nothing else is going on here.
fn has_ended(process: &OwnedFd) -> bool {
    let mut ended = [PollFd::new(process, PollFlags::IN)];
    poll(&mut ended, Some(&END_LIMIT)).is_ok_and(|count| count > 0)
}

//! What is ordered of a machine that runs: to hold, to go on, to end, to become larger.

use std::time::{Duration, SystemTime};

use banger_engine::{Activity, ControlError, Machine};
use banger_proto::agent::{Clock, DiskRole, Grow};
use banger_proto::api::EngineKind;
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::name::VmName;
use banger_proto::size::ByteSize;
use rustix::process::Signal;
use tokio_util::sync::CancellationToken;

use crate::files;
use crate::guest::Guest;
use crate::host::Host;
use crate::store::VmRow;
use crate::vm::change::Settings;
use crate::vm::identity;
use crate::vm::lifecycle::Request;
use crate::vm::plan;
use crate::vm::start::{self, Artifacts};

/// How long an engine may take to end by the signal that was chosen, before it is killed.
const SIGNAL_LIMIT: Duration = Duration::from_secs(5);
/// How long a guest that goes on may take to set its clock, with hardware virtualisation.
const CLOCK_LIMIT: Duration = Duration::from_secs(5);

/// Whether a machine's CPUs run now, and why that is not what was wanted.
#[derive(Debug)]
pub(super) struct Settled {
    /// Whether they run.
    pub(super) activity: Activity,
    /// Why an order was not carried out.
    pub(super) error: Option<ApiError>,
}

/// Holds the guest's CPUs.
pub(super) async fn pause(row: &VmRow, machine: Option<&dyn Machine>) -> Settled {
    let Some(machine) = machine else {
        return Settled {
            activity: Activity::Running,
            error: Some(unreachable_engine(Request::Pause, &row.name)),
        };
    };
    match machine.pause().await {
        Ok(()) => Settled {
            activity: Activity::Paused,
            error: None,
        },
        Err(error) => failed(Request::Pause, row, machine, &error, Activity::Running).await,
    }
}

/// Lets the guest's CPUs go on and sets its clock, which has stood still. With `hurry` the
/// clock is left alone.
pub(super) async fn resume(
    host: &Host,
    row: &VmRow,
    machine: Option<&dyn Machine>,
    guest: Option<&Guest>,
    hurry: &CancellationToken,
) -> Settled {
    let Some(machine) = machine else {
        return Settled {
            activity: Activity::Paused,
            error: Some(unreachable_engine(Request::Resume, &row.name)),
        };
    };
    if let Err(error) = machine.resume().await {
        return failed(Request::Resume, row, machine, &error, Activity::Paused).await;
    }
    if let Some(guest) = guest {
        hurry
            .run_until_cancelled(set_clock(host, row.engine, guest))
            .await;
    }
    Settled {
        activity: Activity::Running,
        error: None,
    }
}

/// What an interrupted daemon has left: whether the CPUs run.
pub(super) async fn look(machine: &dyn Machine) -> Settled {
    let activity = machine.activity().await;
    let activity = activity.inspect_err(|error| {
        tracing::warn!(%error, "could not ask whether the guest's CPUs run");
    });
    Settled {
        activity: activity.unwrap_or(Activity::Running),
        error: None,
    }
}

/// Gives the guest the host's time. A guest that does not take it is told again with its next
/// link.
pub(super) async fn set_clock(host: &Host, engine: EngineKind, guest: &Guest) {
    let limit = CLOCK_LIMIT * host.engines.patience(engine);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.ok().and_then(|now| u64::try_from(now.as_nanos()).ok());
    let Some(unix_ns) = now else {
        return;
    };
    match tokio::time::timeout(limit, guest.set_clock(Clock { unix_ns })).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "could not set the guest's clock"),
        Err(_) => tracing::warn!("the guest did not set its clock in time"),
    }
}

async fn failed(
    request: Request,
    row: &VmRow,
    machine: &dyn Machine,
    error: &ControlError,
    before: Activity,
) -> Settled {
    let message = format!("could not {} VM `{}`", request.verb(), row.name);
    let api = ApiError::new(ErrorKind::Unavailable, message)
        .caused_by(error)
        .with_hint(format!(
            "see `banger vm logs --engine {0}`; `banger vm kill {0}` ends it in any case",
            row.name
        ));
    Settled {
        // An order whose answer was lost may have been carried out all the same.
        activity: machine.activity().await.unwrap_or(before),
        error: Some(api),
    }
}

fn unreachable_engine(request: Request, name: &VmName) -> ApiError {
    let message = format!("could not {} VM `{name}`", request.verb());
    let mut error = ApiError::new(ErrorKind::Unavailable, message).with_hint(format!(
        "`banger vm stop {name}` or `banger vm kill {name}` ends it in any case"
    ));
    error
        .causes
        .push("its engine was not recognised when the daemon started".to_owned());
    error
}

/// Ends the engine by `signal` and waits a bounded time for that; what is left is killed by
/// whoever releases it.
pub(super) async fn end(machine: &dyn Machine, signal: Signal) {
    if signal == Signal::KILL {
        return;
    }
    if let Err(error) = machine.signal(signal) {
        tracing::warn!(%error, "the signal could not be sent: it is killed");
        return;
    }
    if tokio::time::timeout(SIGNAL_LIMIT, machine.exited())
        .await
        .is_err()
    {
        tracing::info!(
            ?signal,
            "the engine did not end by the signal: it is killed"
        );
    }
}

/// A change that is written down and is to be carried out.
#[derive(Debug)]
pub(super) struct Change {
    /// The VM as it shall be.
    pub(super) row: VmRow,
    /// What it was.
    pub(super) was: Settings,
    /// Ends what is done in the guest.
    pub(super) hurry: CancellationToken,
}

/// What came of a change.
#[derive(Debug)]
pub(super) struct Carried {
    /// What the VM is now.
    pub(super) in_force: Settings,
    /// Why that is not what was wanted, or not yet so in the guest.
    pub(super) error: Option<ApiError>,
}

impl Change {
    /// Carries it out: on the host first, where a failure takes all of it back, then in the
    /// guest, which gets at its next start what it does not take now.
    pub(super) async fn carry_out(
        &self,
        host: &Host,
        machine: Option<&dyn Machine>,
        guest: Option<&Guest>,
    ) -> Carried {
        let wanted = Settings::of(&self.row);
        let mut in_force = Settings {
            nat: self.was.nat,
            disk_size: self.was.disk_size,
            system_size: self.was.system_size,
            ..wanted.clone()
        };
        if let Err(error) = self.on_host(host, machine, &mut in_force).await {
            return Carried {
                in_force,
                error: Some(error),
            };
        }
        let in_guest = match (machine, guest) {
            (Some(_), Some(guest)) => {
                let told = self.in_guest(host, guest);
                self.hurry.run_until_cancelled(told).await
            }
            _ => Some(Ok(())),
        };
        let error = match in_guest {
            Some(Ok(())) => None,
            Some(Err(cause)) => Some(self.not_in_guest(&cause)),
            None => Some(self.not_in_guest("it was called off")),
        };
        Carried {
            in_force: wanted,
            error,
        }
    }

    /// What is done on the host; `in_force` says how far it has come. When nothing irrevocable
    /// was done, all is as it was.
    async fn on_host(
        &self,
        host: &Host,
        machine: Option<&dyn Machine>,
        in_force: &mut Settings,
    ) -> Result<(), ApiError> {
        let row = &self.row;
        let online = machine.is_some() && row.engine != EngineKind::Fake;
        if online
            && row.nat != self.was.nat
            && let Err(error) = host.network.set_nat(row.slot, row.nat).await
        {
            *in_force = self.was.clone();
            return Err(self.failed().caused_by(&error));
        }
        in_force.nat = row.nat;
        for (role, from, to) in self.disks() {
            if let Err(error) = self.grow(host, machine, role, to).await {
                // An order whose answer was lost may have been carried out all the same.
                let length = length(host, row, role).await;
                if let Some(length) = length.filter(|length| *length > from) {
                    *in_force.size_mut(role) = length;
                }
                if in_force.disk_size == self.was.disk_size
                    && in_force.system_size == self.was.system_size
                {
                    if online && row.nat != self.was.nat {
                        let undone = host.network.set_nat(row.slot, self.was.nat).await;
                        let _ = undone.inspect_err(|error| {
                            tracing::warn!(%error, "could not undo a change of the network");
                        });
                    }
                    *in_force = self.was.clone();
                }
                return Err(error);
            }
            tracing::info!(disk = role.as_str(), %from, %to, "grown");
            *in_force.size_mut(role) = to;
        }
        if machine.is_none() && row.name != self.was.name {
            let layout = host.layout(&row.id, row.slot);
            let name = row.name.clone();
            let pinned = crate::blocking(move || {
                // A VM that was only created may have none yet.
                match layout.directory.is_dir() {
                    true => identity::host_key(&layout.ssh_host_key, &layout.known_hosts, &name)
                        .map(drop),
                    false => Ok(()),
                }
            })
            .await;
            // The next start writes it anew.
            let _ = pinned.inspect_err(|error| {
                tracing::warn!(%error, "could not pin the host key to the new name");
            });
        }
        Ok(())
    }

    /// The disks that grow, with their sizes.
    fn disks(&self) -> impl Iterator<Item = (DiskRole, ByteSize, ByteSize)> + use<> {
        let (row, was) = (&self.row, &self.was);
        [
            (DiskRole::System, was.system_size, row.system_size),
            (DiskRole::Work, was.disk_size, row.disk_size),
        ]
        .into_iter()
        .filter(|(_, from, to)| from != to)
    }

    async fn grow(
        &self,
        host: &Host,
        machine: Option<&dyn Machine>,
        role: DiskRole,
        size: ByteSize,
    ) -> Result<(), ApiError> {
        let layout = host.layout(&self.row.id, self.row.slot);
        let disk = plan::own_disk(&layout, role);
        match machine {
            Some(machine) => machine
                .grow_disk(&disk, size)
                .await
                .map_err(|error| self.failed().caused_by(&error)),
            None => crate::blocking(move || files::grow(&disk.path, size))
                .await
                .map_err(|error| {
                    let mut api = self.failed().caused_by(&error);
                    api.hint = error.hint();
                    api
                }),
        }
    }

    /// Tells the guest its new name and what room it has.
    async fn in_guest(&self, host: &Host, guest: &Guest) -> Result<(), String> {
        let row = &self.row;
        if row.name != self.was.name {
            let artifacts = Artifacts::of_existing(host, row);
            start::configure(host, row, &artifacts, guest)
                .await
                .map_err(|error| with_causes(&error))?;
        }
        // The fake engine's guest has no disks.
        if row.engine != EngineKind::Fake {
            for (role, _, size) in self.disks() {
                guest
                    .grow(Grow { role, size })
                    .await
                    .map_err(|error| with_causes(&error))?;
            }
        }
        Ok(())
    }

    fn failed(&self) -> ApiError {
        let message = format!("could not change VM `{}`", self.was.name);
        ApiError::new(ErrorKind::Failed, message)
    }

    fn not_in_guest(&self, cause: &str) -> ApiError {
        let name = &self.row.name;
        let message = format!("VM `{name}` is changed, but its guest does not know yet");
        let mut error = ApiError::new(ErrorKind::Unavailable, message).with_hint(format!(
            "it takes effect at the next start: `banger vm restart {name}`"
        ));
        error.causes.push(cause.to_owned());
        error
    }
}

/// Makes a machine that was taken over what its row says, as far as the row can be right: a
/// disk's file that is larger stays so, and the row learns of it. The guest gets the room at
/// its next start.
pub(super) async fn catch_up(host: &Host, row: &VmRow, machine: &dyn Machine) -> Carried {
    let mut in_force = Settings::of(row);
    if row.engine != EngineKind::Fake
        && let Err(error) = host.network.set_nat(row.slot, row.nat).await
    {
        tracing::error!(%error, nat = row.nat, "could not see to the way outside");
    }
    let layout = host.layout(&row.id, row.slot);
    for role in [DiskRole::System, DiskRole::Work] {
        let size = in_force.size_mut(role);
        let Some(length) = length(host, row, role).await else {
            continue;
        };
        if length > *size {
            tracing::warn!(disk = role.as_str(), %length, %size, "larger than its row says");
            *size = length;
        } else if length < *size {
            match machine
                .grow_disk(&plan::own_disk(&layout, role), *size)
                .await
            {
                Ok(()) => tracing::info!(disk = role.as_str(), %length, %size, "grown at last"),
                Err(error) => {
                    tracing::error!(%error, disk = role.as_str(), "could not make it larger");
                }
            }
        }
    }
    Carried {
        in_force,
        error: None,
    }
}

/// The length of the file of one of the VM's own disks.
async fn length(host: &Host, row: &VmRow, role: DiskRole) -> Option<ByteSize> {
    let disk = plan::own_disk(&host.layout(&row.id, row.slot), role);
    crate::blocking(move || files::length(&disk.path)).await
}

fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let words: Vec<String> = causes.map(ToString::to_string).collect();
    words.join(": ")
}

//! When the owner does something without having been asked: it deletes a VM whose time is over,
//! stops one that nobody uses, and writes down what could not be written before.

use std::time::Duration;

use banger_proto::api::EngineKind;
use jiff::Timestamp;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::{Happening, Owner};
use crate::guest::Guest;
use crate::vm::lifecycle::Phase;
use crate::vm::task::usage::{Look, is_stale};
use crate::vm::task::{Ask, Behalf, Delete, orders};

/// The longest sleep: timers of tokio have an end, and clocks are set meanwhile.
const SLEEP_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long after a delete that failed the next one of a VM whose time is over.
const EXPIRE_AGAIN: Duration = Duration::from_secs(60);
/// How long after a row could not be written it is written again.
const WRITE_AGAIN: Duration = Duration::from_secs(10);

/// Timers of one VM. Those that are not needed are not armed: an idle daemon sleeps.
#[derive(Debug, Default)]
pub(super) struct Timers {
    /// When the VM was last deleted because its time was over.
    expired: Option<Instant>,
    /// When it is next looked at whether anybody uses it.
    next_look: Option<Instant>,
    /// The last such look since anybody has used it.
    last_look: Option<Look>,
    /// When the row is written again, because the last time has failed.
    write: Option<Instant>,
}

impl Timers {
    /// Whether the row must be written again.
    pub(super) fn must_write(&mut self, must: bool) {
        self.write = must.then(|| Instant::now() + WRITE_AGAIN);
    }

    /// The VM is deleted now because its time is over: again only after a while.
    pub(super) fn deleted_now(&mut self) {
        self.expired = Some(Instant::now());
    }

    /// Whether the row is to be written again.
    pub(super) fn writes(&self) -> bool {
        self.write.is_some()
    }
}

impl Owner {
    /// When the owner must look at its timers; `None`: never. Wall-clock times are looked at
    /// anew whenever the host's clock jumps, as it does when the host has slept.
    pub(super) fn next_timer(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let stale = self.stale_after().map(|limit| {
            let first = now + limit / 2;
            *self.timers.next_look.get_or_insert(first)
        });
        if stale.is_none() {
            self.timers.next_look = None;
            self.timers.last_look = None;
        }
        let times = [self.expiry(now), stale, self.timers.write];
        times.into_iter().flatten().min()
    }

    /// Does what it is time for.
    pub(super) async fn on_time(&mut self) {
        let now = Instant::now();
        if self.expiry(now).is_some_and(|at| at <= now) {
            let reason = match self.timers.expired.replace(now) {
                None => "its time to live is over",
                Some(_) => "it could not be deleted before",
            };
            tracing::info!(reason, "deletes it");
            let delete = Ask::Delete(Delete::Once);
            if let Err(error) = self.decide(delete, Behalf::own(reason)).await {
                tracing::warn!(%error, "could not delete a VM whose time is over");
            }
        }
        if self.timers.next_look.is_some_and(|at| at <= now) {
            self.look_for_use(now);
        }
        if self.timers.write.is_some_and(|at| at <= now) {
            self.write_again().await;
        }
    }

    /// The host's clock has jumped: the guest's has not, or not as far.
    pub(super) fn clock_jumped(&mut self) {
        let status = self.status.borrow();
        let guest = status.guest.clone();
        // One that is paused gets the time when it goes on, one that starts with its link.
        let Some(guest) = guest.filter(|_| status.row.phase == Phase::Running) else {
            return;
        };
        let (host, engine) = (self.host.clone(), status.row.engine);
        let told = async move {
            orders::set_clock(&host, engine, &guest).await;
            Happening::Nothing
        };
        self.background.spawn(told.in_current_span());
    }

    /// Whether its time to live is over: its delete is tried until it is gone.
    pub(super) fn is_expired(&self) -> bool {
        let row = &self.status.borrow().row;
        let end = row.expires_at.as_ref().and_then(|end| end.parse().ok());
        end.is_some_and(|end: Timestamp| end <= Timestamp::now())
    }

    fn expiry(&self, now: Instant) -> Option<Instant> {
        let row = &self.status.borrow().row;
        let end: Timestamp = match row.phase {
            Phase::Deleting => return None,
            _ => row.expires_at.as_ref()?.parse().ok()?,
        };
        let left = end.duration_since(Timestamp::now());
        // A time that is over is a negative duration.
        let left = Duration::try_from(left).unwrap_or_default();
        let at = now + left.min(SLEEP_MAX);
        let again = self.timers.expired.map(|tried| tried + EXPIRE_AGAIN);
        Some(again.map_or(at, |again| at.max(again)))
    }

    /// How long nobody may use the VM before it is stopped; `None` where that does not matter.
    fn stale_after(&self) -> Option<Duration> {
        let limit = self.host.config.auto_stop_stale_after?;
        (self.phase() == Phase::Running).then(|| limit.duration())
    }

    /// Twice in the time that nobody may use it a VM is looked at, so that what its guest does
    /// in the second half is known.
    fn look_for_use(&mut self, now: Instant) {
        let Some(limit) = self.stale_after() else {
            return;
        };
        self.timers.next_look = Some(now + limit / 2);
        let (guest, engine) = {
            let status = self.status.borrow();
            (status.guest.clone(), status.row.engine)
        };
        match (self.usage.idle_since(), guest) {
            (Some(since), _) if now.duration_since(since) < limit / 2 => {
                self.timers.last_look = None;
                self.timers.next_look = Some(since + limit / 2);
            }
            (Some(_), Some(guest)) => {
                let epoch = self.epoch;
                let looked = async move {
                    match cpu_us(&guest, engine).await {
                        Some(cpu_us) => Happening::Looked {
                            epoch,
                            look: Look { at: now, cpu_us },
                        },
                        None => Happening::Nothing,
                    }
                };
                self.background.spawn(looked.in_current_span());
            }
            // It is in use, or nobody can tell what its guest does.
            (None, _) | (_, None) => self.timers.last_look = None,
        }
    }

    /// A look at a VM that nobody used has come to its end.
    pub(super) async fn looked(&mut self, look: Look) {
        let before = self.timers.last_look.replace(look);
        let (Some(limit), Some(since)) = (self.stale_after(), self.usage.idle_since()) else {
            return;
        };
        // What it is busy with, such as a change, someone has asked for.
        if self.job.is_none() && is_stale(before, look, since, limit) {
            let reason = format!("nobody has used it for {}", in_words(since.elapsed()));
            tracing::info!(reason, "stops it");
            if let Err(error) = self.decide(Ask::Stop, Behalf::own(reason)).await {
                tracing::warn!(%error, "could not stop a VM that nobody uses");
            }
        }
    }
}

/// CPU time that the guest has used; `None` if it does not tell.
async fn cpu_us(guest: &Guest, engine: EngineKind) -> Option<u64> {
    if engine == EngineKind::Fake {
        // What its agent could tell is the host's.
        return Some(0);
    }
    let stats = guest.stats().await;
    let stats = stats.inspect_err(|error| tracing::debug!(%error, "the guest tells no stats"));
    stats.ok().map(|stats| stats.cpu_us)
}

/// A length of time as people say it, in the one unit that fits.
fn in_words(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

/// Sleeps until then, or for ever.
pub(super) async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

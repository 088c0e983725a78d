//! When the owner does something without having been asked.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::Owner;
use crate::vm::lifecycle::Phase;
use crate::vm::task::Ask;

/// The longest sleep: timers of tokio have an end, and clocks are set meanwhile.
const SLEEP_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long after a delete that failed the next one of a VM whose time is over.
const EXPIRE_AGAIN: Duration = Duration::from_secs(60);

/// Timers of one VM. Those that are not needed are not armed: an idle daemon sleeps.
#[derive(Debug, Default)]
pub(super) struct Timers {
    /// When the VM was last deleted because its time was over.
    expired: Option<Instant>,
}

impl Owner {
    /// When the owner must look at its timers; `None`: never. Wall-clock times are looked at
    /// anew whenever the host's clock jumps, as it does when the host has slept.
    pub(super) fn next_timer(&self) -> Option<Instant> {
        self.expiry()
    }

    /// Does what it is time for.
    pub(super) async fn on_time(&mut self) {
        if self.expiry().is_some_and(|at| at <= Instant::now()) {
            self.timers.expired = Some(Instant::now());
            tracing::info!("its time to live is over");
            if let Err(error) = self.decide(Ask::Delete, None).await {
                tracing::warn!(%error, "could not delete a VM whose time is over");
            }
        }
    }

    fn expiry(&self) -> Option<Instant> {
        let row = &self.status.borrow().row;
        let end: Timestamp = match row.phase {
            Phase::Deleting => return None,
            _ => row.expires_at.as_ref()?.parse().ok()?,
        };
        let left = end.duration_since(Timestamp::now());
        // A time that is over is a negative duration.
        let left = Duration::try_from(left).unwrap_or_default();
        let at = Instant::now() + left.min(SLEEP_MAX);
        let again = self.timers.expired.map(|tried| tried + EXPIRE_AGAIN);
        Some(again.map_or(at, |again| at.max(again)))
    }
}

/// Sleeps until then, or for ever.
pub(super) async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

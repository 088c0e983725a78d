//! When the listening sockets may have changed.
//!
//! In a guest the kernel says so ([`Trace`]), and an idle guest stays idle. Where it does not,
//! because it was built without tracing or because the machine is not the agent's, a look is
//! taken once a second for as long as somebody watches. So it is at first in a guest too: to
//! ask the kernel takes a while without hardware virtualisation, which a VM that lives for one
//! short command shall not pay.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::debug;

use super::trace::Trace;
use crate::agent::{Agent, Place};

/// Between looks where nobody says when to look.
const INTERVAL: Duration = Duration::from_secs(1);
/// From a word of the kernel to the look: a burst of them is one, and the kernel speaks a moment
/// before the socket is to be found.
const SETTLE: Duration = Duration::from_millis(20);
/// To a second look, should the moment have been longer.
const AGAIN: Duration = Duration::from_secs(1);

/// Tells when to look.
pub(super) struct Changes {
    source: Source,
    looked_at: watch::Receiver<()>,
}

enum Source {
    /// The kernel is yet to be asked.
    Unasked,
    /// It is being asked.
    Asking(JoinHandle<Option<Trace>>),
    /// It tells. A second look may be due.
    Kernel(Trace, Option<Instant>),
    /// Nobody does.
    Clock,
}

impl Changes {
    /// Begins to watch; what has been there before is the caller's to look at.
    pub(super) fn watch(agent: &Arc<Agent>) -> Self {
        Self {
            source: match agent.place {
                Place::Guest(_) => Source::Unasked,
                Place::Process => Source::Clock,
            },
            looked_at: agent.watch_looks_at_ports(),
        }
    }

    /// Returns when they may have changed. Cancel-safe.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            // The sender is the agent's, and outlives every watch.
            Ok(()) = self.looked_at.changed() => {}
            () = self.source.hint() => {}
        }
    }
}

impl Source {
    async fn hint(&mut self) {
        match self {
            Self::Clock => sleep(INTERVAL).await,
            Self::Unasked => {
                sleep(INTERVAL).await;
                *self = Self::Asking(spawn_blocking(ask_kernel));
            }
            Self::Asking(asking) => {
                let trace = asking.await.ok().flatten();
                *self = trace.map_or(Self::Clock, |trace| Self::Kernel(trace, None));
            }
            Self::Kernel(trace, again) => {
                let second_look = async {
                    match *again {
                        Some(at) => sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    spoke = trace.spoke() => match spoke {
                        Ok(()) => {
                            *again = Some(Instant::now() + AGAIN);
                            sleep(SETTLE).await;
                        }
                        Err(error) => {
                            debug!(%error, "the kernel tells of listeners no longer");
                            *self = Self::Clock;
                        }
                    },
                    () = second_look => *again = None,
                }
            }
        }
    }
}

fn ask_kernel() -> Option<Trace> {
    let trace = Trace::open();
    trace
        .inspect_err(|error| debug!(%error, "the kernel does not tell of listeners"))
        .ok()
}

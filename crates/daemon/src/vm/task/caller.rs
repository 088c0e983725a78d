//! What those need of a VM who bring connections to it: its status, its guest, and to say that
//! it is in use. They do not keep its owner alive.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::usage::{Usage, Use};
use super::{RequestError, Status};
use crate::guest::Guest;
use crate::vm::lifecycle::{self, Request, Verdict};

/// How long a request waits for a link that is being made anew.
pub(super) const RELINK_LIMIT: Duration = Duration::from_secs(15);

/// A view of a VM, from which its guest is reached.
#[derive(Clone, Debug)]
pub struct Caller {
    pub(super) status: watch::Receiver<Status>,
    pub(super) usage: Arc<Usage>,
}

impl Caller {
    /// Looks at the status without copying it.
    pub fn look<T>(&self, f: impl FnOnce(&Status) -> T) -> T {
        f(&self.status.borrow())
    }

    /// The first status for which this is true; `None` if the daemon ends before. Cancel-safe.
    pub async fn sees(&self, is: impl FnMut(&Status) -> bool) -> Option<Status> {
        let mut status = self.status.clone();
        let seen = status.wait_for(is).await;
        seen.ok().map(|seen| seen.clone())
    }

    /// Someone's connection leads to the VM until the result is dropped.
    pub fn connected(&self) -> Use {
        self.usage.connected()
    }

    /// The link to the running guest; waits a bounded time for one that is being mended.
    ///
    /// # Errors
    /// The VM does not run, or its link is not mended in time.
    pub async fn guest(&self) -> Result<Guest, RequestError> {
        let status = self.link_settled().await?;
        if status.gone {
            return Err(RequestError::Gone);
        }
        match lifecycle::judge(status.row.phase, Request::Attach) {
            Verdict::Refuse(refusal) => Err(refusal.into()),
            _ => status.guest.clone().ok_or(RequestError::LinkDown),
        }
    }

    /// The VM as it is once its guest can be reached, or need not be; waits a bounded time.
    pub(super) async fn link_settled(&self) -> Result<Status, RequestError> {
        let settled = self.sees(|status| {
            let judged = lifecycle::judge(status.row.phase, Request::Attach);
            status.gone || judged != Verdict::Allow || status.guest.is_some()
        });
        match tokio::time::timeout(RELINK_LIMIT, settled).await {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err(RequestError::Gone),
            Err(_) => Err(RequestError::LinkDown),
        }
    }
}

//! Who uses a VM, and since when nobody has.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;

/// The share of one CPU below which a guest counts as calm, in percent.
const CALM_PERCENT: u128 = 2;

/// Use of one VM while this daemon runs. Times are monotonic: while the host sleeps nobody can
/// use a VM, and that is not held against it.
#[derive(Debug)]
pub(super) struct Usage(watch::Sender<Inner>);

#[derive(Debug)]
struct Inner {
    /// Streams that are open.
    open: usize,
    /// Connections to its ports that are open.
    connected: usize,
    /// When someone last used it, or else when this daemon got to know it.
    last: Instant,
    /// The same as people read it; `None` if nobody has used it yet.
    last_at: Option<Timestamp>,
}

impl Default for Usage {
    fn default() -> Self {
        Self(watch::Sender::new(Inner {
            open: 0,
            connected: 0,
            last: Instant::now(),
            last_at: None,
        }))
    }
}

impl Usage {
    /// Someone uses it at this moment.
    pub(super) fn touch(&self) {
        self.0.send_modify(Inner::touch);
    }

    /// Someone uses it until the result is dropped.
    pub(super) fn hold(self: &Arc<Self>) -> Use {
        self.use_by(Kind::Stream)
    }

    /// A connection to one of its ports is open until the result is dropped. It is no work that
    /// the daemon's end is put off for: programs that mean to go on connect again.
    pub(super) fn connected(self: &Arc<Self>) -> Use {
        self.use_by(Kind::Connection)
    }

    fn use_by(self: &Arc<Self>, kind: Kind) -> Use {
        self.0.send_modify(|inner| {
            *inner.count(kind) += 1;
            inner.touch();
        });
        Use(Arc::clone(self), kind)
    }

    /// How many streams are open.
    pub(super) fn open(&self) -> usize {
        self.0.borrow().open
    }

    /// Returns when no stream is open. Cancel-safe.
    pub(super) async fn unused(&self) {
        let mut inner = self.0.subscribe();
        let unused = inner.wait_for(|inner| inner.open == 0).await;
        drop(unused.expect("the sender is borrowed"));
    }

    /// Since when nobody uses it; `None` while someone does.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let inner = self.0.borrow();
        inner.is_idle().then_some(inner.last)
    }

    /// When someone last used it.
    pub(super) fn last_at(&self) -> Option<Timestamp> {
        let inner = self.0.borrow();
        match inner.is_idle() {
            true => inner.last_at,
            false => Some(Timestamp::now()),
        }
    }
}

impl Inner {
    fn is_idle(&self) -> bool {
        self.open + self.connected == 0
    }

    fn count(&mut self, kind: Kind) -> &mut usize {
        match kind {
            Kind::Stream => &mut self.open,
            Kind::Connection => &mut self.connected,
        }
    }

    fn touch(&mut self) {
        self.last = Instant::now();
        self.last_at = Some(Timestamp::now());
    }
}

/// By what a VM is used.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// A command, a shell or a copy.
    Stream,
    /// A connection to one of its ports.
    Connection,
}

/// An open stream or connection to a VM: while there is one, the VM is in use.
#[derive(Debug)]
pub struct Use(Arc<Usage>, Kind);

impl Drop for Use {
    fn drop(&mut self) {
        self.0.0.send_modify(|inner| {
            *inner.count(self.1) -= 1;
            inner.touch();
        });
    }
}

/// A look at a guest that nobody uses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// When it was taken.
    pub(super) at: Instant,
    /// CPU time that the guest had used, in microseconds.
    pub(super) cpu_us: u64,
}

/// Whether a VM that nobody has used since `idle_since` is to be stopped: that is `limit` ago,
/// and its guest was calm between the last two looks.
pub(super) fn is_stale(
    before: Option<Look>,
    now: Look,
    idle_since: Instant,
    limit: Duration,
) -> bool {
    let Some(before) = before.filter(|before| before.at >= idle_since) else {
        return false;
    };
    let passed = now.at.duration_since(before.at).as_micros();
    // A counter that has gone back is of another boot of the guest.
    let Some(used) = now.cpu_us.checked_sub(before.cpu_us) else {
        return false;
    };
    let calm = u128::from(used) * 100 < passed * CALM_PERCENT;
    calm && now.at.duration_since(idle_since) >= limit
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_vm_is_in_use_while_a_stream_is_open_and_idle_from_its_end_on() {
        let usage = Arc::new(Usage::default());
        let known = usage.idle_since().unwrap();
        assert_eq!(usage.last_at(), None);
        let (first, second) = (usage.hold(), usage.hold());
        assert_eq!(usage.idle_since(), None);
        drop(first);
        assert_eq!(usage.idle_since(), None);
        let before = Instant::now();
        drop(second);
        let idle = usage.idle_since().unwrap();
        assert!(idle >= before && before > known);
        assert!(usage.last_at().is_some());
        let connection = usage.connected();
        assert_eq!((usage.idle_since(), usage.open()), (None, 0));
        drop(connection);
        assert!(usage.idle_since().is_some());
    }

    #[tokio::test]
    async fn the_end_of_the_last_stream_is_waited_for() {
        let usage = Arc::new(Usage::default());
        usage.unused().await;
        let (first, second) = (usage.hold(), usage.hold());
        let mut unused = pin!(usage.unused());
        drop(first);
        assert_eq!(unused.as_mut().now_or_never(), None);
        drop(second);
        unused.await;
    }

    #[test]
    fn only_a_calm_guest_that_nobody_used_for_long_is_stale() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let limit = 100 * second;
        let look = |seconds: u32, cpu_us| Look {
            at: start + seconds * second,
            cpu_us,
        };
        let stale = |before, now, since: u32| is_stale(before, now, start + since * second, limit);
        let before = Some(look(50, 7_000_000));
        // Less than 2 % of the 50 s between the looks.
        assert!(stale(before, look(100, 7_990_000), 0));
        assert!(!stale(before, look(100, 8_000_000), 0), "it worked");
        assert!(!stale(before, look(99, 7_000_000), 0), "it is too early");
        assert!(!stale(None, look(100, 0), 0), "nothing is known of it");
        assert!(
            !stale(before, look(160, 7_000_000), 60),
            "it was used since"
        );
        assert!(!stale(before, look(100, 0), 0), "it has booted since");
    }
}

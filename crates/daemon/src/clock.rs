//! Tells when the host's clock has jumped: it was set, or the host has slept. Guests do not
//! notice either, and times to live are wall-clock times.

use std::io;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::Interest;
use tokio::sync::watch;

use crate::descriptor::watched;

/// When a timer that is never to be due is due: in the year 2242, in seconds since 1970. The
/// kernel counts to 2262.
const NEVER: i64 = 1 << 33;

/// The host's clock. Whoever cares follows its jumps.
#[derive(Debug)]
pub struct Clock {
    jumps: watch::Sender<u64>,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            jumps: watch::Sender::new(0),
        }
    }
}

impl Clock {
    /// Changes with every jump from now on.
    pub fn jumps(&self) -> watch::Receiver<u64> {
        self.jumps.subscribe()
    }

    /// Has everyone who follows know of a jump.
    pub fn tell(&self) {
        self.jumps.send_modify(|jumps| *jumps += 1);
    }

    /// Tells of jumps, for ever. Wakes for nothing else.
    ///
    /// # Errors
    /// The kernel has no such timer.
    pub async fn watch(&self) -> io::Result<()> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Realtime, flags)?;
        let timer = watched(timer, Interest::READABLE)?;
        loop {
            // A timer that is never due, and called off by any discontinuous change of the
            // clock (timerfd_create(2), `TFD_TIMER_CANCEL_ON_SET`); the end of a sleep is one.
            let never = Itimerspec {
                it_interval: Timespec {
                    tv_sec: 0,
                    tv_nsec: 0,
                },
                it_value: Timespec {
                    tv_sec: NEVER,
                    tv_nsec: 0,
                },
            };
            let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
            match timerfd_settime(timer.get_ref(), flags, &never) {
                // It was set between two turns: that is told as well.
                Ok(_) | Err(rustix::io::Errno::CANCELED) => {}
                Err(error) => return Err(error.into()),
            }
            let mut ready = timer.readable().await?;
            let mut due = [0; 8];
            match rustix::io::read(timer.get_ref(), &mut due) {
                Err(rustix::io::Errno::AGAIN) => {
                    ready.clear_ready();
                    continue;
                }
                Ok(_) | Err(rustix::io::Errno::CANCELED) => {}
                Err(error) => return Err(error.into()),
            }
            ready.clear_ready();
            tracing::info!("the host's clock has jumped");
            self.tell();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn never_is_not_soon() {
        let never = jiff::Timestamp::from_second(NEVER).unwrap();
        assert!(never > "2200-01-01T00:00:00Z".parse().unwrap(), "{never}");
    }

    #[tokio::test]
    async fn a_clock_that_runs_is_no_jump() {
        let clock = Clock::default();
        let mut jumps = clock.jumps();
        let quiet = tokio::time::timeout(Duration::from_millis(50), async {
            tokio::select! {
                ended = clock.watch() => panic!("it goes on: {ended:?}"),
                jumped = jumps.changed() => panic!("nobody has set it: {jumped:?}"),
            }
        });
        assert!(quiet.await.is_err());
    }

    /// Sets the host's clock to what it shows, which is a jump all the same: only where that is
    /// nobody else's clock, such as in a VM.
    #[tokio::test]
    #[ignore = "sets the host's clock, and needs root"]
    async fn a_clock_that_is_set_is_a_jump() {
        let clock = Clock::default();
        let mut jumps = clock.jumps();
        let told = async {
            for _ in 0..3 {
                let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
                rustix::time::clock_settime(rustix::time::ClockId::Realtime, now).unwrap();
                jumps.changed().await.unwrap();
            }
        };
        tokio::select! {
            ended = clock.watch() => panic!("it goes on: {ended:?}"),
            told = tokio::time::timeout(Duration::from_secs(5), told) => told.unwrap(),
        }
    }
}

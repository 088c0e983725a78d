//! One piece of work that several callers wait for.
//!
//! The first caller starts it; those that ask for the same thing meanwhile join. A caller
//! that goes away leaves the others alone. When the last one goes, the work is told to stop
//! by its [`CancellationToken`]; it is not torn down in the middle, so it can clean up.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use banger_proto::api::Progress;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::progress::Reporter;

type Outcome<T, E> = Option<Result<T, Arc<E>>>;

/// The work that is going on, by key.
pub(crate) struct Flights<K, T, E> {
    going: Mutex<HashMap<K, Weak<Flight<T, E>>>>,
}

struct Flight<T, E> {
    outcome: watch::Receiver<Outcome<T, E>>,
    listeners: Arc<Listeners>,
    cancel: CancellationToken,
}

impl<T, E> Drop for Flight<T, E> {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// How a flight ended for one who waited.
pub(crate) enum FlightError<E> {
    /// The work failed.
    Failed(Arc<E>),
    /// The work went away without an outcome: it panicked, or the runtime stops.
    Lost,
}

impl<K, T, E> Flights<K, T, E>
where
    K: Clone + Eq + Hash,
    T: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    pub(crate) fn new() -> Self {
        Self {
            going: Mutex::new(HashMap::new()),
        }
    }

    /// Whether work goes on whose key `is_it`.
    pub(crate) fn is_going(&self, is_it: impl Fn(&K) -> bool) -> bool {
        lock(&self.going)
            .iter()
            .any(|(key, flight)| is_it(key) && flight.strong_count() > 0)
    }

    /// Waits for the work called `key`; `start` begins it if it is not going on.
    pub(crate) async fn join<F>(
        &self,
        key: &K,
        progress: &Reporter,
        start: impl FnOnce(Reporter, CancellationToken) -> F,
    ) -> Result<T, FlightError<E>>
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        let flight = self.board(key, start);
        let _listening = flight.listeners.add(progress.clone());
        let mut outcome = flight.outcome.clone();
        let outcome = outcome
            .wait_for(Option::is_some)
            .await
            .map_err(|_| FlightError::Lost)?
            .clone();
        match outcome {
            Some(Ok(value)) => Ok(value),
            Some(Err(error)) => Err(FlightError::Failed(error)),
            None => Err(FlightError::Lost),
        }
    }

    fn board<F>(
        &self,
        key: &K,
        start: impl FnOnce(Reporter, CancellationToken) -> F,
    ) -> Arc<Flight<T, E>>
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        let mut going = lock(&self.going);
        going.retain(|_, flight| flight.strong_count() > 0);
        if let Some(flight) = going.get(key).and_then(Weak::upgrade) {
            return flight;
        }
        let (sender, outcome) = watch::channel(None);
        let listeners = Arc::new(Listeners::default());
        let cancel = CancellationToken::new();
        let reporter = {
            let listeners = Arc::clone(&listeners);
            Reporter::new(move |progress| listeners.tell(&progress))
        };
        let work = start(reporter, cancel.clone());
        tokio::spawn(async move {
            let outcome = work.await.map_err(Arc::new);
            // Nobody waits any more: then nobody wants to know.
            let _ = sender.send(Some(outcome));
        });
        let flight = Arc::new(Flight {
            outcome,
            listeners,
            cancel,
        });
        going.insert(key.clone(), Arc::downgrade(&flight));
        flight
    }
}

/// Those who want to know how far the work is.
#[derive(Default)]
struct Listeners {
    state: Mutex<ListenerState>,
}

#[derive(Default)]
struct ListenerState {
    next: u64,
    reporters: HashMap<u64, Reporter>,
    /// The last report, so that one who joins late sees something at once.
    last: Option<Progress>,
}

impl Listeners {
    fn add(self: &Arc<Self>, reporter: Reporter) -> Listening {
        let mut state = lock(&self.state);
        if let Some(progress) = &state.last {
            reporter.report(progress.clone());
        }
        let number = state.next;
        state.next += 1;
        state.reporters.insert(number, reporter);
        Listening {
            listeners: Arc::clone(self),
            number,
        }
    }

    fn tell(&self, progress: &Progress) {
        let mut state = lock(&self.state);
        state.last = Some(progress.clone());
        for reporter in state.reporters.values() {
            reporter.report(progress.clone());
        }
    }
}

/// Takes a listener off the list when it goes.
struct Listening {
    listeners: Arc<Listeners>,
    number: u64,
}

impl Drop for Listening {
    fn drop(&mut self) {
        lock(&self.listeners.state).reporters.remove(&self.number);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::{Notify, oneshot};

    type Tested = Flights<&'static str, u32, String>;

    #[tokio::test]
    async fn callers_share_one_piece_of_work_and_see_its_progress() {
        let flights = Arc::new(Tested::new());
        let starts = Arc::new(AtomicU32::new(0));
        let gate = Arc::new(Notify::new());
        let told = Arc::new(AtomicU32::new(0));
        let mut callers = Vec::new();
        for _ in 0..3 {
            let (flights, starts, gate, told) =
                (flights.clone(), starts.clone(), gate.clone(), told.clone());
            callers.push(tokio::spawn(async move {
                let reporter = Reporter::new(move |_| {
                    told.fetch_add(1, Ordering::SeqCst);
                });
                flights
                    .join(&"a", &reporter, |reporter, _| async move {
                        starts.fetch_add(1, Ordering::SeqCst);
                        gate.notified().await;
                        reporter.bytes("x", 1, Some(1));
                        Ok(7)
                    })
                    .await
                    .ok()
            }));
        }
        while flights
            .going
            .lock()
            .unwrap()
            .get("a")
            .is_none_or(|flight| flight.strong_count() < 3)
        {
            tokio::task::yield_now().await;
        }
        gate.notify_one();
        for caller in callers {
            assert_eq!(caller.await.unwrap(), Some(7));
        }
        assert_eq!(starts.load(Ordering::SeqCst), 1);
        assert_eq!(told.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn the_work_stops_when_the_last_caller_goes_and_not_before() {
        let flights = Arc::new(Tested::new());
        let (stopped, was_stopped) = oneshot::channel();
        let (started, has_started) = oneshot::channel();
        let first = {
            let flights = flights.clone();
            tokio::spawn(async move {
                let _ = flights
                    .join(&"a", &Reporter::silent(), |_, cancel| async move {
                        started.send(()).unwrap();
                        cancel.cancelled().await;
                        stopped.send(()).unwrap();
                        Err("called off".to_owned())
                    })
                    .await;
            })
        };
        has_started.await.unwrap();
        let second = {
            let flights = flights.clone();
            tokio::spawn(async move {
                let _ = flights
                    .join(&"a", &Reporter::silent(), |_, _| async { Ok(1) })
                    .await;
            })
        };
        let waiting = || {
            flights
                .going
                .lock()
                .unwrap()
                .get("a")
                .map_or(0, Weak::strong_count)
        };
        while waiting() < 2 {
            tokio::task::yield_now().await;
        }
        first.abort();
        let _ = first.await;
        assert_eq!(waiting(), 1);
        assert!(!second.is_finished());
        second.abort();
        was_stopped.await.unwrap();
    }

    #[tokio::test]
    async fn a_failure_reaches_every_caller_and_the_next_one_starts_anew() {
        let flights = Tested::new();
        let reporter = Reporter::silent();
        let join =
            |outcome: Result<u32, String>| flights.join(&"a", &reporter, |_, _| async { outcome });
        let Err(FlightError::Failed(error)) = join(Err("no".to_owned())).await else {
            panic!("no error")
        };
        assert_eq!(*error, "no");
        assert_eq!(join(Ok(3)).await.ok(), Some(3));
    }
}

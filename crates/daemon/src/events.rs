//! What happens in this daemon, kept for a while and told to whoever follows.
//!
//! An event's id is `<run>-<number>`. The run tells daemons apart, so that a follower who comes
//! back with the id of an earlier daemon's event is told that it may have missed some.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use banger_proto::api::{Event, Happened};
use tokio::sync::watch;

/// How many events are remembered.
const REMEMBERED: usize = 1024;

/// All events of this daemon. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Events {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    node: String,
    run: String,
    ring: Mutex<VecDeque<Event>>,
    /// The number of the newest event; followers wait on it.
    newest: watch::Sender<u64>,
}

impl Events {
    /// No events yet; `node` names this host in each.
    pub fn new(node: &str) -> Self {
        Self {
            shared: Arc::new(Shared {
                node: node.to_owned(),
                run: format!("{:x}", jiff::Timestamp::now().as_millisecond()),
                ring: Mutex::default(),
                newest: watch::Sender::new(0),
            }),
        }
    }

    /// Tells what has happened.
    pub fn tell(&self, what: Happened) {
        let shared = &*self.shared;
        let mut ring = shared.ring();
        shared.newest.send_modify(|newest| {
            *newest += 1;
            ring.push_back(shared.event(*newest, what));
        });
        if ring.len() > REMEMBERED {
            ring.pop_front();
        }
    }

    /// Follows what comes from now on.
    pub fn follow_new(&self) -> Follower {
        let mut newest = self.shared.newest.subscribe();
        let seen = *newest.borrow_and_update();
        Follower {
            shared: Arc::clone(&self.shared),
            newest,
            seen,
            missed: false,
            until: None,
        }
    }

    /// Follows from the event behind `last` on, or from the oldest that is remembered.
    pub fn follow(&self, last: Option<&str>) -> Follower {
        let mut newest = self.shared.newest.subscribe();
        let known = *newest.borrow_and_update();
        let (seen, missed) = match last {
            None => (0, false),
            Some(last) => match self.shared.number(last).filter(|number| *number <= known) {
                Some(number) => (number, false),
                None => (0, true),
            },
        };
        Follower {
            shared: Arc::clone(&self.shared),
            newest,
            seen,
            missed,
            until: None,
        }
    }
}

impl Shared {
    fn event(&self, number: u64, what: Happened) -> Event {
        Event {
            id: format!("{}-{number}", self.run),
            at: crate::now(),
            node: self.node.clone(),
            what,
        }
    }

    /// The number in an id of this run.
    fn number(&self, id: &str) -> Option<u64> {
        let (run, number) = id.split_once('-')?;
        (run == self.run).then(|| number.parse().ok())?
    }

    fn ring(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.ring.lock().expect("no holder of this lock panics")
    }
}

/// One follower's place among the events.
#[derive(Debug)]
pub struct Follower {
    shared: Arc<Shared>,
    newest: watch::Receiver<u64>,
    /// The number of the last event that was given out.
    seen: u64,
    missed: bool,
    until: Option<u64>,
}

impl Follower {
    /// Ends with the newest event there is now instead of waiting for more.
    #[must_use]
    pub fn up_to_now(mut self) -> Self {
        self.until = Some(*self.newest.borrow());
        self
    }

    /// The next event; `None` at the end. Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        let seen = self.seen;
        if !self.missed {
            if self.until.is_some_and(|until| seen >= until) {
                return None;
            }
            // The daemon that tells them has gone: there are no more.
            self.newest.wait_for(|newest| *newest > seen).await.ok()?;
        }
        let ring = self.shared.ring();
        let newest = *self.newest.borrow();
        let oldest = newest - ring.len() as u64 + 1;
        if std::mem::take(&mut self.missed) || (seen > 0 && seen + 1 < oldest) {
            self.seen = oldest - 1;
            // It has the number before the oldest one, so that a follower goes on behind it.
            return Some(self.shared.event(self.seen, Happened::Missed));
        }
        let index = usize::try_from((seen + 1).max(oldest) - oldest).expect("it is in the ring");
        let event = ring.get(index)?.clone();
        self.seen = oldest + index as u64;
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_proto::id::VmId;

    fn changed(name: &str) -> Happened {
        Happened::VmChanged {
            vm: VmId::new(),
            vm_name: name.parse().unwrap(),
        }
    }

    fn name(event: &Event) -> &str {
        match &event.what {
            Happened::VmChanged { vm_name, .. } => vm_name.as_str(),
            Happened::Missed => "missed",
            other => panic!("{other:?}"),
        }
    }

    async fn all(follower: Follower) -> Vec<Event> {
        let mut follower = follower.up_to_now();
        let mut events = Vec::new();
        while let Some(event) = follower.next().await {
            events.push(event);
        }
        events
    }

    #[tokio::test]
    async fn a_follower_sees_what_was_and_what_comes() {
        let events = Events::new("host");
        events.tell(changed("a"));
        let mut follower = events.follow(None);
        assert_eq!(name(&follower.next().await.unwrap()), "a");
        let (event, ()) = tokio::join!(follower.next(), async { events.tell(changed("b")) });
        assert_eq!(name(&event.unwrap()), "b");
    }

    #[tokio::test]
    async fn who_wants_only_what_comes_sees_only_that() {
        let events = Events::new("host");
        let mut from_the_start = events.follow_new();
        events.tell(changed("a"));
        let mut late = events.follow_new();
        events.tell(changed("b"));
        assert_eq!(name(&from_the_start.next().await.unwrap()), "a");
        assert_eq!(name(&from_the_start.next().await.unwrap()), "b");
        assert_eq!(name(&late.next().await.unwrap()), "b");
    }

    #[tokio::test]
    async fn a_follower_goes_on_where_it_was() {
        let events = Events::new("host");
        for vm in ["a", "b", "c"] {
            events.tell(changed(vm));
        }
        let seen = all(events.follow(None)).await;
        let rest = all(events.follow(Some(&seen[0].id))).await;
        assert_eq!(rest, seen[1..]);
        assert!(all(events.follow(Some(&seen[2].id))).await.is_empty());
    }

    #[tokio::test]
    async fn whoever_has_missed_some_is_told() {
        let events = Events::new("host");
        events.tell(changed("first"));
        let first = all(events.follow(None)).await[0].id.clone();
        for _ in 0..REMEMBERED {
            events.tell(changed("more"));
        }
        // Nothing was lost behind the first yet.
        assert_eq!(all(events.follow(Some(&first))).await.len(), REMEMBERED);
        events.tell(changed("last"));
        let rest = all(events.follow(Some(&first))).await;
        assert_eq!((name(&rest[0]), rest.len()), ("missed", REMEMBERED + 1));
        for unknown in ["0-1", "rubbish", ""] {
            assert_eq!(name(&all(events.follow(Some(unknown))).await[0]), "missed");
        }
    }
}

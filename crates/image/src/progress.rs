//! How far a long step is, told to whoever asked for it, and not too often.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use banger_proto::api::{Progress, ProgressUnit};

/// Least time between two reports of the same step. The first and the last always go out.
const INTERVAL: Duration = Duration::from_millis(100);

/// Takes the progress of long steps. Cheap to clone; callable from any thread.
#[derive(Clone)]
pub struct Reporter {
    shared: Arc<Shared>,
}

struct Shared {
    sink: Box<dyn Fn(Progress) + Send + Sync>,
    last: Mutex<HashMap<String, Instant>>,
}

impl Reporter {
    /// A reporter that calls `sink`, at most ten times a second for each step. The sink must
    /// not block: it is called from where the work is done.
    pub fn new(sink: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        Self {
            shared: Arc::new(Shared {
                sink: Box::new(sink),
                last: Mutex::new(HashMap::new()),
            }),
        }
    }

    /// A reporter that nobody listens to.
    pub fn silent() -> Self {
        Self::new(|_| {})
    }

    /// Reports `progress`, unless the same step was reported a moment ago and is not at its
    /// end.
    pub fn report(&self, progress: Progress) {
        let at_end = progress.total == Some(progress.done);
        let now = Instant::now();
        {
            let mut last = self.shared.last.lock().expect("no panic while it is held");
            match last.get(&progress.what) {
                Some(before) if !at_end && now.duration_since(*before) < INTERVAL => return,
                _ => last.insert(progress.what.clone(), now),
            };
        }
        (self.shared.sink)(progress);
    }

    /// Reports that `done` of `total` bytes of `what` are done.
    pub fn bytes(&self, what: &str, done: u64, total: Option<u64>) {
        self.report(Progress {
            what: what.to_owned(),
            done,
            total,
            unit: ProgressUnit::Bytes,
        });
    }

    /// Reports that `done` of `total` items of `what` are done.
    pub fn items(&self, what: &str, done: u64, total: Option<u64>) {
        self.report(Progress {
            what: what.to_owned(),
            done,
            total,
            unit: ProgressUnit::Items,
        });
    }
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reporter")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_the_last_report_of_each_step_go_out() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let reporter = Reporter::new(move |progress: Progress| {
            sink.lock().unwrap().push((progress.what, progress.done));
        });
        for done in 0..=1000 {
            reporter.bytes("a", done, Some(1000));
        }
        reporter.items("b", 7, None);
        let seen = seen.lock().unwrap();
        assert_eq!(seen.first(), Some(&("a".to_owned(), 0)));
        assert!(seen.contains(&("a".to_owned(), 1000)));
        assert_eq!(seen.last(), Some(&("b".to_owned(), 7)));
        assert!(seen.len() < 100, "{} reports", seen.len());
    }
}

//! Pulls that go on. They are no VM's, so that they end here when the daemon does.

use std::sync::{Mutex, MutexGuard};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// All pulls.
#[derive(Debug, Default)]
pub struct Pulls {
    going: Mutex<JoinSet<()>>,
    ends: CancellationToken,
}

impl Pulls {
    /// Begins a pull, which is made by a function of what calls it off with all others.
    pub fn begin<F>(&self, pull: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let pull = pull(self.ends.clone());
        let mut going = self.going();
        while going.try_join_next().is_some() {}
        going.spawn(pull);
    }

    /// Calls all pulls off; returns when they have ended.
    pub async fn end(&self) {
        self.ends.cancel();
        let going = std::mem::take(&mut *self.going());
        going.join_all().await;
    }

    fn going(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.going.lock().expect("no holder of this lock panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[tokio::test]
    async fn pulls_have_ended_when_all_are_called_off() {
        let pulls = Pulls::default();
        let cleaned_up = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&cleaned_up);
        pulls.begin(|ends| async move {
            ends.cancelled().await;
            tokio::task::yield_now().await;
            told.store(true, Ordering::Relaxed);
        });
        pulls.end().await;
        assert!(cleaned_up.load(Ordering::Relaxed));
    }
}

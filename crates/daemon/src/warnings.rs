//! What is odd and lasts: told by `daemon status` for as long as it does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// What a warning is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// The database was damaged.
    Database,
    /// Rows that nobody can read.
    Rows,
    /// VMs that were brought back from their own records.
    BroughtBack,
    /// Directories without a row.
    Directories,
    /// Machines that could not be taken over.
    Machines,
}

/// All warnings. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Warnings(Arc<Mutex<BTreeMap<Topic, Vec<String>>>>);

impl Warnings {
    /// Replaces what is told of `topic`; what is new goes to the log as well.
    pub fn set(&self, topic: Topic, texts: Vec<String>) {
        let mut warnings = self.lock();
        let before = warnings.get(&topic).map_or(&[][..], Vec::as_slice);
        for text in texts.iter().filter(|text| !before.contains(text)) {
            tracing::warn!(?topic, "{text}");
        }
        warnings.insert(topic, texts);
    }

    /// Adds to what is told of `topic`.
    pub fn add(&self, topic: Topic, text: String) {
        tracing::warn!(?topic, "{text}");
        self.lock().entry(topic).or_default().push(text);
    }

    /// All of them.
    pub fn all(&self) -> Vec<String> {
        self.lock().values().flatten().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Topic, Vec<String>>> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

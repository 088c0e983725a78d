//! What a test that is ended from outside leaves behind: nothing either. A test runner that
//! loses patience, or Ctrl-C, would otherwise leave VMs that run.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use banger_config::Paths;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};
use signal_hook::low_level::emulate_default_handler;

use crate::inventory;

/// Cleans up should a signal end this process; until it is dropped.
#[derive(Debug)]
pub struct Guard {
    signals: Handle,
    thread: Option<JoinHandle<()>>,
}

impl Guard {
    /// Guards the banger with these directories.
    pub fn of(paths: &Paths, home: &Path) -> Self {
        let mut signals =
            Signals::new([SIGHUP, SIGINT, SIGTERM]).expect("these signals can be caught");
        let handle = signals.handle();
        let (paths, home): (Paths, PathBuf) = (paths.clone(), home.to_owned());
        let thread = std::thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                inventory::kill(&paths, &home);
                let _ = fs::remove_dir_all(&home); // a mount of the test's may hold it
                let _ = emulate_default_handler(signal); // which ends this process
            }
        });
        Self {
            signals: handle,
            thread: Some(thread),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.signals.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it does not panic
        }
    }
}

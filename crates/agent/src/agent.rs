//! What all requests to one agent share: its place, its settings, its running commands.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use banger_proto::agent::Configure;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::ssh::Keys;

/// Where the agent runs: decides what it may change around itself.
#[derive(Debug)]
pub enum Place {
    /// In a VM of its own, next to the image's init.
    Guest(crate::power::Power),
    /// As an ordinary process: the machine around it is not the agent's.
    Process,
}

/// The agent's state; requests hold it in an [`Arc`].
#[derive(Debug)]
pub struct Agent {
    /// Where the agent runs.
    pub place: Place,
    /// How the guest came up.
    pub boot: crate::report::BootReport,
    settings: Mutex<Arc<Settings>>,
    commands: Mutex<BTreeSet<i32>>,
    running: watch::Sender<usize>,
    stop: watch::Sender<bool>,
    ports: watch::Sender<()>,
}

/// What the daemon has configured.
#[derive(Debug, Default)]
pub struct Settings {
    /// The daemon's words.
    pub configure: Configure,
    /// The SSH keys among them, parsed.
    pub keys: Keys,
}

impl Agent {
    /// An agent that nobody has configured yet.
    pub fn new(place: Place, boot: crate::report::BootReport) -> Self {
        Self {
            place,
            boot,
            settings: Mutex::default(),
            commands: Mutex::default(),
            running: watch::Sender::new(0),
            stop: watch::Sender::new(false),
            ports: watch::Sender::new(()),
        }
    }

    /// The settings as they are now.
    pub fn settings(&self) -> Arc<Settings> {
        lock(&self.settings).clone()
    }

    /// Takes new settings; what runs keeps those it started with.
    pub fn configure(&self, settings: Settings) {
        *lock(&self.settings) = Arc::new(settings);
    }

    /// Remembers a command until the guard is dropped.
    pub fn register(self: &Arc<Self>, leader: Pid) -> Registration {
        lock(&self.commands).insert(leader.as_raw_pid());
        self.running.send_modify(|running| *running += 1);
        Registration {
            agent: self.clone(),
            leader,
        }
    }

    /// Sends a signal to the process groups of all commands.
    pub fn signal_commands(&self, signal: Signal) {
        for leader in lock(&self.commands)
            .iter()
            .filter_map(|&pid| Pid::from_raw(pid))
        {
            // It may have ended in this moment: nothing is left to signal then.
            let _ = kill_process_group(leader, signal);
        }
    }

    /// Hangs all commands up, and kills those that do not end in time.
    pub async fn end_commands(&self, grace: Duration) {
        let mut running = self.running.subscribe();
        self.signal_commands(Signal::HUP);
        self.signal_commands(Signal::CONT);
        let ended = running.wait_for(|&running| running == 0);
        if timeout(grace, ended).await.is_err() {
            self.signal_commands(Signal::KILL);
        }
    }

    /// Somebody looks at the listening sockets.
    pub fn ports_looked_at(&self) {
        self.ports.send_replace(());
    }

    /// Changes whenever somebody looks at the listening sockets.
    pub fn watch_looks_at_ports(&self) -> watch::Receiver<()> {
        self.ports.subscribe()
    }

    /// Asks the agent's main loop to end.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Waits until [`Self::stop`] was called. Cancel-safe.
    pub async fn stopped(&self) {
        let mut stop = self.stop.subscribe();
        // The sender lives as long as `self`.
        let _ = stop.wait_for(|&stop| stop).await;
    }
}

/// A running command's entry.
#[derive(Debug)]
pub struct Registration {
    agent: Arc<Agent>,
    leader: Pid,
}

impl Drop for Registration {
    fn drop(&mut self) {
        lock(&self.agent.commands).remove(&self.leader.as_raw_pid());
        self.agent.running.send_modify(|running| *running -= 1);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! What a VM may do when: the pure table of phase × request -> verdict, and of phase × event
//! -> next phase. No I/O; [`super::task`] obeys it.
//!
//! ```text
//!   (no row) ──create──> Creating ──failed, stop──> (no row)
//!                         │    │
//!                no_start │    │ ready
//!                         v    v         stop, machine ended
//!                   Created   Running ─────────────────────────┐
//!                         │    ^                               v
//!                   start │    │ ready                     Stopping ──taken down──> Stopped
//!                         v    │            stop               ^  │                    │
//!   Stopped, Failed ────> Starting ────────────────────────────┘  │ machine broke      │
//!                start         └────────failed────────> Failed <──┘             start <┘
//!
//!   every phase ──delete──> Deleting ──taken down──> (no row)
//! ```

use banger_proto::api::VmState;
use serde::{Deserialize, Serialize};

/// What a VM is up to, as its durable row says it. What follows from a phase when the daemon
/// died in it is decided by [`crate::reconcile::diff`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Its first start goes on; if that fails, the VM is gone.
    Creating,
    /// It has disks and was never started.
    Created,
    /// A start of an existing VM goes on.
    Starting,
    /// The agent has answered.
    Running,
    /// It is being shut down.
    Stopping,
    /// Nothing of it runs.
    Stopped,
    /// The last start failed, or the engine died.
    Failed,
    /// It is being deleted.
    Deleting,
}

impl Phase {
    /// Every phase, for tables and tests.
    pub const ALL: [Self; 8] = [
        Self::Creating,
        Self::Created,
        Self::Starting,
        Self::Running,
        Self::Stopping,
        Self::Stopped,
        Self::Failed,
        Self::Deleting,
    ];

    /// The word in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Deleting => "deleting",
        }
    }

    /// The phase of a word in the database.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.as_str() == word)
    }

    /// The state as everyone sees it.
    pub fn state(self) -> VmState {
        match self {
            Self::Creating | Self::Starting => VmState::Starting,
            Self::Created => VmState::Created,
            Self::Running => VmState::Running,
            Self::Stopping | Self::Deleting => VmState::Stopping,
            Self::Stopped => VmState::Stopped,
            Self::Failed => VmState::Failed,
        }
    }

    /// Whether nothing of the VM may be found on the host but its directory and disks.
    pub fn is_at_rest(self) -> bool {
        matches!(self, Self::Created | Self::Stopped | Self::Failed)
    }
}

/// What someone asks of an existing VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// Boot it.
    Start,
    /// Shut it down, keeping its disks.
    Stop,
    /// Remove all of it.
    Delete,
    /// Reach into the running guest: exec, ssh.
    Attach,
}

impl Request {
    /// Every request, for tables and tests.
    pub const ALL: [Self; 4] = [Self::Start, Self::Stop, Self::Delete, Self::Attach];

    /// The verb in messages: `could not <verb> VM`.
    pub fn verb(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Delete => "delete",
            Self::Attach => "reach",
        }
    }
}

/// What to do about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Enter the phase and begin its work.
    Begin(Phase),
    /// Call off the work that goes on, then enter the phase and begin its work.
    Interrupt(Phase),
    /// Call off the create that goes on; its own clean-up removes the VM.
    CallOff,
    /// Just that goes on already: follow it.
    Join,
    /// Nothing changes; the answer is in the VM's present state.
    Allow,
    /// No.
    Refuse(Refusal),
}

/// Why a VM does not do what is asked. The text goes behind "could not ... VM `x`".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A start makes no sense: it runs.
    #[error("it is already running")]
    AlreadyRunning,
    /// A start goes on.
    #[error("it is already starting")]
    AlreadyStarting,
    /// A stop goes on.
    #[error("it is being stopped")]
    Stopping,
    /// It will be gone in a moment.
    #[error("it is being deleted")]
    Deleting,
    /// There is nothing to stop or to reach.
    #[error("it is not running")]
    NotRunning,
    /// It does not answer yet.
    #[error("it is still starting")]
    StillStarting,
}

/// The verdict on a request to a VM in `phase`.
pub fn judge(phase: Phase, request: Request) -> Verdict {
    use Phase::{Created, Creating, Deleting, Failed, Running, Starting, Stopped, Stopping};
    match (request, phase) {
        (Request::Delete, Deleting) => Verdict::Join,
        (Request::Delete, Creating | Starting | Stopping) => Verdict::Interrupt(Deleting),
        (Request::Delete, Created | Running | Stopped | Failed) => Verdict::Begin(Deleting),

        (Request::Start, Created | Stopped | Failed) => Verdict::Begin(Starting),
        (Request::Start, Creating | Starting) => Verdict::Refuse(Refusal::AlreadyStarting),
        (Request::Start, Running) => Verdict::Refuse(Refusal::AlreadyRunning),

        (Request::Stop, Running) => Verdict::Begin(Stopping),
        (Request::Stop, Starting) => Verdict::Interrupt(Stopping),
        (Request::Stop, Creating) => Verdict::CallOff,
        (Request::Stop, Stopping) => Verdict::Join,
        (Request::Stop | Request::Attach, Created | Stopped | Failed) => {
            Verdict::Refuse(Refusal::NotRunning)
        }

        (Request::Attach, Running) => Verdict::Allow,
        (Request::Attach, Creating | Starting) => Verdict::Refuse(Refusal::StillStarting),

        (Request::Start | Request::Attach, Stopping) => Verdict::Refuse(Refusal::Stopping),
        (Request::Start | Request::Stop | Request::Attach, Deleting) => {
            Verdict::Refuse(Refusal::Deleting)
        }
    }
}

/// What happened to a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The agent is configured: the VM is ready.
    Ready,
    /// All that a VM needs before its first start is there, and no start was asked for.
    Prepared,
    /// A start failed or was called off, and what it had acquired was released.
    StartFailed,
    /// The machine ended without having been asked to from here.
    MachineEnded,
    /// Everything of it that runs was released.
    TakenDown,
    /// The same, after its machine had broken down.
    TakenDownBroken,
    /// Something could not be released.
    StuckReleasing,
}

impl Event {
    /// Every event, for tables and tests.
    pub const ALL: [Self; 7] = [
        Self::Ready,
        Self::Prepared,
        Self::StartFailed,
        Self::MachineEnded,
        Self::TakenDown,
        Self::TakenDownBroken,
        Self::StuckReleasing,
    ];
}

/// Where an event leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// To this phase.
    Phase(Phase),
    /// The VM's row and slot are freed; its task ends.
    Gone,
    /// Nowhere: the event belongs to work that another request has overtaken.
    Ignore,
}

/// Where `event` leads a VM that is in `phase`.
pub fn after(phase: Phase, event: Event) -> Next {
    use Phase::{Created, Creating, Deleting, Failed, Running, Starting, Stopped, Stopping};
    match (phase, event) {
        (Creating | Starting, Event::Ready) => Next::Phase(Running),
        (Creating, Event::Prepared) => Next::Phase(Created),
        (Creating, Event::StartFailed) => Next::Gone,
        (Starting, Event::StartFailed) => Next::Phase(Failed),
        (Running, Event::MachineEnded) => Next::Phase(Stopping),
        (Stopping, Event::TakenDown) => Next::Phase(Stopped),
        (Stopping, Event::TakenDownBroken) => Next::Phase(Failed),
        (Deleting, Event::TakenDown | Event::TakenDownBroken) => Next::Gone,
        // The row stays as long as anything is left: the next delete, start or reconciliation
        // tries again.
        (Creating | Starting | Stopping | Deleting, Event::StuckReleasing) => Next::Phase(Failed),
        _ => Next::Ignore,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    #[test]
    fn every_request_in_every_phase_has_its_verdict() {
        let mut table = String::new();
        for phase in Phase::ALL {
            for request in Request::ALL {
                writeln!(
                    table,
                    "{:<9} {request:?}: {:?}",
                    phase.as_str(),
                    judge(phase, request)
                )
                .unwrap();
            }
        }
        insta::assert_snapshot!(table);
    }

    #[test]
    fn every_event_in_every_phase_leads_somewhere_known() {
        let mut table = String::new();
        for phase in Phase::ALL {
            for event in Event::ALL {
                let next = after(phase, event);
                if next != Next::Ignore {
                    writeln!(table, "{:<9} {event:?}: {next:?}", phase.as_str()).unwrap();
                }
            }
        }
        insta::assert_snapshot!(table);
    }

    #[test]
    fn a_delete_is_never_refused() {
        for phase in Phase::ALL {
            assert!(
                !matches!(judge(phase, Request::Delete), Verdict::Refuse(_)),
                "{phase:?}"
            );
        }
    }

    #[test]
    fn only_a_busy_vm_is_interrupted_and_only_an_idle_one_begins() {
        for phase in Phase::ALL {
            let busy = matches!(
                phase,
                Phase::Creating | Phase::Starting | Phase::Stopping | Phase::Deleting
            );
            for request in Request::ALL {
                match judge(phase, request) {
                    Verdict::Begin(_) => assert!(!busy, "{phase:?} {request:?}"),
                    Verdict::Interrupt(_) | Verdict::CallOff | Verdict::Join => {
                        assert!(busy, "{phase:?} {request:?}");
                    }
                    Verdict::Allow | Verdict::Refuse(_) => {}
                }
            }
        }
    }

    #[test]
    fn a_phase_at_rest_ignores_every_event() {
        for phase in Phase::ALL.into_iter().filter(|phase| phase.is_at_rest()) {
            for event in Event::ALL {
                assert_eq!(after(phase, event), Next::Ignore);
            }
        }
    }

    #[test]
    fn words_of_the_database_parse_back() {
        for phase in Phase::ALL {
            assert_eq!(Phase::from_word(phase.as_str()), Some(phase));
        }
        assert_eq!(Phase::from_word("gone"), None);
    }
}

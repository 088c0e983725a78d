//! What a VM may do when: the pure table of phase × request -> verdict, and of phase × event
//! -> next phase. No I/O; [`super::task`] obeys it.
//!
//! ```text
//!   (no row) ──create──> Creating ──failed, stop, kill──> (no row)
//!                         │    │
//!                no_start │    │ ready         pause         paused
//!                         v    v            ┌────────> Pausing ────────> Paused
//!                   Created   Running ──────┘            │  ^              │
//!                         │    ^ │ ^                     v  │              │ resume
//!                   start │    │ │ └───────resumed─── Resuming <───────────┘
//!                         │    │ │
//!                         │    │ │ stop, kill, machine ended (also of a paused one)
//!                         v    │ └──────────────────────────────────────┐
//!   Stopped, Failed ────> Starting ───stop, kill──────────────────> Stopping
//!      ^  ^      start,        │ ^                                    │ ^
//!      │  │      restart       │ └──taken down── Restarting <─restart─┼─┼── Running, Paused
//!      │  └──────────failed────┘                     └──────stop──────┼─┘
//!      └──────────────taken down, machine broke───────────────────────┘
//!
//!   every phase ──delete──> Deleting ──taken down──> (no row)
//! ```

use banger_proto::name::VmName;

pub use crate::store::Phase;

/// What someone asks of an existing VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// Boot it.
    Start,
    /// Shut it down, keeping its disks.
    Stop,
    /// Shut it down and boot it again.
    Restart,
    /// End it at once, keeping its disks.
    Kill,
    /// Hold its CPUs.
    Pause,
    /// Let its CPUs go on.
    Resume,
    /// Change what it is.
    Set,
    /// Remove all of it.
    Delete,
    /// Reach into the running guest: exec, ssh.
    Attach,
}

impl Request {
    /// Every request, for tables and tests.
    pub const ALL: [Self; 9] = [
        Self::Start,
        Self::Stop,
        Self::Restart,
        Self::Kill,
        Self::Pause,
        Self::Resume,
        Self::Set,
        Self::Delete,
        Self::Attach,
    ];

    /// The verb in messages: `could not <verb> VM`.
    pub fn verb(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Set => "change",
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
    /// The work that goes on is wanted as it is, and leads to somewhere else: enter the phase
    /// and let it go on.
    Redirect(Phase),
    /// Follow the work that goes on, and have it hurry: a create is called off and its own
    /// clean-up removes the VM, a stop cuts the power.
    Hurry,
    /// Just that goes on already: follow it.
    Join,
    /// The phase stays as it is.
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
    /// Its CPUs are held already.
    #[error("it is already paused")]
    AlreadyPaused,
    /// Its CPUs are about to be held.
    #[error("it is being paused")]
    Pausing,
    /// Its CPUs are held.
    #[error("it is paused")]
    Paused,
    /// Its CPUs run.
    #[error("it is not paused")]
    NotPaused,
    /// Its CPUs are about to go on.
    #[error("it is being resumed")]
    Resuming,
    /// A stop goes on.
    #[error("it is being stopped")]
    Stopping,
    /// A restart goes on.
    #[error("it is being restarted")]
    Restarting,
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

impl Refusal {
    /// What the user can do about a request to the VM `name` that was refused so: the command
    /// that comes next.
    pub fn hint(self, request: Request, name: &VmName) -> String {
        match (self, request) {
            (Self::AlreadyRunning, _) => format!(
                "`banger vm exec {name}` runs commands in it, and `banger vm restart {name}` \
                 boots it anew"
            ),
            (Self::AlreadyStarting, _) => format!(
                "`banger vm wait {name}` returns when it runs, and `banger vm stop {name}` calls \
                 the start off"
            ),
            (Self::NotRunning, Request::Stop | Request::Kill) => {
                format!("nothing of it runs: `banger vm delete {name}` removes its disks as well")
            }
            (Self::NotRunning, _) => format!("start it first: `banger vm start {name}`"),
            (Self::AlreadyPaused | Self::Paused | Self::Pausing, _) => {
                format!("let it go on: `banger vm resume {name}`")
            }
            (Self::NotPaused, _) => {
                format!("it goes on already: `banger vm show {name}` tells how it does")
            }
            (Self::StillStarting | Self::Resuming | Self::Restarting, _) => {
                format!("try again in a moment: `banger vm wait {name}` returns when it runs")
            }
            (Self::Stopping, Request::Start | Request::Restart | Request::Set) => {
                format!("try again when it is stopped: `banger vm wait --for stopped {name}`")
            }
            (Self::Stopping, _) => format!(
                "when it is stopped, `banger vm start {name}` starts it: `banger vm wait --for \
                 stopped {name}`"
            ),
            (Self::Deleting, _) => {
                format!("`banger vm wait --for deleted {name}` returns when it is gone")
            }
        }
    }
}

/// The verdict on a request to a VM in `phase`.
pub fn judge(phase: Phase, request: Request) -> Verdict {
    use Phase::{
        Created, Creating, Deleting, Failed, Paused, Pausing, Restarting, Resuming, Running,
        Starting, Stopped, Stopping,
    };
    use Verdict::{Allow, Begin, Hurry, Interrupt, Join, Redirect, Refuse};
    match (request, phase) {
        (Request::Delete, Deleting) => Join,
        (Request::Delete, phase) if phase.is_busy() => Interrupt(Deleting),
        (Request::Delete, _) => Begin(Deleting),

        (Request::Start | Request::Restart, Created | Stopped | Failed) => Begin(Starting),
        (Request::Start | Request::Restart, Creating | Starting) => {
            Refuse(Refusal::AlreadyStarting)
        }
        (Request::Start, Running) => Refuse(Refusal::AlreadyRunning),

        (Request::Restart, Running | Paused) => Begin(Restarting),
        (Request::Restart, Pausing | Resuming) => Interrupt(Restarting),
        (Request::Restart, Restarting) => Join,

        (Request::Stop | Request::Kill, Running | Paused) => Begin(Stopping),
        (Request::Stop | Request::Kill, Starting | Pausing | Resuming) => Interrupt(Stopping),
        (Request::Stop | Request::Kill, Creating) => Hurry,
        (Request::Stop, Stopping) => Join,
        (Request::Kill, Stopping) => Hurry,
        (Request::Stop, Restarting) => Redirect(Stopping),
        (Request::Kill, Restarting) => Interrupt(Stopping),

        (Request::Pause, Running) => Begin(Pausing),
        (Request::Pause, Resuming) => Interrupt(Pausing),
        (Request::Pause, Pausing) => Join,
        (Request::Pause, Paused) => Refuse(Refusal::AlreadyPaused),

        (Request::Resume, Paused) => Begin(Resuming),
        (Request::Resume, Pausing) => Interrupt(Resuming),
        (Request::Resume, Resuming) => Join,
        (Request::Resume, Running) => Refuse(Refusal::NotPaused),

        (Request::Set, Created | Running | Paused | Stopped | Failed) => Allow,
        (Request::Attach, Running) => Allow,

        (_, Created | Stopped | Failed) => Refuse(Refusal::NotRunning),
        (_, Creating | Starting) => Refuse(Refusal::StillStarting),
        (_, Pausing) => Refuse(Refusal::Pausing),
        (_, Paused) => Refuse(Refusal::Paused),
        (_, Resuming) => Refuse(Refusal::Resuming),
        (_, Stopping) => Refuse(Refusal::Stopping),
        (_, Restarting) => Refuse(Refusal::Restarting),
        (_, Deleting) => Refuse(Refusal::Deleting),
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
    /// Its CPUs are held, whether or not that was wanted.
    Held,
    /// Its CPUs run, whether or not that was wanted.
    GoesOn,
    /// A change was carried out or given up; what the VM does is the same.
    Changed,
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
    pub const ALL: [Self; 10] = [
        Self::Ready,
        Self::Prepared,
        Self::StartFailed,
        Self::Held,
        Self::GoesOn,
        Self::Changed,
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
    use Phase::{
        Created, Creating, Deleting, Failed, Paused, Pausing, Restarting, Resuming, Running,
        Starting, Stopped, Stopping,
    };
    match (phase, event) {
        (Creating | Starting, Event::Ready) => Next::Phase(Running),
        (Creating, Event::Prepared) => Next::Phase(Created),
        (Creating, Event::StartFailed) => Next::Gone,
        (Starting, Event::StartFailed) => Next::Phase(Failed),
        (Pausing | Resuming, Event::Held) => Next::Phase(Paused),
        (Pausing | Resuming, Event::GoesOn) => Next::Phase(Running),
        // While it is being paused or resumed, this waits until that is over.
        (Running | Paused, Event::MachineEnded) => Next::Phase(Stopping),
        (Stopping, Event::TakenDown) => Next::Phase(Stopped),
        (Stopping, Event::TakenDownBroken) => Next::Phase(Failed),
        (Restarting, Event::TakenDown) => Next::Phase(Starting),
        (Deleting, Event::TakenDown | Event::TakenDownBroken) => Next::Gone,
        // The row stays as long as anything is left: the next delete, start or reconciliation
        // tries again.
        (Creating | Starting | Stopping | Restarting | Deleting, Event::StuckReleasing) => {
            Next::Phase(Failed)
        }
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
                    "{:<10} {request:?}: {:?}",
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
                    writeln!(table, "{:<10} {event:?}: {next:?}", phase.as_str()).unwrap();
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
            let busy = phase.is_busy();
            for request in Request::ALL {
                match judge(phase, request) {
                    Verdict::Begin(_) => assert!(!busy, "{phase:?} {request:?}"),
                    Verdict::Interrupt(_)
                    | Verdict::Redirect(_)
                    | Verdict::Hurry
                    | Verdict::Join => {
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
    fn every_busy_phase_has_an_end() {
        for phase in Phase::ALL.into_iter().filter(|phase| phase.is_busy()) {
            let ends = Event::ALL
                .into_iter()
                .any(|event| after(phase, event) != Next::Ignore);
            assert!(ends, "{phase:?}");
        }
    }

    #[test]
    fn a_vm_that_is_not_at_rest_can_be_ended_at_once() {
        for phase in Phase::ALL {
            let refused = matches!(judge(phase, Request::Kill), Verdict::Refuse(_));
            let ended = phase.is_at_rest() || phase == Phase::Deleting;
            assert_eq!(refused, ended, "{phase:?}");
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

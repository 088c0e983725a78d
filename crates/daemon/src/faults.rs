//! Lets a test make any stage of a start fail, hang, or take the daemon down, before the
//! stage and half-way through it; and take it down between the steps of a release, or around
//! what is written down. A `SIGUSR1` has the daemon believe that the host's clock has jumped.
//! Without the feature `faults` nothing of this is built.

use crate::vm::stage::{Stage, StageError};

/// When in a stage or step a fault is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Nothing was acquired yet.
    Before,
    /// Some of it was.
    HalfWay,
}

/// A step that is no stage of a start, around which the daemon can be taken down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// What a VM is, in its directory.
    Record,
    /// How its machine is found again.
    Handles,
    /// A change of the database. It can fail as well, as on a full disk.
    Row,
    /// A release: its half is when the machine has ended, and the network has not.
    Release,
    /// A release's files: their half is when the record is gone, and the directory is not.
    Files,
}

impl Step {
    /// Every step.
    pub const ALL: [Self; 5] = [
        Self::Record,
        Self::Handles,
        Self::Row,
        Self::Release,
        Self::Files,
    ];

    /// The step's name in a fault.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Record => "record",
            Self::Handles => "handles",
            Self::Row => "row",
            Self::Release => "release",
            Self::Files => "files",
        }
    }
}

#[cfg(not(any(test, feature = "faults")))]
pub use absent::Faults;
#[cfg(any(test, feature = "faults"))]
pub use present::{Effect, Fault, Faults, InvalidFault, Point};

#[cfg(not(any(test, feature = "faults")))]
mod absent {
    use super::{Moment, Stage, StageError, Step};
    use crate::clock::Clock;

    /// No faults.
    #[derive(Clone, Copy, Debug, Default)]
    pub struct Faults;

    impl Faults {
        /// No faults, whatever the environment says.
        pub fn from_env() -> Self {
            Self
        }

        pub(crate) async fn pass(self, _: Stage, _: Moment) -> Result<(), StageError> {
            Ok(())
        }

        pub(crate) fn step(self, _: Step, _: Moment) -> bool {
            false
        }

        pub(crate) async fn play_jumps(self, _: &Clock) {}
    }
}

#[cfg(any(test, feature = "faults"))]
mod present {
    use std::str::FromStr;
    use std::sync::{Arc, Mutex};

    use tokio::signal::unix::{SignalKind, signal};

    use super::{Moment, Stage, StageError, Step};
    use crate::clock::Clock;

    /// Name of the environment variable that plants a fault in a daemon.
    pub const VARIABLE: &str = "BANGER_FAULT";

    /// What happens at a fault.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Effect {
        /// The stage fails.
        Fail,
        /// The stage never ends.
        Hang,
        /// The daemon dies, as by SIGKILL.
        Kill,
    }

    /// Where a fault can be.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Point {
        /// In a stage of a start.
        Stage(Stage),
        /// In another step.
        Step(Step),
    }

    impl Point {
        fn from_word(word: &str) -> Option<Self> {
            let stage = Stage::ALL.into_iter().find(|stage| stage.as_str() == word);
            let step = Step::ALL.into_iter().find(|step| step.as_str() == word);
            stage.map(Self::Stage).or(step.map(Self::Step))
        }
    }

    /// Where a fault is, and what it does. As text: `fail:disks:half`, or `kill:row:before:3`
    /// for the third time only.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Fault {
        /// What happens.
        pub effect: Effect,
        /// Where.
        pub point: Point,
        /// Before it or half-way through it; after a step that has no half.
        pub moment: Moment,
        /// How often the point is passed before the fault is met, at that time and never again.
        /// 0: it is met each time.
        pub after: u32,
    }

    /// The text is not a fault.
    #[derive(Debug, PartialEq, Eq, thiserror::Error)]
    #[error("a fault is (fail|hang|kill):<stage or step>:(before|half)[:<which time>]")]
    pub struct InvalidFault;

    impl FromStr for Fault {
        type Err = InvalidFault;

        fn from_str(text: &str) -> Result<Self, InvalidFault> {
            let mut words = text.split(':');
            let effect = match words.next() {
                Some("fail") => Effect::Fail,
                Some("hang") => Effect::Hang,
                Some("kill") => Effect::Kill,
                _ => return Err(InvalidFault),
            };
            let point = words
                .next()
                .and_then(Point::from_word)
                .ok_or(InvalidFault)?;
            let moment = match words.next() {
                Some("before") => Moment::Before,
                Some("half") => Moment::HalfWay,
                _ => return Err(InvalidFault),
            };
            let after = match (words.next(), words.next()) {
                (None, _) => 0,
                (Some(number), None) => match number.parse() {
                    Ok(0) | Err(_) => return Err(InvalidFault),
                    Ok(number) => number,
                },
                (Some(_), Some(_)) => return Err(InvalidFault),
            };
            Ok(Self {
                effect,
                point,
                moment,
                after,
            })
        }
    }

    /// The planted fault, if there is one. Clones share it.
    #[derive(Clone, Debug, Default)]
    pub struct Faults(Arc<Mutex<Option<Fault>>>);

    impl Faults {
        /// The fault that the environment plants; a malformed one stops the daemon's start.
        ///
        /// # Panics
        /// The variable holds no fault.
        pub fn from_env() -> Self {
            let fault = std::env::var(VARIABLE).ok().map(|text| {
                text.parse()
                    .unwrap_or_else(|error| panic!("{VARIABLE}={text}: {error}"))
            });
            Self(Arc::new(Mutex::new(fault)))
        }

        /// Plants a fault, or takes it away.
        pub fn plant(&self, fault: Option<Fault>) {
            *self.0.lock().expect("no holder of this lock panics") = fault;
        }

        pub(crate) async fn pass(&self, stage: Stage, moment: Moment) -> Result<(), StageError> {
            match self.met(Point::Stage(stage), moment) {
                None => Ok(()),
                Some(Effect::Fail) => Err(StageError::Planted),
                Some(Effect::Hang) => std::future::pending().await,
                Some(Effect::Kill) => die(),
            }
        }

        /// Whether the step is to fail.
        pub(crate) fn step(&self, step: Step, moment: Moment) -> bool {
            match self.met(Point::Step(step), moment) {
                None | Some(Effect::Hang) => false,
                Some(Effect::Fail) => true,
                Some(Effect::Kill) => die(),
            }
        }

        /// Tells of a jump of the clock with each `SIGUSR1`.
        pub(crate) async fn play_jumps(&self, clock: &Clock) {
            let told = signal(SignalKind::user_defined1());
            let mut told = told.expect("a test's daemon can wait for a signal");
            while told.recv().await.is_some() {
                clock.tell();
            }
        }

        fn met(&self, point: Point, moment: Moment) -> Option<Effect> {
            let mut planted = self.0.lock().expect("no holder of this lock panics");
            let fault = planted
                .as_mut()
                .filter(|fault| fault.point == point && fault.moment == moment)?;
            let effect = fault.effect;
            match fault.after {
                0 => Some(effect),
                1 => {
                    *planted = None;
                    Some(effect)
                }
                _ => {
                    fault.after -= 1;
                    None
                }
            }
        }
    }

    /// As by SIGKILL, because it is.
    fn die() -> ! {
        let own = rustix::process::getpid();
        let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
        unreachable!("SIGKILL is not survived")
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_fault_is_written_as_three_words() {
            let fault = Fault {
                effect: Effect::Hang,
                point: Point::Stage(Stage::Network),
                moment: Moment::HalfWay,
                after: 0,
            };
            assert_eq!("hang:network:half".parse(), Ok(fault));
            let third = Fault {
                effect: Effect::Fail,
                point: Point::Step(Step::Row),
                moment: Moment::Before,
                after: 3,
            };
            assert_eq!("fail:row:before:3".parse(), Ok(third));
            let faults = Faults(Arc::new(Mutex::new(Some(third))));
            let failed: Vec<bool> = (0..5)
                .map(|_| faults.step(Step::Row, Moment::Before))
                .collect();
            assert_eq!(failed, [false, false, true, false, false]);
            for text in [
                "",
                "fail",
                "fail:disks",
                "fail:x:half",
                "fail:disks:half:",
                "fail:disks:half:0",
                "fail:disks:half:1:1",
                "x:disks:half",
            ] {
                assert_eq!(text.parse::<Fault>(), Err(InvalidFault), "{text}");
            }
        }
    }
}

//! Lets a test make any stage of a start fail, hang, or take the daemon down, before the
//! stage and half-way through it. Without the feature `faults` nothing of this is built.

use crate::vm::stage::{Moment, Stage, StageError};

#[cfg(not(any(test, feature = "faults")))]
pub use absent::Faults;
#[cfg(any(test, feature = "faults"))]
pub use present::{Effect, Fault, Faults, InvalidFault};

#[cfg(not(any(test, feature = "faults")))]
mod absent {
    use super::{Moment, Stage, StageError};

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
    }
}

#[cfg(any(test, feature = "faults"))]
mod present {
    use std::str::FromStr;
    use std::sync::{Arc, Mutex};

    use super::{Moment, Stage, StageError};

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

    /// Where a fault is, and what it does. As text: `fail:disks:half`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Fault {
        /// What happens.
        pub effect: Effect,
        /// In which stage.
        pub stage: Stage,
        /// Before it or half-way through it.
        pub moment: Moment,
    }

    /// The text is not a fault.
    #[derive(Debug, PartialEq, Eq, thiserror::Error)]
    #[error("a fault is (fail|hang|kill):<stage>:(before|half)")]
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
            let stage = words
                .next()
                .and_then(|word| Stage::ALL.into_iter().find(|stage| stage.as_str() == word))
                .ok_or(InvalidFault)?;
            let moment = match (words.next(), words.next()) {
                (Some("before"), None) => Moment::Before,
                (Some("half"), None) => Moment::HalfWay,
                _ => return Err(InvalidFault),
            };
            Ok(Self {
                effect,
                stage,
                moment,
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
            let planted = *self.0.lock().expect("no holder of this lock panics");
            match planted.filter(|fault| fault.stage == stage && fault.moment == moment) {
                None => Ok(()),
                Some(Fault {
                    effect: Effect::Fail,
                    ..
                }) => Err(StageError::Planted),
                Some(Fault {
                    effect: Effect::Hang,
                    ..
                }) => std::future::pending().await,
                Some(Fault {
                    effect: Effect::Kill,
                    ..
                }) => {
                    let own = rustix::process::getpid();
                    let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
                    std::future::pending().await
                }
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_fault_is_written_as_three_words() {
            let fault = Fault {
                effect: Effect::Hang,
                stage: Stage::Network,
                moment: Moment::HalfWay,
            };
            assert_eq!("hang:network:half".parse(), Ok(fault));
            for text in [
                "",
                "fail",
                "fail:disks",
                "fail:x:half",
                "fail:disks:half:",
                "x:disks:half",
            ] {
                assert_eq!(text.parse::<Fault>(), Err(InvalidFault), "{text}");
            }
        }
    }
}

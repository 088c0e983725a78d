//! What the daemon and the holder say to each other.
//!
//! One connection to the holder's socket (`SOCK_SEQPACKET`) carries one exchange, each
//! message being one packet of JSON:
//!
//! ```text
//! holder -> daemon  Hello
//! daemon -> holder  Request
//! holder -> daemon  Answer      (with the tap's descriptor, when one was asked for)
//! ```
//!
//! A holder lives as long as its VMs, so a daemon may talk to one of an older banger: the
//! requests of a protocol version keep their meaning for ever, a newer daemon sends a newer
//! request only where the hello allows it, and fields that one side does not know are
//! ignored. A connection that ends without an answer means that the holder is going.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::rules::Reach;

/// The version of the protocol that this build speaks.
pub(crate) const VERSION: u32 = 1;
/// Largest message. 1023 slots of up to five digits take 6 KiB.
pub(crate) const MESSAGE_MAX: usize = 64 * 1024;

/// The holder's first words on a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// The highest version of the protocol that the holder speaks; it speaks all lower ones.
    pub(crate) protocol: u32,
    /// banger's version.
    pub(crate) version: String,
    /// The holder's process id on the host.
    pub(crate) pid: i32,
}

/// What a daemon asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// A tap for `slot`, new or still there from before. Answer: `Attached`, with the tap.
    Attach {
        slot: u16,
        reach: Reach,
        /// The tap's MTU.
        mtu: u16,
    },
    /// The tap of `slot` shall go, if there is one. Answer: `Detached`.
    Detach { slot: u16 },
    /// Which slots have a tap? Answer: `Slots`.
    List,
    /// The reach of the tap of `slot` shall be another. Answer: `Done` or `Absent`.
    SetReach { slot: u16, reach: Reach },
    /// The holder shall go with all it holds. Answer: `Detached` with `last`.
    ShutDown,
}

/// What the holder answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// There is a tap.
    Attached {
        /// Why there is no way out, if one was asked for and there is none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        no_way_out: Option<Failure>,
    },
    /// There is no tap.
    Detached {
        /// There is none at all any more, and the holder is about to end.
        last: bool,
    },
    /// The slots that have a tap.
    Slots(BTreeSet<u16>),
    /// It is so.
    Done,
    /// There is no tap of that slot.
    Absent,
    /// It was not to be done. What was begun has been undone.
    Refused(Failure),
}

/// An error that has crossed a process boundary, with its causes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cause: Option<Box<Failure>>,
}

impl Failure {
    /// A failure without a further cause.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            cause: None,
        }
    }

    /// A failure because of another one.
    pub(crate) fn because(message: impl Into<String>, cause: Self) -> Self {
        Self {
            message: message.into(),
            cause: Some(Box::new(cause)),
        }
    }

    /// Its message and those of all causes, outermost first.
    pub(crate) fn chain(&self) -> impl Iterator<Item = &str> {
        std::iter::successors(Some(self), |failure| failure.cause.as_deref())
            .map(|f| f.message.as_str())
    }
}

impl From<&(dyn Error + 'static)> for Failure {
    fn from(error: &(dyn Error + 'static)) -> Self {
        Self {
            message: error.to_string(),
            cause: error.source().map(|cause| Box::new(Self::from(cause))),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

/// The first and only line that a starting holder writes to its standard output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Started {
    /// The socket is there.
    Ready,
    /// There will be no socket.
    Failed(Failure),
}

/// The bytes of a message.
pub(crate) fn encode(message: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(message).expect("messages have no maps with odd keys")
}

/// The message that the bytes are, if they are one.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_messages_of_version_1_stay_as_they_are() {
        let refused = Failure::because("no", Failure::new("because"));
        let requests = [
            Request::Attach {
                slot: 7,
                reach: Reach::Outside,
                mtu: 1400,
            },
            Request::Detach { slot: 7 },
            Request::List,
            Request::SetReach {
                slot: 7,
                reach: Reach::Gateway,
            },
            Request::ShutDown,
        ];
        let answers = [
            Answer::Attached { no_way_out: None },
            Answer::Attached {
                no_way_out: Some(refused.clone()),
            },
            Answer::Detached { last: true },
            Answer::Slots([1, 7].into()),
            Answer::Done,
            Answer::Absent,
            Answer::Refused(refused),
        ];
        let hello = Hello {
            protocol: 1,
            version: "0.1.0".to_owned(),
            pid: 4711,
        };
        let mut lines = vec![String::from_utf8(encode(&hello)).unwrap()];
        lines.extend(
            requests
                .iter()
                .map(|r| String::from_utf8(encode(r)).unwrap()),
        );
        lines.extend(
            answers
                .iter()
                .map(|a| String::from_utf8(encode(a)).unwrap()),
        );
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn a_field_of_a_newer_banger_is_ignored() {
        let request: Request = decode(br#"{"detach":{"slot":7,"gently":true}}"#).unwrap();
        assert_eq!(request, Request::Detach { slot: 7 });
    }

    #[test]
    fn a_failure_keeps_its_causes_in_order() {
        let error = crate::plan::PlanError::Slot { slot: 9, last: 5 };
        let failure = Failure::because("outer", Failure::from(&error as &dyn Error));
        assert_eq!(failure.to_string(), "outer");
        assert_eq!(failure.source().unwrap().to_string(), error.to_string());
    }

    fn reach() -> impl Strategy<Value = Reach> {
        prop_oneof![Just(Reach::Gateway), Just(Reach::Outside)]
    }

    fn request() -> impl Strategy<Value = Request> {
        prop_oneof![
            (any::<u16>(), reach(), any::<u16>()).prop_map(|(slot, reach, mtu)| Request::Attach {
                slot,
                reach,
                mtu
            }),
            any::<u16>().prop_map(|slot| Request::Detach { slot }),
            Just(Request::List),
            (any::<u16>(), reach()).prop_map(|(slot, reach)| Request::SetReach { slot, reach }),
            Just(Request::ShutDown),
        ]
    }

    proptest! {
        #[test]
        fn what_is_sent_is_what_arrives(request in request()) {
            prop_assert_eq!(decode::<Request>(&encode(&request)).unwrap(), request);
        }

        #[test]
        fn all_slots_fit_one_message(slots in proptest::collection::btree_set(any::<u16>(), 0..=1023)) {
            let bytes = encode(&Answer::Slots(slots));
            prop_assert!(bytes.len() <= MESSAGE_MAX);
        }

        #[test]
        fn rubbish_is_refused_and_not_fatal(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<Request>(&bytes);
            let _ = decode::<Answer>(&bytes);
            let _ = decode::<Hello>(&bytes);
        }

        #[test]
        fn a_damaged_message_is_refused_or_another_message(
            request in request(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
        ) {
            let mut bytes = encode(&request);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(other) = decode::<Request>(&bytes) {
                prop_assert_eq!(decode::<Request>(&encode(&other)).unwrap(), other);
            }
        }
    }
}

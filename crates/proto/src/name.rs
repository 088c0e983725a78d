//! What a person calls a VM or an image, and the two words banger makes up otherwise.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest DNS label (RFC 1035, section 2.3.4).
pub const VM_NAME_MAX: usize = 63;
/// Longest image or kernel name.
pub const ARTIFACT_NAME_MAX: usize = 128;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Not usable as a VM's name.
    #[error(
        "`{0}` is not a VM name: use 1 to 63 of a-z, 0-9 and `-`, not starting or ending with `-`"
    )]
    Vm(String),
    /// Not usable as an image's or kernel's name.
    #[error(
        "`{0}` is not an image or kernel name: use 1 to 128 of a-z, 0-9, `.`, `_` and `-`, \
         starting with a letter or digit"
    )]
    Artifact(String),
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $check:expr, $error:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                match $check(text) {
                    true => Ok(Self(text.to_owned())),
                    false => Err($error(text.to_owned())),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    };
}

name_type!(
    /// A VM's name: one DNS label, because `<name>.vm` must resolve.
    VmName,
    is_dns_label,
    InvalidName::Vm
);
name_type!(
    /// An image's or kernel's name, such as `debian-bookworm` or `generic-6.12`.
    ArtifactName,
    is_artifact_name,
    InvalidName::Artifact
);

impl VmName {
    /// Makes up a name of two words, such as `calm-otter`. It may be taken: ask again.
    pub fn generate() -> Self {
        let mut random = [0u8; 2];
        getrandom::fill(&mut random).expect("the kernel's random source does not fail after boot");
        let first = FIRST[usize::from(random[0]) % FIRST.len()];
        let second = SECOND[usize::from(random[1]) % SECOND.len()];
        Self(format!("{first}-{second}"))
    }
}

fn is_dns_label(text: &str) -> bool {
    (1..=VM_NAME_MAX).contains(&text.len())
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn is_artifact_name(text: &str) -> bool {
    (1..=ARTIFACT_NAME_MAX).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
}

const FIRST: [&str; 64] = [
    "able", "amber", "apt", "bold", "brave", "brief", "bright", "brisk", "calm", "civil", "clear",
    "clever", "cosy", "crisp", "deft", "eager", "early", "easy", "even", "fair", "fast", "fine",
    "firm", "fleet", "fond", "free", "fresh", "gentle", "glad", "golden", "good", "grand", "green",
    "happy", "hardy", "keen", "kind", "light", "lively", "loyal", "lucky", "mellow", "merry",
    "mild", "neat", "nimble", "noble", "placid", "plain", "polite", "proud", "quick", "quiet",
    "ready", "rosy", "sharp", "silent", "smart", "snug", "steady", "sunny", "tidy", "warm", "wise",
];

const SECOND: [&str; 64] = [
    "adder", "alpaca", "ant", "badger", "bat", "bear", "beaver", "bee", "bison", "bream", "camel",
    "carp", "cat", "cod", "coot", "crab", "crane", "crow", "deer", "dove", "duck", "eagle", "eel",
    "elk", "falcon", "ferret", "finch", "fox", "frog", "gecko", "goat", "goose", "grouse", "hare",
    "hawk", "heron", "horse", "ibex", "jay", "koala", "lark", "lemur", "lion", "llama", "lynx",
    "mole", "moose", "moth", "mouse", "newt", "otter", "owl", "panda", "perch", "pike", "plover",
    "quail", "raven", "robin", "seal", "snail", "stork", "swan", "wren",
];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_dns_cannot_carry_are_refused() {
        for text in ["", "-a", "a-", "A", "a.b", "a_b", "ä", &"a".repeat(64)] {
            assert!(text.parse::<VmName>().is_err(), "{text}");
        }
        for text in ["a", "0", "calm-otter", &"a".repeat(63)] {
            assert!(text.parse::<VmName>().is_ok(), "{text}");
        }
    }

    #[test]
    fn artifact_names_cannot_leave_their_directory() {
        for text in ["", ".", "..", ".a", "a/b", "-a", "A", &"a".repeat(129)] {
            assert!(text.parse::<ArtifactName>().is_err(), "{text}");
        }
        for text in ["debian-bookworm", "generic-6.12", "a_b"] {
            assert!(text.parse::<ArtifactName>().is_ok(), "{text}");
        }
    }

    #[test]
    fn generated_names_are_valid() {
        for first in FIRST {
            for second in SECOND {
                assert!(format!("{first}-{second}").parse::<VmName>().is_ok());
            }
        }
    }

    proptest! {
        #[test]
        fn json_carries_exactly_the_valid_names(text in "[a-z0-9.-]{0,70}") {
            let json = serde_json::to_string(&text).unwrap();
            prop_assert_eq!(serde_json::from_str::<VmName>(&json).is_ok(), text.parse::<VmName>().is_ok());
        }
    }
}

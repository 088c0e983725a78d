//! What identifies an object for ever: 128 random bits, written as 32 lower-case hex digits.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Number of hex digits that tables show.
pub const SHORT_LEN: usize = 12;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an id: an id is 32 lower-case hex digits")]
pub struct InvalidId(pub String);

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Makes a new, random id.
            #[expect(clippy::new_without_default, reason = "a default that differs each time surprises")]
            pub fn new() -> Self {
                Self(random_hex())
            }

            /// All 32 digits.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The first digits, as tables show them.
            pub fn short(&self) -> &str {
                &self.0[..SHORT_LEN]
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.short())
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                match is_id(text) {
                    true => Ok(Self(text.to_owned())),
                    false => Err(InvalidId(text.to_owned())),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    };
}

id_type!(
    /// Identifies a VM, also across renames and on other hosts.
    VmId
);
id_type!(
    /// Identifies one state directory and all that its daemons have on a host: made once, and
    /// kept in the state directory for ever.
    InstanceId
);

impl InstanceId {
    /// The first 32 bits: what stands for the instance where a name has little room.
    pub fn head(&self) -> u32 {
        u32::from_str_radix(&self.0[..8], 16).expect("an id is hex digits")
    }
}

id_type!(
    /// Identifies an operation: work that goes on after the request that began it.
    OperationId
);
id_type!(
    /// Identifies a request in the logs of CLI, daemon and agent.
    RequestId
);
id_type!(
    /// Identifies an image, also across renames.
    ImageId
);
id_type!(
    /// Identifies a client's lease: VMs that hang on it are deleted when the client goes.
    LeaseId
);

fn is_id(text: &str) -> bool {
    text.len() == 32
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn random_hex() -> String {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).expect("the kernel's random source does not fail after boot");
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_id_parses_back() {
        let id = VmId::new();
        assert_eq!(id.as_str().parse::<VmId>(), Ok(id.clone()));
        assert_ne!(id, VmId::new());
    }

    #[test]
    fn only_32_lower_case_hex_digits_are_an_id() {
        for text in ["", "abc", &"A".repeat(32), &"g".repeat(32), &"0".repeat(33)] {
            assert!(text.parse::<VmId>().is_err(), "{text}");
        }
    }
}

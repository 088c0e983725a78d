//! Keys as the daemon configures them.

use russh::keys::ssh_key;
use russh::keys::{PrivateKey, PublicKey};

/// The host key and the keys that may log in.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    /// The guest's own key; without it there is no SSH.
    pub host: Option<PrivateKey>,
    /// Who may log in.
    pub authorized: Vec<PublicKey>,
}

/// Why configured keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// Not a private key in OpenSSH's format.
    #[error("the SSH host key cannot be read: {0}")]
    Host(ssh_key::Error),
    /// Not a line of `authorized_keys`.
    #[error("line {line} of the authorized keys cannot be read: {reason}")]
    Authorized {
        /// Counted from 1.
        line: usize,
        /// Why.
        reason: ssh_key::Error,
    },
}

impl Keys {
    /// Reads keys as the daemon sends them; an empty host key is none.
    ///
    /// # Errors
    /// A key cannot be read.
    pub fn parse(host: &str, authorized: &[String]) -> Result<Self, KeysError> {
        let host = match host.trim() {
            "" => None,
            text => Some(PrivateKey::from_openssh(text).map_err(KeysError::Host)?),
        };
        let lines = authorized.iter().map(|line| line.trim()).enumerate();
        let authorized = lines
            .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
            .map(|(index, line)| {
                PublicKey::from_openssh(line).map_err(|reason| KeysError::Authorized {
                    line: index + 1,
                    reason,
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { host, authorized })
    }
}

//! The ssh keys: one host key for each VM, and the user's own key for all of them.

use std::path::{Path, PathBuf};

use banger_proto::name::VmName;
use ssh_key::private::{Ed25519Keypair, KeypairData};
use ssh_key::{LineEnding, PrivateKey};

use crate::files::{self, FileError};

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A key's file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// What is in the file is no private key that ssh reads.
    #[error("`{}` is not an OpenSSH private key", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        #[source]
        source: ssh_key::Error,
    },
}

impl KeyError {
    /// What the user can do, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::File(error) => error.hint(),
            Self::Malformed { path, .. } => Some(format!(
                "put a key there by `ssh-keygen -t ed25519 -f {}`",
                path.display()
            )),
        }
    }
}

/// The guest's host key, made at its first use, and the `known_hosts` file that pins it.
///
/// # Errors
/// A file cannot be read or written.
pub fn host_key(key: &Path, known_hosts: &Path, vm: &VmName) -> Result<String, KeyError> {
    let (text, private) = match load(key) {
        Ok(found) => found,
        // Missing, or emptied by a power cut: nobody but banger relies on it.
        Err(_) => {
            let text = openssh(key, new_key(&format!("{vm}.vm")).to_openssh(LineEnding::LF))?;
            files::write_private(key, text.as_bytes())?;
            load(key)?
        }
    };
    let public = openssh(key, private.public_key().to_openssh())?;
    files::write_private(known_hosts, format!("{vm},{vm}.vm {public}\n").as_bytes())?;
    Ok(text)
}

/// The `authorized_keys` line of the user's key. The key is made at its first use.
///
/// # Errors
/// A file cannot be read or written, or holds no key.
pub fn authorized_key(key: &Path) -> Result<String, KeyError> {
    // Only a directory of banger's own making is made private: the key may be elsewhere.
    if let Some(directory) = key.parent().filter(|directory| !directory.exists()) {
        files::make_private_directory(directory)?;
    }
    if !key.exists() {
        let text = openssh(key, new_key("banger").to_openssh(LineEnding::LF))?;
        // Whoever was quicker has made the key that counts.
        files::write_private_once(key, text.as_bytes())?;
    }
    let (_, private) = load(key)?;
    let public = openssh(key, private.public_key().to_openssh())?;
    let mut beside = key.as_os_str().to_owned();
    beside.push(".pub");
    files::write_private_once(Path::new(&beside), format!("{public}\n").as_bytes())?;
    Ok(public)
}

fn load(path: &Path) -> Result<(String, PrivateKey), KeyError> {
    let text = std::fs::read_to_string(path).map_err(FileError::new("read", path))?;
    let private = openssh(path, PrivateKey::from_openssh(&text))?;
    Ok((text, private))
}

fn new_key(comment: &str) -> PrivateKey {
    let mut seed = [0u8; 32];
    getrandom::fill(&mut seed).expect("the kernel's random source does not fail after boot");
    let pair = KeypairData::from(Ed25519Keypair::from_seed(&seed));
    PrivateKey::new(pair, comment).expect("an ed25519 pair is a key")
}

fn openssh<T>(path: &Path, result: Result<T, ssh_key::Error>) -> Result<T, KeyError> {
    result.map_err(|source| KeyError::Malformed {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn keys_are_made_once_private_and_pinned_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        let known = dir.path().join("known_hosts");
        let name: VmName = "calm-otter".parse().unwrap();
        let first = host_key(&key, &known, &name).unwrap();
        assert_eq!(host_key(&key, &known, &name).unwrap(), first);
        assert!(first.starts_with("-----BEGIN OPENSSH PRIVATE KEY-----"));
        assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let pinned = std::fs::read_to_string(&known).unwrap();
        assert!(
            pinned.starts_with("calm-otter,calm-otter.vm ssh-ed25519 AAAA"),
            "{pinned}"
        );
        std::fs::write(&key, "").unwrap();
        assert_ne!(host_key(&key, &known, &name).unwrap(), first);
    }

    #[test]
    fn a_key_of_the_users_own_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("ssh/id_ed25519");
        let line = authorized_key(&key).unwrap();
        assert!(line.starts_with("ssh-ed25519 "), "{line}");
        let before = std::fs::read(&key).unwrap();
        assert_eq!(authorized_key(&key).unwrap(), line);
        assert_eq!(std::fs::read(&key).unwrap(), before);
        std::fs::write(&key, "rubbish").unwrap();
        let error = authorized_key(&key).unwrap_err();
        assert!(error.hint().unwrap().contains("ssh-keygen"), "{error}");
    }
}

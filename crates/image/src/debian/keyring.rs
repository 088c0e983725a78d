//! The keys that sign Debian's archives, and whether one of them signed a text.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use pgp::composed::{CleartextSignedMessage, Deserializable, SignedPublicKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{Signature, SignatureType};
use pgp::types::{KeyDetails, Timestamp};

use super::mirror::Family;

/// Debian's archive keys as of the package `debian-archive-keyring`
/// 2023.3+deb12u2 (it has those of Debian 11 to 13), for hosts that
/// do not have it.
const EMBEDDED: &[u8] = include_bytes!("../../data/debian-archive-keyring.gpg");
/// Where Debian hosts have them, newer than ours perhaps.
const HOST: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Where the package `ubuntu-keyring` puts those of Ubuntu.
const UBUNTU: &str = "/usr/share/keyrings/ubuntu-archive-keyring.gpg";

/// Keys that are trusted to sign an archive.
#[derive(Clone, Debug)]
pub(crate) struct Keyring(Vec<SignedPublicKey>);

/// Why a signature does not count.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SignatureError {
    /// The text is not in the form of a signed message.
    #[error("it is not a signed text")]
    Malformed,
    /// No signature on it is by a key that is trusted.
    #[error("it is not signed by any of the {keys} trusted keys (signed by: {signers})")]
    Untrusted {
        /// How many keys are trusted.
        keys: usize,
        /// Ids of the keys that signed it.
        signers: String,
    },
}

impl Keyring {
    /// Debian's archive keys: the host's, where it has them, and ours.
    pub(crate) fn debian() -> Self {
        let mut keys = parse(EMBEDDED);
        keys.extend(
            std::fs::read(HOST)
                .map(|bytes| parse(&bytes))
                .unwrap_or_default(),
        );
        Self(keys)
    }

    /// Where mmdebstrap finds the keys: the host's file, else ours written to `directory`.
    /// `None` if the host lacks those that banger does not have either.
    pub(crate) fn file(family: Family, directory: &Path) -> std::io::Result<Option<PathBuf>> {
        let of_host = match family {
            Family::Debian => Path::new(HOST),
            Family::Ubuntu => Path::new(UBUNTU),
        };
        if of_host.is_file() {
            return Ok(Some(of_host.to_owned()));
        }
        if family == Family::Ubuntu {
            return Ok(None);
        }
        let path = directory.join("debian-archive-keyring.gpg");
        std::fs::write(&path, EMBEDDED)?;
        Ok(Some(path))
    }

    /// How a host gets the keys of Ubuntu.
    pub(crate) fn ubuntu_fix() -> String {
        format!(
            "install the package `ubuntu-keyring`, which brings {UBUNTU}, or copy that file from an Ubuntu host"
        )
    }

    /// Whether the host itself has Debian's keys.
    pub(crate) fn host_has_it() -> bool {
        Path::new(HOST).is_file()
    }

    /// Just these keys.
    #[cfg(test)]
    pub(crate) fn of(keys: &[u8]) -> Self {
        Self(parse(keys))
    }

    /// The keys of a file, binary or armored, added to these.
    pub(crate) fn with_file(mut self, path: &Path) -> std::io::Result<Self> {
        self.0.extend(parse(&std::fs::read(path)?));
        Ok(self)
    }

    /// The signed part of `message`, if a trusted key signed it and was valid at `now`.
    pub(crate) fn verify(
        &self,
        message: &str,
        now: jiff::Timestamp,
    ) -> Result<String, SignatureError> {
        let (message, _) =
            CleartextSignedMessage::from_string(message).map_err(|_| SignatureError::Malformed)?;
        let text = message.signed_text();
        let trusted = message.signatures().iter().any(|signature| {
            is_strong(signature)
                && self
                    .0
                    .iter()
                    .any(|key| signed_by(signature, key, text.as_bytes(), now))
        });
        match trusted {
            true => Ok(text),
            false => Err(SignatureError::Untrusted {
                keys: self.0.len(),
                signers: signers(message.signatures()),
            }),
        }
    }
}

fn signers(signatures: &[Signature]) -> String {
    let ids: Vec<String> = signatures
        .iter()
        .flat_map(|signature| signature.issuer_key_id())
        .map(|id| id.to_string())
        .collect();
    match ids.is_empty() {
        true => "nobody".to_owned(),
        false => ids.join(", "),
    }
}

/// SHA-1 and MD5 can be forged; certifications are no signatures of texts.
fn is_strong(signature: &Signature) -> bool {
    matches!(
        signature.typ(),
        Some(SignatureType::Text | SignatureType::Binary)
    ) && matches!(
        signature.hash_alg(),
        Some(HashAlgorithm::Sha256 | HashAlgorithm::Sha384 | HashAlgorithm::Sha512)
    )
}

/// Whether `key`, or one of its subkeys that may sign, made the signature and is neither
/// expired nor revoked. The primary keys are trusted as they stand in the keyring; subkeys
/// must be bound to theirs.
fn signed_by(
    signature: &Signature,
    key: &SignedPublicKey,
    text: &[u8],
    now: jiff::Timestamp,
) -> bool {
    let details = &key.details;
    let primary_is_valid = details.revocation_signatures.is_empty() && {
        let own = details
            .direct_signatures
            .iter()
            .chain(details.users.iter().flat_map(|user| &user.signatures))
            .filter(|one| one.issuer_key_id().contains(&&key.legacy_key_id()));
        !is_expired(key.created_at(), own, now)
    };
    if !primary_is_valid {
        return false;
    }
    if signature.verify(key, text).is_ok() {
        return true;
    }
    key.public_subkeys.iter().any(|subkey| {
        subkey
            .signatures
            .iter()
            .all(|one| one.typ() != Some(SignatureType::SubkeyRevocation))
            && subkey.signatures.iter().any(|one| one.key_flags().sign())
            && !is_expired(subkey.created_at(), subkey.signatures.iter(), now)
            && subkey.verify_bindings(&key.primary_key).is_ok()
            && signature.verify(subkey, text).is_ok()
    })
}

/// Whether the newest of the key's own signatures that says so lets it expire before `now`.
fn is_expired<'a>(
    created: Timestamp,
    own: impl Iterator<Item = &'a Signature>,
    now: jiff::Timestamp,
) -> bool {
    let newest = own.max_by_key(|signature| signature.created().map(|time| time.as_secs()));
    match newest.and_then(Signature::key_expiration_time) {
        Some(lifetime) if lifetime.as_secs() > 0 => {
            i64::from(created.as_secs()) + i64::from(lifetime.as_secs()) < now.as_second()
        }
        _ => false,
    }
}

/// The keys of a keyring file; what is not a key in it is skipped.
fn parse(bytes: &[u8]) -> Vec<SignedPublicKey> {
    if bytes.starts_with(b"-----BEGIN") {
        return SignedPublicKey::from_armor_many(Cursor::new(bytes))
            .map(|(keys, _)| keys.filter_map(Result::ok).collect())
            .unwrap_or_default();
    }
    SignedPublicKey::from_bytes_many(Cursor::new(bytes))
        .map(|keys| keys.filter_map(Result::ok).collect())
        .unwrap_or_default()
}

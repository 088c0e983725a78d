//! Which release of Firecracker banger installs, and what its archive must hash to.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::InstallError;
use crate::hash::{parse_sha256, show_sha256};

/// The version of the release.
const VERSION: &str = "1.16.1";
/// Where Firecracker's releases are.
const RELEASES: &str = "https://github.com/firecracker-microvm/firecracker/releases/download";
/// For each architecture the SHA-256 of the archive, as the release's own
/// `firecracker-v1.16.1-<arch>.tgz.sha256.txt` has it, and its length where that is known.
const ARCHIVES: [(&str, &str, Option<u64>); 2] = [
    (
        "x86_64",
        "382a02a869e4d6d5cb14c40577f9545e8458021ea8b0b2d3fc10ec14d9c242e6",
        Some(7_486_686),
    ),
    (
        "aarch64",
        "8d0e69f6d6f9a1724551f607f18504052c16c1828ee3d4d7b6e6c73380871e0e",
        None,
    ),
];

/// An archive of a release of Firecracker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// Its version, where that is known before it is here.
    pub version: Option<String>,
    /// Where it is.
    pub url: String,
    /// What it must hash to.
    pub sha256: Sha256Sum,
    /// Its length, where that is known; else the server is asked for it.
    pub size: Option<u64>,
}

impl Release {
    /// The one that banger knows for this host's architecture.
    ///
    /// # Errors
    /// There is none.
    pub fn pinned() -> Result<Self, InstallError> {
        Self::pinned_for(std::env::consts::ARCH)
    }

    fn pinned_for(arch: &str) -> Result<Self, InstallError> {
        let found = ARCHIVES.iter().find(|(known, ..)| *known == arch);
        let (_, sha256, size) = found.ok_or_else(|| InstallError::NoRelease(arch.to_owned()))?;
        Ok(Self {
            version: Some(VERSION.to_owned()),
            url: format!("{RELEASES}/v{VERSION}/firecracker-v{VERSION}-{arch}.tgz"),
            sha256: sha256.parse().expect("the constant is a hash"),
            size: *size,
        })
    }

    /// The same archive, from a mirror.
    #[must_use]
    pub fn at_mirror(self, url: String) -> Self {
        Self { url, ..self }
    }

    /// Any release's archive at `url`, with the hash that the user vouches for.
    pub fn at(url: String, sha256: Sha256Sum) -> Self {
        Self {
            version: None,
            url,
            sha256,
            size: None,
        }
    }
}

/// A SHA-256, written as 64 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sha256Sum(pub [u8; 32]);

/// A text is no SHA-256.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a SHA-256 has 64 hexadecimal digits")]
pub struct InvalidSha256;

impl FromStr for Sha256Sum {
    type Err = InvalidSha256;

    fn from_str(text: &str) -> Result<Self, InvalidSha256> {
        parse_sha256(text).map(Self).ok_or(InvalidSha256)
    }
}

impl fmt::Display for Sha256Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&show_sha256(&self.0))
    }
}

impl Serialize for Sha256Sum {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sha256Sum {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_architecture_has_its_release() {
        for arch in ["x86_64", "aarch64"] {
            let release = Release::pinned_for(arch).unwrap();
            let name = format!("/v1.16.1/firecracker-v1.16.1-{arch}.tgz");
            assert!(release.url.ends_with(&name), "{}", release.url);
        }
        let error = Release::pinned_for("s390x").unwrap_err();
        assert_eq!(
            error.to_string(),
            "Firecracker has no release for the architecture s390x"
        );
    }

    #[test]
    fn a_mirror_changes_where_the_archive_is_and_not_what_it_must_be() {
        let release = Release::pinned_for("x86_64").unwrap();
        let mirrored = release.clone().at_mirror("http://mirror/f.tgz".into());
        assert_eq!(mirrored.url, "http://mirror/f.tgz");
        assert_eq!(
            (mirrored.sha256, mirrored.size),
            (release.sha256, release.size)
        );
    }

    #[test]
    fn a_hash_is_read_as_it_is_written() {
        let sum = Release::pinned_for("aarch64").unwrap().sha256;
        assert_eq!(sum.to_string().parse(), Ok(sum));
        assert_eq!("12".parse::<Sha256Sum>(), Err(InvalidSha256));
        assert_eq!("é".repeat(32).parse::<Sha256Sum>(), Err(InvalidSha256));
    }
}

//! What names an image in a registry: `docker.io/library/alpine:3.20`, or `alpine:3.20` for short.
//!
//! The grammar is that of the distribution project, with its short forms: without a registry it
//! is Docker's, without a name space there it is `library`, and without a tag or digest it is
//! `latest`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::{ARTIFACT_NAME_MAX, ArtifactName};

/// The registry of a reference that names none.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Where its official images are.
const OFFICIAL: &str = "library";
const DEFAULT_TAG: &str = "latest";
/// Longest name of a repository, with its registry.
const LONGEST_NAME: usize = 255;
const LONGEST_TAG: usize = 128;

/// Why a text names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a reference to an image: {problem}")]
pub struct InvalidReference {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// An image in a registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageReference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl ImageReference {
    /// The registry's host, with its port if it has one.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository's name in the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, unless there is only a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest that the image must have.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What is asked of the registry: the digest if there is one, else the tag.
    pub fn target(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => DEFAULT_TAG,
        }
    }

    /// Whether the registry is on this host's loopback.
    pub fn is_on_loopback(&self) -> bool {
        let host = match self.registry.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => self.registry.split(':').next().unwrap_or_default(),
        };
        host == "localhost"
            || host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    }

    /// Whether a text can only be meant as a reference, as it is no name of an image of ours.
    pub fn is_meant_by(text: &str) -> bool {
        text.contains(['/', ':', '@'])
    }

    /// What the image is called here if the user chooses no name: the short form of the
    /// reference, in letters that a name may have.
    pub fn suggested_name(&self) -> ArtifactName {
        let path = match self.registry == DEFAULT_REGISTRY {
            true => self
                .repository
                .strip_prefix("library/")
                .unwrap_or(&self.repository)
                .to_owned(),
            false => format!("{}-{}", self.registry, self.repository),
        };
        let version = match (&self.tag, &self.digest) {
            (Some(tag), _) => tag.clone(),
            (None, Some(digest)) => digest.hex()[..12].to_owned(),
            (None, None) => DEFAULT_TAG.to_owned(),
        };
        let long = format!("{path}-{version}").to_lowercase();
        let legal: String = long
            .chars()
            .map(|c| match c {
                'a'..='z' | '0'..='9' | '.' | '_' => c,
                _ => '-',
            })
            .collect();
        let start = legal.trim_start_matches(['.', '_', '-']);
        // Its end tells two versions apart.
        let from = start.len().saturating_sub(ARTIFACT_NAME_MAX);
        let name = start[from..].trim_start_matches(['.', '_', '-']);
        let name = if name.is_empty() { "image" } else { name };
        name.parse().expect("only legal letters are left")
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl FromStr for ImageReference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let invalid = |problem| InvalidReference {
            text: text.to_owned(),
            problem,
        };
        let rest = text.strip_prefix("docker://").unwrap_or(text);
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest
                    .parse()
                    .map_err(|_| invalid("a digest is `sha256:` and 64 of 0-9 and a-f"))?;
                (rest, Some(digest))
            }
            None => (rest, None),
        };
        let (registry, rest) = match rest.split_once('/') {
            Some((host, rest)) if is_host(host) => (host, rest),
            _ => (DEFAULT_REGISTRY, rest),
        };
        let registry = match registry {
            "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
            other => other,
        };
        if !is_legal_host(registry) {
            return Err(invalid("its registry is not a host, or a host and a port"));
        }
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) => (path, Some(tag.to_owned())),
            None => (rest, None),
        };
        if tag.as_deref().is_some_and(|tag| !is_tag(tag)) {
            return Err(invalid(
                "a tag is 1 to 128 of letters, digits, `_`, `.` and `-`",
            ));
        }
        let repository = match registry == DEFAULT_REGISTRY && !path.contains('/') {
            true => format!("{OFFICIAL}/{path}"),
            false => path.to_owned(),
        };
        if !repository.split('/').all(is_component) {
            return Err(invalid(
                "a repository is made of a-z and 0-9, with `.`, `_`, `-` and `/` between them",
            ));
        }
        if registry.len() + 1 + repository.len() > LONGEST_NAME {
            return Err(invalid("it is longer than 255 letters"));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (tag, _) => tag,
        };
        Ok(Self {
            registry: registry.to_owned(),
            repository,
            tag,
            digest,
        })
    }
}

impl TryFrom<String> for ImageReference {
    type Error = InvalidReference;

    fn try_from(text: String) -> Result<Self, InvalidReference> {
        text.parse()
    }
}

impl From<ImageReference> for String {
    fn from(reference: ImageReference) -> Self {
        reference.to_string()
    }
}

/// The hash of a content, by which registries call it: `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

/// A text is no digest that banger can check.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a digest: `sha256:` and 64 of 0-9 and a-f")]
pub struct InvalidDigest(String);

impl Digest {
    const PREFIX: &str = "sha256:";

    /// The digest of what has that SHA-256.
    pub fn of(hash: [u8; 32]) -> Self {
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        Self(Self::PREFIX.to_owned() + &hex)
    }

    /// With `sha256:` before it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 64 digits.
    pub fn hex(&self) -> &str {
        &self.0[Self::PREFIX.len()..]
    }

    /// The hash itself.
    pub fn bytes(&self) -> [u8; 32] {
        let digits = self.hex().as_bytes();
        let value = |digit: u8| match digit {
            b'0'..=b'9' => digit - b'0',
            _ => digit - b'a' + 10,
        };
        std::array::from_fn(|at| value(digits[2 * at]) << 4 | value(digits[2 * at + 1]))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let is_hex = |hex: &str| {
            hex.len() == 64
                && hex
                    .bytes()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        match text.strip_prefix(Self::PREFIX).is_some_and(is_hex) {
            true => Ok(Self(text.to_owned())),
            false => Err(InvalidDigest(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidDigest;

    fn try_from(text: String) -> Result<Self, InvalidDigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

/// Whether the first part of a reference is a registry rather than a name space.
fn is_host(text: &str) -> bool {
    text.contains(['.', ':', '[']) || text == "localhost" || text.contains(char::is_uppercase)
}

fn is_legal_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']') else {
                return false;
            };
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            (
                "ipv6",
                port.strip_prefix(':').or((!port.is_empty()).then_some("")),
            )
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.split('.').all(is_label)
        && port.is_none_or(|port| {
            port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok()
        })
}

fn is_tag(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=LONGEST_TAG).contains(&text.len())
        && text.bytes().next().is_some_and(is_word)
        && text.bytes().all(|b| is_word(b) || b == b'.' || b == b'-')
}

/// Letters and digits with one `.`, one or two `_`, or any number of `-` between them.
fn is_component(text: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let ends_well = |c: Option<char>| c.is_some_and(is_letter);
    let is_separator = |between: &str| {
        matches!(between, "" | "." | "_" | "__") || between.bytes().all(|b| b == b'-')
    };
    ends_well(text.chars().next())
        && ends_well(text.chars().last())
        && text.split(is_letter).all(is_separator)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn shown(text: &str) -> String {
        match text.parse::<ImageReference>() {
            Ok(reference) => format!("{reference} ({})", reference.suggested_name()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn short_forms_mean_what_they_mean_to_docker() {
        let texts = [
            "alpine",
            "alpine:3.20",
            "docker://alpine:3.20",
            "user/app",
            "docker.io/alpine",
            "index.docker.io/library/alpine:Edge",
            "localhost/app",
            "localhost:5000/team/app:1.0",
            "[::1]:5000/app",
            "ghcr.io/owner/app_name--x:v1",
            &format!("alpine@sha256:{HEX}"),
            &format!("quay.io/a/b:1@sha256:{HEX}"),
        ];
        let shown: Vec<_> = texts.iter().map(|text| shown(text)).collect();
        insta::assert_snapshot!(shown.join("\n"), @r"
        docker.io/library/alpine:latest (alpine-latest)
        docker.io/library/alpine:3.20 (alpine-3.20)
        docker.io/library/alpine:3.20 (alpine-3.20)
        docker.io/user/app:latest (user-app-latest)
        docker.io/library/alpine:latest (alpine-latest)
        docker.io/library/alpine:Edge (alpine-edge)
        localhost/app:latest (localhost-app-latest)
        localhost:5000/team/app:1.0 (localhost-5000-team-app-1.0)
        [::1]:5000/app:latest (1--5000-app-latest)
        ghcr.io/owner/app_name--x:v1 (ghcr.io-owner-app_name--x-v1)
        docker.io/library/alpine@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef (alpine-0123456789ab)
        quay.io/a/b:1@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef (quay.io-a-b-1)
        ");
    }

    #[test]
    fn what_no_registry_could_have_is_refused() {
        for text in [
            "",
            "/a",
            "a/",
            "a//b",
            "Alpine",
            "a:",
            "a:-x",
            "a:b c",
            "a.b_/c",
            "a..b",
            "a___b",
            "../etc",
            "host:port/a",
            "host:99999/a",
            "-a.b/c",
            "[::1/a",
            "[x]:5/a",
            "a@sha256:12",
            "a@sha512:00",
            "https://ghcr.io/a",
            "user:pass@ghcr.io/a",
            "a?b",
            &"a".repeat(300),
        ] {
            assert!(text.parse::<ImageReference>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_loopback_registry_is_known_by_its_host() {
        for (text, is) in [
            ("localhost:5000/a", true),
            ("127.0.0.1:5000/a", true),
            ("127.3.2.1/a", true),
            ("[::1]:5000/a", true),
            ("localhost.example.com/a", false),
            ("127.0.0.1.example.com/a", false),
            ("alpine", false),
        ] {
            let reference: ImageReference = text.parse().unwrap();
            assert_eq!(reference.is_on_loopback(), is, "{text}");
        }
    }

    #[test]
    fn a_digest_and_its_bytes_are_the_same() {
        let digest: Digest = format!("sha256:{HEX}").parse().unwrap();
        assert_eq!(Digest::of(digest.bytes()), digest);
    }

    proptest! {
        #[test]
        fn a_reference_reads_back_as_it_is_shown(
            text in "([a-z0-9]{1,5}\\.[a-z]{1,3}(:[0-9]{1,4})?/)?[a-z0-9]{1,6}([._-][a-z0-9]{1,4})?(/[a-z]{1,4})?(:[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,9})?"
        ) {
            let reference: ImageReference = text.parse().unwrap();
            prop_assert_eq!(&reference.to_string().parse::<ImageReference>().unwrap(), &reference);
            reference.suggested_name();
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,60}") {
            if let Ok(reference) = text.parse::<ImageReference>() {
                reference.suggested_name();
                reference.is_on_loopback();
            }
        }
    }
}

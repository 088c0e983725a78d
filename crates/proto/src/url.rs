//! Where something is on the web: `https://example.org/x.tar.zst`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::ArtifactName;

/// Longest address that is taken.
const LONGEST: usize = 2048;

/// Why a text is no address that banger fetches from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not the address of a file on the web: {problem}")]
pub struct InvalidUrl {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// An address of HTTP or HTTPS. It holds no password, because addresses get into logs and
/// records.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WebUrl(String);

impl WebUrl {
    /// Whether a text can only be meant as an address.
    pub fn is_meant_by(text: &str) -> bool {
        text.contains("://")
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The host, without its port.
    pub fn host(&self) -> &str {
        let authority = split(&self.0).map_or("", |(_, authority, _)| authority);
        host(authority)
    }

    /// Whether nobody between here and there can read or change what comes: it is HTTPS, or
    /// does not leave this host.
    pub fn is_private(&self) -> bool {
        let host = self.host();
        self.0.starts_with("https://")
            || host == "localhost"
            || host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    }

    /// The last part of the path; empty if there is none.
    pub fn file_name(&self) -> &str {
        let path = split(&self.0).map_or("", |(_, _, path)| path);
        let path = path.split('?').next().unwrap_or_default();
        path.rsplit('/').next().unwrap_or_default()
    }

    /// What a bundle's content is called if nobody says: as the file is without its ending.
    pub fn suggested_name(&self) -> Option<ArtifactName> {
        let name = self.file_name();
        let stem = name.strip_suffix(".zst").unwrap_or(name);
        let stem = stem.strip_suffix(".tar").unwrap_or(stem);
        stem.to_lowercase().parse().ok()
    }

    /// The address of what stands beside it, with `suffix` behind the file's name.
    #[must_use]
    pub fn with_suffix(&self, suffix: &str) -> String {
        match self.0.split_once('?') {
            Some((path, query)) => format!("{path}{suffix}?{query}"),
            None => format!("{}{suffix}", self.0),
        }
    }
}

/// Scheme, authority, and what follows.
fn split(text: &str) -> Option<(&str, &str, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    Some((scheme, &rest[..end], &rest[end..]))
}

fn host(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    }
}

impl fmt::Display for WebUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for WebUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        // A password must not be repeated in the error.
        let shown = match text.rsplit_once('@') {
            Some((_, after)) => format!("…@{after}"),
            None => text.to_owned(),
        };
        let invalid = |problem| {
            Err(InvalidUrl {
                text: shown.clone(),
                problem,
            })
        };
        if text.len() > LONGEST || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return invalid("it is too long, or has letters that must be written as `%20`");
        }
        let Some((scheme, authority, rest)) = split(text) else {
            return invalid("it begins with `https://` or `http://`");
        };
        if !matches!(scheme, "https" | "http") {
            return invalid("it begins with `https://` or `http://`");
        }
        if authority.contains('@') {
            return invalid("it holds a user or password, which would be kept where others read");
        }
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
        if host(authority).is_empty() || !authority.bytes().all(legal) {
            return invalid("it names no host");
        }
        if rest.contains('#') {
            return invalid("a `#` has no meaning for a file");
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for WebUrl {
    type Error = InvalidUrl;

    fn try_from(text: String) -> Result<Self, InvalidUrl> {
        text.parse()
    }
}

impl From<WebUrl> for String {
    fn from(url: WebUrl) -> Self {
        url.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_are_taken_apart() {
        let told: Vec<String> = [
            "https://example.org/a/x.tar.zst",
            "http://example.org:8080/x?y=/z",
            "http://127.0.0.1:80/",
            "http://[::1]/x",
            "http://localhost",
            "http://localhost.example.org/x",
            "ftp://example.org/x",
            "https:///x",
            "https://user:secret@example.org/x",
            "https://example.org/x y",
            "https://example.org/x#y",
            "example.org/x",
        ]
        .iter()
        .map(|text| match text.parse::<WebUrl>() {
            Ok(url) => format!(
                "{} | {} | private: {}",
                url.host(),
                url.file_name(),
                url.is_private()
            ),
            Err(error) => error.to_string(),
        })
        .collect();
        insta::assert_snapshot!(told.join("\n"));
        let named = |text: &str| text.parse::<WebUrl>().unwrap().suggested_name();
        let name = named("https://example.org/a/Mine-6.9.tar.zst?x").unwrap();
        assert_eq!(name.as_str(), "mine-6.9");
        assert_eq!(named("https://example.org/"), None);
        let url: WebUrl = "https://example.org/c.toml?v=1".parse().unwrap();
        assert_eq!(
            url.with_suffix(".minisig"),
            "https://example.org/c.toml.minisig?v=1"
        );
    }

    proptest! {
        #[test]
        fn rubbish_never_panics(text in "(https?://|[a-z@:/?#\\[\\].]|\\PC){0,20}") {
            if let Ok(url) = text.parse::<WebUrl>() {
                prop_assert_eq!(url.to_string(), text);
                url.host();
                url.file_name();
                url.is_private();
            }
        }
    }
}

//! A suite's `InRelease`: who signed it, of when it is, and the hashes of its indexes.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::control;
use super::keyring::{Keyring, SignatureError};
use super::policy::Policy;
use crate::hash::{Expected, parse_sha256};

/// How far a release's date may be ahead of this host's clock: apt's own `Max-FutureTime`.
const FUTURE: jiff::SignedDuration = jiff::SignedDuration::from_secs(10);

/// Why a release does not count.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReleaseError {
    /// Its signature is not good.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// A field is missing or makes no sense.
    #[error("its field `{0}` is missing or malformed")]
    Field(&'static str),
    /// It is another suite's.
    #[error("it is the release of `{found}`")]
    OtherSuite {
        /// What it says it is.
        found: String,
    },
    /// It is from the future.
    #[error("it is dated {date}, and this host's clock says {now}")]
    Future {
        /// Its date.
        date: Timestamp,
        /// The host's time.
        now: Timestamp,
    },
    /// It is too old: someone may be holding back newer ones.
    #[error("it was valid until {until}, and this host's clock says {now}")]
    Expired {
        /// Its last moment.
        until: Timestamp,
        /// The host's time.
        now: Timestamp,
    },
}

/// A release that was checked.
#[derive(Clone, Debug)]
pub(crate) struct Release {
    /// Whether indexes can be fetched by their hash, which a mirror's update cannot disturb.
    pub(crate) by_hash: bool,
    files: BTreeMap<String, Expected>,
}

impl Release {
    /// Checks `text` as the `InRelease` of `suite` at the time `now`.
    pub(crate) fn check(
        text: &str,
        suite: &str,
        keyring: &Keyring,
        policy: Policy,
        now: Timestamp,
    ) -> Result<Self, ReleaseError> {
        // Only what the signature covers is looked at.
        Self::of_signed(&keyring.verify(text, now)?, suite, policy, now)
    }

    /// The same for what a trusted key is known to have signed.
    pub(super) fn of_signed(
        signed: &str,
        suite: &str,
        policy: Policy,
        now: Timestamp,
    ) -> Result<Self, ReleaseError> {
        let release = control::paragraphs(signed)
            .into_iter()
            .next()
            .ok_or(ReleaseError::Field("Suite"))?;
        let names = [release.get("Codename"), release.get("Suite")];
        if !names.contains(&Some(suite)) {
            let found = names
                .into_iter()
                .flatten()
                .next()
                .unwrap_or_default()
                .to_owned();
            return Err(ReleaseError::OtherSuite { found });
        }
        let date = release
            .get("Date")
            .and_then(parse_date)
            .ok_or(ReleaseError::Field("Date"))?;
        if policy.check_date && date > now + FUTURE {
            return Err(ReleaseError::Future { date, now });
        }
        if let Some(text) = release.get("Valid-Until") {
            let until = parse_date(text).ok_or(ReleaseError::Field("Valid-Until"))?;
            if policy.check_date && policy.check_valid_until && until < now {
                return Err(ReleaseError::Expired { until, now });
            }
        }
        Ok(Self {
            by_hash: release.get("Acquire-By-Hash") == Some("yes"),
            files: parse_hashes(release.get("SHA256").ok_or(ReleaseError::Field("SHA256"))?)
                .ok_or(ReleaseError::Field("SHA256"))?,
        })
    }

    /// What the file `path`, relative to the suite, must look like.
    pub(crate) fn file(&self, path: &str) -> Option<&Expected> {
        self.files.get(path)
    }
}

/// `Fri, 20 Nov 2026 00:12:41 UTC`.
fn parse_date(text: &str) -> Option<Timestamp> {
    let zone_as_offset = text.trim().replace("UTC", "+0000").replace("GMT", "+0000");
    let parsed = jiff::fmt::rfc2822::parse(&zone_as_offset).ok()?;
    Some(parsed.timestamp())
}

fn parse_hashes(text: &str) -> Option<BTreeMap<String, Expected>> {
    text.lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            let mut words = line.split_whitespace();
            let sha256 = parse_sha256(words.next()?)?;
            let size = words.next()?.parse().ok()?;
            Some((words.next()?.to_owned(), Expected { sha256, size }))
        })
        .collect()
}

//! What `banger doctor` finds: one [`Check`] for each thing that a VM needs of the host.
//!
//! The crates that need a thing make its check, and use the same one when they fail for the
//! lack of it, so that doctor and a failed start say the same words.

use serde::{Deserialize, Serialize};

/// The verdict on one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckStatus {
    /// As it should be.
    Pass,
    /// Works, but less well than it could.
    Warn,
    /// Something will not work until this is mended.
    Fail,
}

/// One thing that banger needs of the host, and how it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Stable name for scripts, such as `net.tun`.
    pub id: String,
    /// What is checked, in a few words.
    pub title: String,
    /// The verdict.
    pub status: CheckStatus,
    /// What was found.
    pub detail: String,
    /// What to type or change, where the user can act.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fix: Option<String>,
}

impl Check {
    /// A check that found what it looked for.
    pub fn pass(id: &str, title: &str, detail: impl Into<String>) -> Self {
        Self {
            id: id.to_owned(),
            title: title.to_owned(),
            status: CheckStatus::Pass,
            detail: detail.into(),
            fix: None,
        }
    }

    /// A check that found something that works less well than it could.
    pub fn warn(id: &str, title: &str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            status: CheckStatus::Warn,
            fix: Some(fix.into()),
            ..Self::pass(id, title, detail)
        }
    }

    /// A check that found something that must be mended.
    pub fn fail(id: &str, title: &str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            status: CheckStatus::Fail,
            fix: Some(fix.into()),
            ..Self::pass(id, title, detail)
        }
    }
}

/// Everything that `banger doctor` found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Version of banger that made the report.
    pub version: String,
    /// The checks, in the order in which a VM start needs them.
    pub checks: Vec<Check>,
}

impl Report {
    /// The worst verdict among the checks.
    pub fn worst(&self) -> CheckStatus {
        self.checks
            .iter()
            .map(|check| check.status)
            .max()
            .unwrap_or(CheckStatus::Pass)
    }
}

//! Engines of a host, and how the one that is not packaged gets there.

use serde::{Deserialize, Serialize};

use super::EngineKind;

/// An engine, and whether this host can use it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engine {
    /// Which one; with the node, its id.
    pub name: EngineKind,
    /// The host.
    pub node: String,
    /// Whether VMs can run on it here.
    pub usable: bool,
    /// How VMs run on it, or why they cannot, in a sentence.
    pub reason: String,
    /// What the user can do about what it lacks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The version of its program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Where its program is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// How its program was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<ProgramOrigin>,
    /// Why new VMs get this engine where nothing else is said; absent of the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<String>,
    /// What banger has installed of it, whether that is used or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installed: Option<InstalledEngine>,
    /// What banger would install of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<EngineRelease>,
}

/// How an engine's program was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProgramOrigin {
    /// The config names it.
    Config,
    /// It is in `PATH`.
    Path,
    /// banger has installed it.
    Installed,
}

impl ProgramOrigin {
    /// The word in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Path => "path",
            Self::Installed => "installed",
        }
    }
}

/// What banger has installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstalledEngine {
    /// Its version.
    pub version: String,
    /// The program.
    pub path: String,
    /// The jailer, if it came with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jailer: Option<String>,
    /// The SHA-256 of the archive, or of the program where that came alone.
    pub sha256: String,
    /// Where it came from: an address, or words.
    pub source: String,
    /// When it was installed, RFC 3339.
    pub installed_at: String,
}

/// A release of an engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineRelease {
    /// Its version.
    pub version: String,
    /// Where its archive is.
    pub url: String,
    /// What the archive must hash to.
    pub sha256: String,
}

/// A request for an engine to be downloaded and installed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstallEngine {
    /// The SHA-256 of the archive, where that is not the one of [`Engine::release`]: the
    /// config's `firecracker_url` names another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_has_the_same_word_everywhere() {
        for origin in [
            ProgramOrigin::Config,
            ProgramOrigin::Path,
            ProgramOrigin::Installed,
        ] {
            assert_eq!(serde_json::to_value(origin).unwrap(), origin.as_str());
        }
    }
}

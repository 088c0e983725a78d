//! Which archive each suite is fetched from.

use std::fmt;
use std::path::Path;

use serde::Deserialize;

use super::sources::{self, Source};

/// Debian's mirror for hosts that have none of their own.
const DEFAULT_MAIN: &str = "http://ftp.debian.org/debian";

/// Whose archives they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Family {
    Debian,
    Ubuntu,
}

impl Family {
    /// Its name.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Debian => "Debian",
            Self::Ubuntu => "Ubuntu",
        }
    }

    /// The key of the config that names a mirror.
    pub(crate) fn config_key(self) -> &'static str {
        match self {
            Self::Debian => "debian_mirror",
            Self::Ubuntu => "ubuntu_mirror",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Names under which a host may have a release of Debian.
const RELEASES: [&str; 11] = [
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "sid",
    "oldoldstable",
    "oldstable",
    "stable",
    "testing",
    "unstable",
];

/// The archives to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mirror {
    family: Family,
    main: Source,
    updates: Source,
    /// Absent where the user named a mirror, as then nothing else is asked, and where the
    /// host knows none.
    security: Option<Source>,
    /// Who chose it, in words.
    pub(crate) chosen_by: &'static str,
}

impl Mirror {
    /// The mirror that the config names, else that of the host's apt (whose configuration is
    /// below `root`), else Debian's own; `None` if none is known. Blocks for reading a few files.
    pub(crate) fn choose(family: Family, configured: Option<&str>, root: &Path) -> Option<Self> {
        if let Some(uri) = configured {
            let main = plain_source(uri);
            // Ubuntu's mirrors have the security suites, and Debian's do not.
            let security = (family == Family::Ubuntu).then(|| main.clone());
            return Some(Self {
                family,
                updates: main.clone(),
                main,
                security,
                chosen_by: "the config",
            });
        }
        let sources = sources::of_family(family, root);
        let of_kind = |kind: Kind| {
            sources
                .iter()
                .find(|source| Kind::of(family, &source.suite) == Some(kind))
                .cloned()
        };
        let security = of_kind(Kind::Security);
        let Some(main) = of_kind(Kind::Main) else {
            if family == Family::Ubuntu {
                return None;
            }
            let main = plain_source(DEFAULT_MAIN);
            return Some(Self {
                family,
                updates: main.clone(),
                main,
                security,
                chosen_by: "banger's default",
            });
        };
        Some(Self {
            family,
            updates: of_kind(Kind::Updates).unwrap_or_else(|| main.clone()),
            main,
            security,
            chosen_by: "the host's apt configuration",
        })
    }

    /// Debian's mirror, of which there always is one: as [`Mirror::choose`].
    pub(crate) fn debian(configured: Option<&str>, root: &Path) -> Self {
        Self::choose(Family::Debian, configured, root).expect("Debian has a default")
    }

    /// Where `suite` is fetched from; `None` if no archive is known for it.
    pub(crate) fn source(&self, suite: &str) -> Option<Source> {
        let source = match Kind::of(self.family, suite)? {
            Kind::Main => &self.main,
            Kind::Updates => &self.updates,
            Kind::Security => self.security.as_ref()?,
        };
        Some(Source {
            suite: suite.to_owned(),
            ..source.clone()
        })
    }

    /// The suites that a system of `release` is made from.
    pub(crate) fn system(&self, release: &str) -> Vec<Source> {
        [
            release.to_owned(),
            format!("{release}-updates"),
            format!("{release}-security"),
        ]
        .iter()
        .filter_map(|suite| self.source(suite))
        .collect()
    }

    /// The main archive's address.
    pub(crate) fn uri(&self) -> &str {
        &self.main.uri
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Main,
    Updates,
    Security,
}

impl Kind {
    fn of(family: Family, suite: &str) -> Option<Self> {
        let (release, kind) = match suite.rsplit_once('-') {
            Some((release, "security")) => (release, Self::Security),
            Some((release, "updates")) => (release, Self::Updates),
            _ => (suite, Self::Main),
        };
        // Ubuntu's other suites are told apart by what follows their dash.
        let is_release = match family {
            Family::Debian => RELEASES.contains(&release),
            Family::Ubuntu => !release.contains('-'),
        };
        is_release.then_some(kind)
    }
}

fn plain_source(uri: &str) -> Source {
    Source {
        uri: uri.trim_end_matches('/').to_owned(),
        suite: String::new(),
        components: vec!["main".to_owned()],
        signed_by: None,
        check_valid_until: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(list: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("etc/apt")).unwrap();
        std::fs::write(root.path().join("etc/apt/sources.list"), list).unwrap();
        root
    }

    fn suites(mirror: &Mirror) -> Vec<String> {
        mirror
            .system("bookworm")
            .iter()
            .map(|source| format!("{} {}", source.uri, source.suite))
            .collect()
    }

    const HOST: &str = "deb http://a.example/debian trixie main\n\
        deb http://a.example/debian-security trixie-security main\n";

    #[test]
    fn the_hosts_archives_serve_other_releases_too() {
        let mirror = Mirror::debian(None, host(HOST).path());
        assert_eq!(mirror.chosen_by, "the host's apt configuration");
        assert_eq!(
            suites(&mirror),
            [
                "http://a.example/debian bookworm",
                "http://a.example/debian bookworm-updates",
                "http://a.example/debian-security bookworm-security",
            ]
        );
        assert_eq!(mirror.source("bookworm-backports-sloppy"), None);
    }

    #[test]
    fn the_config_comes_before_the_host_and_the_default_last() {
        let mirror = Mirror::debian(Some("http://b.example/debian/"), host("").path());
        assert_eq!(
            suites(&mirror),
            [
                "http://b.example/debian bookworm",
                "http://b.example/debian bookworm-updates"
            ]
        );
        let mirror = Mirror::debian(
            None,
            host("deb http://vendor.example/ubuntu noble main\n").path(),
        );
        assert_eq!(mirror.uri(), "http://ftp.debian.org/debian");
        assert_eq!(suites(&mirror).len(), 2);
    }

    #[test]
    fn ubuntu_comes_from_the_host_or_the_config_and_else_from_nowhere() {
        let ubuntu = |configured, list: &str| {
            let mirror = Mirror::choose(Family::Ubuntu, configured, host(list).path())?;
            let sources = mirror.system("noble");
            let shown = sources.iter().map(|it| format!("{} {}", it.uri, it.suite));
            Some(shown.collect::<Vec<_>>().join(", "))
        };
        assert_eq!(ubuntu(None, HOST), None);
        let host = "deb http://a.example/ubuntu/ jammy-backports main\n\
            deb http://a.example/ubuntu/ jammy main universe\n\
            deb http://s.example/ubuntu jammy-security main\n\
            deb http://ppa.example/team/ppa/ubuntu jammy main\n";
        assert_eq!(
            ubuntu(None, host).unwrap(),
            "http://a.example/ubuntu noble, http://a.example/ubuntu noble-updates, \
             http://s.example/ubuntu noble-security"
        );
        assert_eq!(
            ubuntu(Some("http://b.example/ubuntu"), host).unwrap(),
            "http://b.example/ubuntu noble, http://b.example/ubuntu noble-updates, \
             http://b.example/ubuntu noble-security"
        );
    }
}

//! Which archive each suite is fetched from.

use std::path::Path;

use super::sources::{self, Source};

/// The mirror of hosts that have none of their own.
const DEFAULT_MAIN: &str = "http://ftp.debian.org/debian";

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
    /// below `root`), else Debian's own. Blocks for reading a few files.
    pub(crate) fn choose(configured: Option<&str>, root: &Path) -> Self {
        let sources = sources::debian_sources(root);
        let of_kind = |kind: Kind| {
            sources
                .iter()
                .find(|source| Kind::of(&source.suite) == Some(kind))
                .cloned()
        };
        if let Some(uri) = configured {
            let main = plain_source(uri);
            return Self {
                updates: main.clone(),
                main,
                security: None,
                chosen_by: "the config (debian_mirror)",
            };
        }
        let security = of_kind(Kind::Security);
        let Some(main) = of_kind(Kind::Main) else {
            let main = plain_source(DEFAULT_MAIN);
            return Self {
                updates: main.clone(),
                main,
                security,
                chosen_by: "banger's default",
            };
        };
        Self {
            updates: of_kind(Kind::Updates).unwrap_or_else(|| main.clone()),
            main,
            security,
            chosen_by: "the host's apt configuration",
        }
    }

    /// Where `suite` is fetched from; `None` if no archive is known for it.
    pub(crate) fn source(&self, suite: &str) -> Option<Source> {
        let source = match Kind::of(suite)? {
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
    fn of(suite: &str) -> Option<Self> {
        let (release, kind) = match suite.rsplit_once('-') {
            Some((release, "security")) => (release, Self::Security),
            Some((release, "updates")) => (release, Self::Updates),
            _ => (suite, Self::Main),
        };
        RELEASES.contains(&release).then_some(kind)
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
        let mirror = Mirror::choose(None, host(HOST).path());
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
        let mirror = Mirror::choose(Some("http://b.example/debian/"), host("").path());
        assert_eq!(
            suites(&mirror),
            [
                "http://b.example/debian bookworm",
                "http://b.example/debian bookworm-updates"
            ]
        );
        let mirror = Mirror::choose(
            None,
            host("deb http://vendor.example/ubuntu noble main\n").path(),
        );
        assert_eq!(mirror.uri(), "http://ftp.debian.org/debian");
        assert_eq!(suites(&mirror).len(), 2);
    }
}

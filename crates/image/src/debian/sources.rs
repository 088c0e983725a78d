//! Which archives of Debian and Ubuntu the host's own apt uses.

use std::path::{Path, PathBuf};

use super::control::{self, Paragraph};
use super::mirror::Family;

/// One suite of one archive, as apt is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// Address of the archive, without a slash at the end.
    pub(crate) uri: String,
    /// The suite, such as `bookworm-security`.
    pub(crate) suite: String,
    /// Components, such as `main`.
    pub(crate) components: Vec<String>,
    /// A keyring of its own.
    pub(crate) signed_by: Option<PathBuf>,
    /// What it says about `Valid-Until`, if anything.
    pub(crate) check_valid_until: Option<bool>,
}

/// The sources of the family itself in the apt configuration below `root` (`/` for the host's).
/// Files that cannot be read count as empty.
pub(crate) fn of_family(family: Family, root: &Path) -> Vec<Source> {
    let apt = root.join("etc/apt");
    let mut files = vec![apt.join("sources.list")];
    if let Ok(entries) = std::fs::read_dir(apt.join("sources.list.d")) {
        let mut more: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        more.sort();
        files.extend(more);
    }
    files
        .iter()
        .flat_map(|file| {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("list") => parse_list(&text),
                Some("sources") => parse_deb822(&text),
                _ => Vec::new(),
            }
        })
        .filter(|source| is_of(family, source))
        .collect()
}

/// Sources in the form of one line each (`sources.list(5)`).
pub(super) fn parse_list(text: &str) -> Vec<Source> {
    text.lines().flat_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Source> {
    let line = line.split('#').next().unwrap_or_default().trim();
    let rest = line.strip_prefix("deb")?;
    let rest = rest.strip_prefix([' ', '\t'])?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let option = |name: &str| {
        options
            .split_whitespace()
            .filter_map(|option| option.split_once('='))
            .find_map(|(key, value)| key.eq_ignore_ascii_case(name).then_some(value))
    };
    let mut words = rest.split_whitespace();
    Some(Source {
        uri: words.next()?.trim_end_matches('/').to_owned(),
        suite: words.next()?.to_owned(),
        components: words.map(str::to_owned).collect(),
        signed_by: option("signed-by").and_then(keyring_path),
        check_valid_until: option("check-valid-until").and_then(parse_bool),
    })
}

/// Sources in the form of paragraphs.
pub(super) fn parse_deb822(text: &str) -> Vec<Source> {
    control::paragraphs(text)
        .iter()
        .filter(|paragraph| {
            let word = |field| words(paragraph, field);
            word("Types").contains(&"deb")
                && paragraph.get("Enabled").and_then(parse_bool) != Some(false)
        })
        .flat_map(|paragraph| {
            words(paragraph, "URIs").into_iter().flat_map(move |uri| {
                words(paragraph, "Suites")
                    .into_iter()
                    .map(move |suite| Source {
                        uri: uri.trim_end_matches('/').to_owned(),
                        suite: suite.to_owned(),
                        components: words(paragraph, "Components")
                            .into_iter()
                            .map(str::to_owned)
                            .collect(),
                        signed_by: paragraph.get("Signed-By").and_then(keyring_path),
                        check_valid_until: paragraph.get("Check-Valid-Until").and_then(parse_bool),
                    })
            })
        })
        .collect()
}

fn words<'a>(paragraph: &'a Paragraph, field: &str) -> Vec<&'a str> {
    paragraph
        .get(field)
        .unwrap_or_default()
        .split_whitespace()
        .collect()
}

/// A keyring's path; fingerprints and keys in place are not paths.
fn keyring_path(value: &str) -> Option<PathBuf> {
    value
        .starts_with('/')
        .then(|| PathBuf::from(value.split([',', ' ', '\n']).next().unwrap_or(value)))
}

/// apt's own words for true and false.
pub(super) fn parse_bool(value: &str) -> Option<bool> {
    match value.trim().to_ascii_lowercase().as_str() {
        "yes" | "true" | "1" | "on" | "with" | "enable" => Some(true),
        "no" | "false" | "0" | "off" | "without" | "disable" => Some(false),
        _ => None,
    }
}

/// Whether this is the family's own archive, or a mirror of it, that can be fetched without a
/// password. Other vendors use the same suites' names; what tells them apart is the path,
/// which a mirror keeps: `…/debian`, `…/debian-security`, `…/ubuntu`, and a snapshot's time behind
/// it. People's own archives at Ubuntu have a path of the same end, and `ppa` before it.
fn is_of(family: Family, source: &Source) -> bool {
    let Some((scheme, rest)) = source.uri.split_once("://") else {
        return false;
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut segments = path.rsplit('/');
    let last = segments.next().unwrap_or_default();
    let is_time = last.len() == 16 && last.starts_with("20") && last.ends_with('Z');
    let name = if is_time {
        segments.next().unwrap_or_default()
    } else {
        last
    };
    let is_its_own = match family {
        Family::Debian => matches!(name, "debian" | "debian-security"),
        Family::Ubuntu => matches!(name, "ubuntu" | "ubuntu-ports") && !path.contains("ppa"),
    };
    matches!(scheme, "http" | "https")
        && !authority.contains('@')
        && is_its_own
        && source
            .components
            .iter()
            .any(|component| component == "main")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIST: &str = "\
# deb http://commented.example/debian bookworm main
deb http://mirror.example/debian/ bookworm main contrib # the rest
deb-src http://mirror.example/debian bookworm main
deb [ arch=amd64 signed-by=/etc/k.gpg check-valid-until=no ] https://a.example/pub/debian bookworm-updates main
deb https://download.docker.example/linux/debian bookworm stable
deb http://vendor.example/debian/12/prod bookworm main
deb http://user:secret@private.example/debian bookworm main
deb cdrom:[x]/ bookworm main
deb";

    const DEB822: &str = "\
Types: deb deb-src
URIs: http://mirror.example/debian-security http://snapshot.example/archive/debian/20250520T000000Z
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----

Types: deb
URIs: http://mirror.example/debian
Suites: trixie trixie-updates
Components: main non-free-firmware
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Enabled: no
Types: deb
URIs: http://disabled.example/debian
Suites: sid
Components: main
";

    #[test]
    fn only_debians_own_sources_are_taken() {
        let root = tempfile::tempdir().unwrap();
        let parts = root.path().join("etc/apt/sources.list.d");
        std::fs::create_dir_all(&parts).unwrap();
        std::fs::write(root.path().join("etc/apt/sources.list"), LIST).unwrap();
        std::fs::write(parts.join("debian.sources"), DEB822).unwrap();
        std::fs::write(parts.join("ignored.save"), LIST).unwrap();
        let found: Vec<String> = of_family(Family::Debian, root.path())
            .iter()
            .map(|source| {
                let signed_by = source.signed_by.as_deref().unwrap_or(Path::new("-"));
                format!(
                    "{} {} {} {:?}",
                    source.uri,
                    source.suite,
                    signed_by.display(),
                    source.check_valid_until
                )
            })
            .collect();
        insta::assert_snapshot!(found.join("\n"), @r"
        http://mirror.example/debian bookworm - None
        https://a.example/pub/debian bookworm-updates /etc/k.gpg Some(false)
        http://mirror.example/debian-security bookworm-security - None
        http://snapshot.example/archive/debian/20250520T000000Z bookworm-security - None
        http://mirror.example/debian trixie /usr/share/keyrings/debian-archive-keyring.gpg None
        http://mirror.example/debian trixie-updates /usr/share/keyrings/debian-archive-keyring.gpg None
        ");
    }

    proptest! {
        #[test]
        fn rubbish_never_panics(text in "(deb|Types: deb|URIs:|[ \\[\\]=:/@#\\n\\PC]){0,60}") {
            let _ = parse_list(&text).iter().filter(|source| is_of(Family::Debian, source)).count();
            let _ = parse_deb822(&text).iter().filter(|source| is_of(Family::Debian, source)).count();
        }
    }
}

//! Finding a package in one suite of an archive, along the chain of hashes from its
//! signature.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::control::{self, Paragraph, Paragraphs};
use super::deb;
use super::keyring::Keyring;
use super::policy::Policy;
use super::release::{Release, ReleaseError};
use super::sources::Source;
use crate::download::{DownloadError, Downloaded, Downloads};
use crate::hash::{Expected, parse_sha256, show_sha256};
use crate::progress::Reporter;

/// Largest `InRelease` that is read; Debian's own are 200 KiB.
const LARGEST_RELEASE: u64 = 8 << 20;

/// Why a package could not be found or fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    /// Something could not be downloaded.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// A keyring that the host's apt configuration names cannot be read.
    #[error("could not read the keyring `{path}`")]
    Keyring {
        /// Its path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The release is not to be trusted.
    #[error("the release at {url} is not to be trusted")]
    Release {
        /// Its address.
        url: String,
        /// Why not.
        #[source]
        source: ReleaseError,
    },
    /// The release lists no index of packages.
    #[error("the release at {url} lists no index of packages for {architecture}")]
    NoIndex {
        /// The release's address.
        url: String,
        /// Debian's name of the architecture.
        architecture: &'static str,
    },
    /// The index could not be read.
    #[error("could not read the index of packages of {suite}")]
    Index {
        /// The suite.
        suite: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// There is no such package.
    #[error("there is no package `{package}` in {suite} at {uri}")]
    NoPackage {
        /// What was looked for.
        package: String,
        /// Where.
        suite: String,
        /// Where.
        uri: String,
    },
    /// The index says nonsense of the package.
    #[error("the index of packages of {suite} says nothing usable of `{package}`")]
    BadPackage {
        /// The package.
        package: String,
        /// The suite.
        suite: String,
    },
}

/// A package, as its index has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    /// The packages it depends on; of alternatives the first.
    pub(crate) depends: Vec<String>,
    /// Path below the archive's address.
    pub(super) filename: String,
    pub(crate) expected: Expected,
}

/// One suite, its release checked and its index fetched.
pub(crate) struct Suite {
    source: Source,
    index: Downloaded,
    compression: &'static str,
}

impl Suite {
    /// Fetches the release of `source` and its index of packages.
    pub(crate) async fn open(
        source: &Source,
        architecture: &'static str,
        keyring: Keyring,
        mut policy: Policy,
        downloads: &Downloads,
        progress: &Reporter,
    ) -> Result<Self, ArchiveError> {
        policy.check_valid_until = source.check_valid_until.unwrap_or(policy.check_valid_until);
        let keyring = match &source.signed_by {
            Some(path) => keyring
                .with_file(path)
                .map_err(|error| ArchiveError::Keyring {
                    path: path.clone(),
                    source: error,
                })?,
            None => keyring,
        };
        let base = format!("{}/dists/{}", source.uri, source.suite);
        let url = format!("{base}/InRelease");
        let text = downloads.text(&url, LARGEST_RELEASE).await?;
        let release = Release::check(&text, &source.suite, &keyring, policy, Timestamp::now())
            .map_err(|error| ArchiveError::Release {
                url: url.clone(),
                source: error,
            })?;
        let (index, compression) = fetch_index(
            &base,
            &release,
            architecture,
            &source.suite,
            downloads,
            progress,
        )
        .await?
        .ok_or(ArchiveError::NoIndex { url, architecture })?;
        Ok(Self {
            source: source.clone(),
            index,
            compression,
        })
    }

    /// The newest version of the package `name`. Blocks while the index is read.
    pub(crate) fn find(&self, name: &str) -> Result<Package, ArchiveError> {
        let newest = newest(self.index.path(), self.compression, name).map_err(|source| {
            ArchiveError::Index {
                suite: self.source.suite.clone(),
                source,
            }
        })?;
        let found = newest.ok_or_else(|| ArchiveError::NoPackage {
            package: name.to_owned(),
            suite: self.source.suite.clone(),
            uri: self.source.uri.clone(),
        })?;
        parse_package(&found).ok_or_else(|| ArchiveError::BadPackage {
            package: name.to_owned(),
            suite: self.source.suite.clone(),
        })
    }

    /// Downloads a package; its hash is checked.
    pub(crate) async fn fetch(
        &self,
        package: &Package,
        downloads: &Downloads,
        progress: &Reporter,
    ) -> Result<Downloaded, ArchiveError> {
        let url = format!("{}/{}", self.source.uri, package.filename);
        let what = format!("download {} {}", package.name, package.version);
        Ok(downloads
            .file(&url, &package.expected, &what, progress)
            .await?)
    }

    /// Where packages come from, in words.
    pub(crate) fn origin(&self) -> String {
        format!("{} {}", self.source.uri, self.source.suite)
    }
}

async fn fetch_index(
    base: &str,
    release: &Release,
    architecture: &str,
    suite: &str,
    downloads: &Downloads,
    progress: &Reporter,
) -> Result<Option<(Downloaded, &'static str)>, ArchiveError> {
    let directory = format!("main/binary-{architecture}");
    let what = format!("download the package index of {suite}");
    for compression in [".xz", ".gz"] {
        let path = format!("{directory}/Packages{compression}");
        let Some(expected) = release.file(&path) else {
            continue;
        };
        let by_hash = format!(
            "{base}/{directory}/by-hash/SHA256/{}",
            show_sha256(&expected.sha256)
        );
        let by_name = format!("{base}/{path}");
        let first = if release.by_hash { &by_hash } else { &by_name };
        let fetched = match downloads.file(first, expected, &what, progress).await {
            // Mirrors may say that they have files by hash and not have them.
            Err(DownloadError::Status { .. }) if release.by_hash => {
                downloads.file(&by_name, expected, &what, progress).await
            }
            other => other,
        };
        return Ok(Some((fetched?, compression)));
    }
    Ok(None)
}

fn newest(index: &Path, compression: &str, name: &str) -> std::io::Result<Option<Paragraph>> {
    let stream = deb::decompress(compression, BufReader::new(File::open(index)?))
        .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::Unsupported))??;
    let mut newest: Option<Paragraph> = None;
    for paragraph in Paragraphs::new(BufReader::with_capacity(1 << 16, stream)) {
        let paragraph = paragraph?;
        if paragraph.get("Package") != Some(name) {
            continue;
        }
        let version =
            |paragraph: &Paragraph| paragraph.get("Version").unwrap_or_default().to_owned();
        let is_newer = newest.as_ref().is_none_or(|best| {
            control::compare_versions(&version(&paragraph), &version(best)).is_gt()
        });
        if is_newer {
            newest = Some(paragraph);
        }
    }
    Ok(newest)
}

pub(super) fn parse_package(paragraph: &Paragraph) -> Option<Package> {
    let filename = paragraph.get("Filename")?;
    let is_safe = !filename.starts_with('/')
        && filename
            .split('/')
            .all(|part| !part.is_empty() && part != "..");
    is_safe.then_some(())?;
    Some(Package {
        name: paragraph.get("Package")?.to_owned(),
        version: paragraph.get("Version")?.to_owned(),
        depends: paragraph
            .get("Depends")
            .map(parse_depends)
            .unwrap_or_default(),
        filename: filename.to_owned(),
        expected: Expected {
            sha256: parse_sha256(paragraph.get("SHA256")?)?,
            size: paragraph.get("Size")?.parse().ok()?,
        },
    })
}

/// The names in `a (= 1), b | c, d:any`: the first of each alternative.
fn parse_depends(text: &str) -> Vec<String> {
    text.split(',')
        .filter_map(|one| {
            let name = one.trim().split([' ', '(', '|', '[', ':', '\n']).next()?;
            (!name.is_empty()).then(|| name.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_of_each_alternative_is_a_dependency() {
        assert_eq!(
            parse_depends(
                "linux-image-6.12.117+deb12-cloud-amd64 (= 6.12.117-1), kmod,\ninitramfs-tools (>= 0.1) | x, a:any"
            ),
            [
                "linux-image-6.12.117+deb12-cloud-amd64",
                "kmod",
                "initramfs-tools",
                "a"
            ]
        );
        assert!(parse_depends(" , ,").is_empty());
    }

    #[test]
    fn a_package_outside_of_the_archive_is_refused() {
        for filename in ["../x.deb", "/x.deb", "pool//x.deb", "pool/../../x.deb"] {
            let text = format!(
                "Package: x\nVersion: 1\nFilename: {filename}\nSize: 1\nSHA256: {}\n",
                "0".repeat(64)
            );
            assert_eq!(
                parse_package(&control::paragraphs(&text)[0]),
                None,
                "{filename}"
            );
        }
    }

    proptest! {
        #[test]
        fn rubbish_never_panics(text in "((Package|Filename|SHA256|Size|Depends): [\\PC]{0,10}\n){0,8}") {
            for paragraph in control::paragraphs(&text) {
                let _ = parse_package(&paragraph);
            }
        }
    }
}

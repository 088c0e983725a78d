//! How an image is made from its recipe: Debian's packages, installed by mmdebstrap, whose
//! tar stream becomes an ext4 file system on the way.

mod bootstrap;
mod customise;

use std::error::Error;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use banger_process::ProcessFailure;
use banger_proto::error::ErrorKind;
use banger_proto::id::ImageId;
use banger_proto::name::ArtifactName;
use banger_proto::size::ByteSize;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::attempt::Attempt;
use crate::catalog::{ImageEntry, Recipe};
use crate::check;
use crate::debian::keyring::Keyring;
use crate::debian::mirror::{Family, Mirror};
use crate::debian::policy;
use crate::disk;
use crate::draft::Draft;
use crate::ext4::Writer;
use crate::hash::show_sha256;
use crate::manifest::{self, Manifest};
use crate::oci::OciFailure;
use crate::progress::Reporter;
use crate::seed;
use crate::store::{ImportError, StoreConfig, StoreError};
use crate::tarball;
use crate::tool::{MMDEBSTRAP, ToolError};

use bootstrap::{Bootstrap, Processes};

/// File name of the root file system in an image's directory.
pub(crate) const ROOTFS: &str = "rootfs.ext4";
/// File name of what work disks are cloned from.
pub(crate) const WORK_SEED: &str = "work-seed.ext4";
/// Longest time that a build may take.
const LIMIT: Duration = Duration::from_secs(90 * 60);
/// Time that mmdebstrap has to clean up after itself before it is killed.
const GRACE: Duration = Duration::from_secs(10);
/// Room that a build needs: the unpacked tree and the file system made of it.
const ROOM: u64 = 3 << 30;

/// Why an image could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Nothing of that name is stored or in the catalog.
    #[error("there is no image `{name}`")]
    Unknown {
        /// What was asked for.
        name: ArtifactName,
        /// The catalog's names.
        known: Vec<String>,
    },
    /// None of its sources could be had.
    #[error("none of the sources of the image `{name}` could be had")]
    NoSource {
        /// The image.
        name: ArtifactName,
        /// What was tried, and why it failed.
        #[source]
        tried: Attempt,
    },
    /// A source is for hosts of another kind.
    #[error("it is for {arch}, and this host is {}", std::env::consts::ARCH)]
    OtherArch {
        /// Its architecture.
        arch: String,
    },
    /// No mirror of a distribution is known.
    #[error("no mirror of {family} is known")]
    NoMirror {
        /// Which distribution.
        family: &'static str,
        /// What to do.
        fix: String,
    },
    /// The keys of a distribution are not to be had.
    #[error("this host does not have the keys of {family}'s archive")]
    NoKeyring {
        /// Which distribution.
        family: &'static str,
        /// What to do.
        fix: String,
    },
    /// A tool of the host is missing.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// This user may not map the user ids that a build needs.
    #[error("{problem}")]
    UserIds {
        /// What is missing.
        problem: String,
        /// What to do.
        fix: String,
    },
    /// mmdebstrap failed.
    #[error(transparent)]
    Bootstrap(ProcessFailure),
    /// A step of making it failed.
    #[error("could not {step}")]
    Step {
        /// What was being done.
        step: &'static str,
        /// Why not.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// It took too long.
    #[error("building the image took longer than {} minutes", LIMIT.as_secs() / 60)]
    Timeout,
    /// An image of another maker could not be had.
    #[error(transparent)]
    Oci(#[from] OciFailure),
    /// What came as a bundle could not be taken.
    #[error(transparent)]
    Import(Box<ImportError>),
    /// The store could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// All who waited for it went away.
    #[error("getting the image was called off")]
    Cancelled,
    /// Making it, which others waited for too, failed.
    #[error(transparent)]
    Shared(Arc<ImageError>),
}

impl ImageError {
    /// What kind of failure it is, for the API.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unknown { .. } => ErrorKind::NotFound,
            Self::NoSource { .. } => ErrorKind::Unavailable,
            Self::OtherArch { .. } => ErrorKind::Invalid,
            Self::Tool(ToolError::Missing { .. })
            | Self::UserIds { .. }
            | Self::NoMirror { .. }
            | Self::NoKeyring { .. } => ErrorKind::Precondition,
            Self::Import(error) => error.kind(),
            Self::Tool(_) | Self::Bootstrap(_) | Self::Step { .. } => ErrorKind::Failed,
            Self::Timeout => ErrorKind::Timeout,
            Self::Oci(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Shared(error) => error.kind(),
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown { name, known } => Some(unknown_hint(name.as_str(), known)),
            Self::Tool(error) => error.hint(),
            Self::NoSource { tried, .. } => tried.hint(),
            Self::UserIds { fix, .. } | Self::NoMirror { fix, .. } | Self::NoKeyring { fix, .. } => {
                Some(fix.clone())
            }
            Self::Import(error) => error.hint(),
            Self::Bootstrap(failure)
                if failure
                    .stderr
                    .iter()
                    .any(|line| line.contains("No space left on device")) =>
            {
                Some("free some space, or move banger's state elsewhere".to_owned())
            }
            Self::Bootstrap(_) | Self::Timeout => Some(
                "check the network and the Debian mirror (`banger doctor` shows which one is used), \
                 then try again"
                    .to_owned(),
            ),
            Self::Oci(error) => error.hint(),
            Self::Store(error) => error.hint(),
            Self::Shared(error) => error.hint(),
            Self::OtherArch { .. } | Self::Step { .. } | Self::Cancelled => None,
        }
    }
}

fn step<E: Into<Box<dyn Error + Send + Sync>>>(step: &'static str) -> impl FnOnce(E) -> ImageError {
    move |source| ImageError::Step {
        step,
        source: source.into(),
    }
}

/// How alike two names must be (Jaro-Winkler, 0 to 1) to take one for the other's misspelling.
const ALIKE: f64 = 0.9;

fn unknown_hint(name: &str, known: &[String]) -> String {
    let near = known
        .iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(alike, _)| *alike >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let all = known.join(", ");
    match near {
        Some((_, near)) => format!("did you mean `{near}`? There are: {all}"),
        None => format!("there are: {all}"),
    }
}

/// Makes the image `entry` by `recipe` and publishes it below `images`.
pub(crate) async fn make(
    config: Arc<StoreConfig>,
    entry: &ImageEntry,
    recipe: &Recipe,
    images: PathBuf,
    progress: Reporter,
    cancel: CancellationToken,
) -> Result<ImageId, ImageError> {
    MMDEBSTRAP.find()?;
    check::require_user_ids()?;
    let processes = Processes::default();
    let build = {
        let (entry, recipe) = (entry.clone(), recipe.clone());
        let processes = processes.clone();
        move || build(&config, &entry, &recipe, &images, &progress, &processes)
    };
    let mut build = tokio::task::spawn_blocking(build);
    let why = tokio::select! {
        outcome = &mut build => return outcome.map_err(step("finish the build"))?,
        () = cancel.cancelled() => ImageError::Cancelled,
        () = tokio::time::sleep(LIMIT) => ImageError::Timeout,
    };
    processes.stop();
    if tokio::time::timeout(GRACE, &mut build).await.is_err() {
        processes.kill();
        // Its directory goes when it ends; there is nothing more to wait for here.
        let _ = tokio::time::timeout(GRACE, &mut build).await;
    }
    Err(why)
}

/// Builds the image. Blocks for minutes; ends early when the processes are stopped.
fn build(
    config: &StoreConfig,
    entry: &ImageEntry,
    recipe: &Recipe,
    images: &Path,
    progress: &Reporter,
    processes: &Processes,
) -> Result<ImageId, ImageError> {
    let name = &entry.name;
    let id = ImageId::new();
    disk::require_room(&images.join(id.as_str()), ROOM).map_err(step("build the image"))?;
    let family = recipe.family;
    let mirror = Mirror::choose(family, config.mirror(family), Path::new("/"));
    let mirror = mirror.ok_or_else(|| no_mirror(family))?;
    let draft = Draft::new(images).map_err(step("make a directory for the image"))?;
    let scratch =
        bootstrap::Scratch::new(draft.path()).map_err(step("make a directory for the build"))?;
    let rootfs = draft.path().join(ROOTFS);
    let file = File::create_new(&rootfs).map_err(step("create the root file system"))?;

    let sources = mirror.system(&recipe.release);
    let keyring = Keyring::file(family, draft.path()).map_err(step("write the archive's keys"))?;
    let bootstrap = Bootstrap {
        recipe,
        sources: &sources,
        keyring: keyring.ok_or_else(no_keyring)?,
        policy: policy::of_host(),
        scratch: scratch.path(),
    };
    let report = bootstrap::StageReporter::new(name, progress);
    let (digest, length) = bootstrap.run(processes, &report, |stream| {
        write_rootfs(stream, file, draft.path(), &id, name, progress)
    })?;
    drop(scratch);

    let manifest = Manifest {
        id: id.clone(),
        name: name.clone(),
        digest: format!("sha256:{}", show_sha256(&digest)),
        source: format!("packages of {} from {}", entry.distro, mirror.uri()),
        distro: entry.distro.clone(),
        arch: std::env::consts::ARCH.to_owned(),
        created_at: jiff::Timestamp::now().to_string(),
        size: ByteSize::from_bytes(crate::store::size_on_disk(draft.path())),
        rootfs_length: length,
        kernel: entry.kernel.clone(),
        env: [("LANG".to_owned(), "C.UTF-8".to_owned())].into(),
        user: None,
        workdir: None,
        entrypoint: Vec::new(),
        cmd: Vec::new(),
        reference: None,
        labels: std::collections::BTreeMap::new(),
        elsewhere: None,
    };
    manifest::write(&manifest, draft.path()).map_err(step("write the image's manifest"))?;
    draft
        .publish(&images.join(id.as_str()))
        .map_err(step("publish the image"))?;
    Ok(id)
}

fn no_mirror(family: Family) -> ImageError {
    ImageError::NoMirror {
        family: family.as_str(),
        fix: format!(
            "name one as `{}` in the config: an archive's address, as in the apt configuration \
             of a host that runs {family}",
            family.config_key()
        ),
    }
}

fn no_keyring() -> ImageError {
    ImageError::NoKeyring {
        family: Family::Ubuntu.as_str(),
        fix: Keyring::ubuntu_fix(),
    }
}

/// Turns the tar stream into a file system and its work seed; returns the stream's hash and the
/// disk's length.
fn write_rootfs(
    stream: &mut dyn Read,
    file: File,
    draft: &Path,
    id: &ImageId,
    name: &ArtifactName,
    progress: &Reporter,
) -> Result<([u8; 32], u64), ImageError> {
    let mut hashed = Hashed {
        stream,
        hasher: Sha256::new(),
        count: 0,
        name,
        progress,
    };
    let mut writer = Writer::new(file, uuid(id));
    tarball::copy_into(BufReader::with_capacity(1 << 18, &mut hashed), &mut writer)
        .map_err(step("turn the archive into a file system"))?;
    customise::apply(&mut writer).map_err(step("adapt the file system"))?;
    seed::make(&mut writer, draft);
    let summary = writer.finish().map_err(step("finish the file system"))?;
    Ok((hashed.hasher.finalize().into(), summary.length))
}

/// Hashes and counts what is read.
struct Hashed<'a> {
    stream: &'a mut dyn Read,
    hasher: Sha256,
    count: u64,
    name: &'a ArtifactName,
    progress: &'a Reporter,
}

impl Read for Hashed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.count += count as u64;
        self.progress
            .bytes(&format!("write the image {}", self.name), self.count, None);
        Ok(count)
    }
}

/// The file system's UUID is the image's id.
pub(crate) fn uuid(id: &ImageId) -> [u8; 16] {
    let digits = id.as_str().as_bytes();
    std::array::from_fn(|at| {
        let pair = std::str::from_utf8(&digits[at * 2..at * 2 + 2]).unwrap_or("0");
        u8::from_str_radix(pair, 16).unwrap_or(0)
    })
}

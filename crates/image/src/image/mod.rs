//! How an image is made from its recipe: Debian's packages, installed by mmdebstrap, whose
//! tar stream becomes an ext4 file system on the way.

mod bootstrap;
mod customise;
mod program;

use std::collections::BTreeMap;
use std::convert::Infallible;
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
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::attempt::Attempt;
use crate::catalog::{CatalogRefused, ImageEntry, Recipe};
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
use program::Programs;

/// File name of the root file system in an image's directory.
pub(crate) const ROOTFS: &str = "rootfs.ext4";
/// File name of what work disks are cloned from.
pub(crate) const WORK_SEED: &str = "work-seed.ext4";
/// The label that names what an image should hold, and could not be had.
const LEFT_OUT: &str = "banger.left-out";
/// Longest time that a build may take.
const LIMIT: Duration = Duration::from_secs(90 * 60);
/// Time that mmdebstrap has to clean up after itself before it is killed.
const GRACE: Duration = Duration::from_secs(10);
/// Room that a build needs: the unpacked tree and the file system made of it.
const ROOM: u64 = 3 << 30;
/// The same with what npm installs, which is large.
const ROOM_WITH_NPM: u64 = 6 << 30;

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
    /// A catalog came that nobody may use.
    #[error(transparent)]
    Catalog(#[from] Arc<CatalogRefused>),
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
            Self::Catalog(error) => error.kind(),
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
            Self::Catalog(error) => error.hint(),
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
    // Of the work that is not a process's. The build may outlive a limit, too.
    let called_off = cancel.child_token();
    let (fetched, programs) = oneshot::channel();
    let fetch = {
        let (config, progress) = (Arc::clone(&config), progress.clone());
        let wanted = recipe.programs.clone();
        async move {
            // Nobody wants them any more if the build has failed.
            let _ = fetched.send(Programs::fetch(&config, wanted, &progress).await);
            std::future::pending::<Infallible>().await
        }
    };
    let build = {
        let (entry, recipe) = (entry.clone(), recipe.clone());
        let (processes, wanted) = (processes.clone(), called_off.clone());
        move || {
            let making = Making {
                config: &config,
                entry: &entry,
                recipe: &recipe,
                progress: &progress,
            };
            making.build(&images, &processes, programs, &wanted)
        }
    };
    let mut build = tokio::task::spawn_blocking(build);
    let why = tokio::select! {
        outcome = &mut build => return outcome.map_err(step("finish the build"))?,
        never = fetch => match never {},
        () = cancel.cancelled() => ImageError::Cancelled,
        () = tokio::time::sleep(LIMIT) => ImageError::Timeout,
    };
    called_off.cancel();
    processes.stop();
    if tokio::time::timeout(GRACE, &mut build).await.is_err() {
        processes.kill();
        // Its directory goes when it ends; there is nothing more to wait for here.
        let _ = tokio::time::timeout(GRACE, &mut build).await;
    }
    Err(why)
}

/// An image that is being made by its recipe.
struct Making<'a> {
    config: &'a StoreConfig,
    entry: &'a ImageEntry,
    recipe: &'a Recipe,
    progress: &'a Reporter,
}

impl Making<'_> {
    /// Builds the image. Blocks for minutes; ends early when the processes are stopped.
    fn build(
        &self,
        images: &Path,
        processes: &Processes,
        programs: oneshot::Receiver<Programs>,
        cancel: &CancellationToken,
    ) -> Result<ImageId, ImageError> {
        let (entry, recipe) = (self.entry, self.recipe);
        let id = ImageId::new();
        let room = match recipe.npm.is_empty() {
            true => ROOM,
            false => ROOM_WITH_NPM,
        };
        disk::require_room(&images.join(id.as_str()), room).map_err(step("build the image"))?;
        let family = recipe.family;
        let mirror = Mirror::choose(family, self.config.mirror(family), Path::new("/"));
        let mirror = mirror.ok_or_else(|| no_mirror(family))?;
        let draft = Draft::new(images).map_err(step("make a directory for the image"))?;
        let scratch = bootstrap::Scratch::new(draft.path())
            .map_err(step("make a directory for the build"))?;
        let rootfs = draft.path().join(ROOTFS);
        let file = File::create_new(&rootfs).map_err(step("create the root file system"))?;

        let sources = mirror.system(&recipe.release);
        let keyring =
            Keyring::file(family, draft.path()).map_err(step("write the archive's keys"))?;
        let bootstrap = Bootstrap {
            recipe,
            sources: &sources,
            keyring: keyring.ok_or_else(no_keyring)?,
            policy: policy::of_host(),
            scratch: scratch.path(),
        };
        let report = bootstrap::StageReporter::new(&entry.name, self.progress);
        let mut writer = Writer::new(file, uuid(&id));
        let digest = bootstrap.run(processes, &report, |stream| self.read(stream, &mut writer))?;
        drop(scratch);
        let programs = programs
            .blocking_recv()
            .map_err(|_| ImageError::Cancelled)?;
        programs
            .install(&mut writer)
            .map_err(step("put programs into the file system"))?;
        seed::make(&mut writer, draft.path(), cancel);
        if cancel.is_cancelled() {
            return Err(ImageError::Cancelled);
        }
        let summary = writer.finish().map_err(step("finish the file system"))?;

        let mut labels = BTreeMap::new();
        if !programs.left_out.is_empty() {
            labels.insert(LEFT_OUT.to_owned(), programs.left_out.join(" "));
        }
        let manifest = Manifest {
            id: id.clone(),
            name: entry.name.clone(),
            digest: format!("sha256:{}", show_sha256(&digest)),
            source: format!("packages of {} from {}", entry.distro, mirror.uri()),
            distro: entry.distro.clone(),
            arch: std::env::consts::ARCH.to_owned(),
            created_at: jiff::Timestamp::now().to_string(),
            size: ByteSize::from_bytes(crate::store::size_on_disk(draft.path())),
            rootfs_length: summary.length,
            kernel: entry.kernel.clone(),
            env: [("LANG".to_owned(), "C.UTF-8".to_owned())].into(),
            user: None,
            workdir: None,
            entrypoint: Vec::new(),
            cmd: Vec::new(),
            reference: None,
            labels,
            elsewhere: None,
        };
        manifest::write(&manifest, draft.path()).map_err(step("write the image's manifest"))?;
        draft
            .publish(&images.join(id.as_str()))
            .map_err(step("publish the image"))?;
        Ok(id)
    }

    /// Turns the tar stream into a file system; returns the stream's hash.
    fn read(&self, stream: &mut dyn Read, writer: &mut Writer) -> Result<[u8; 32], ImageError> {
        let mut hashed = Hashed {
            stream,
            hasher: Sha256::new(),
            count: 0,
            name: &self.entry.name,
            progress: self.progress,
        };
        tarball::copy_into(BufReader::with_capacity(1 << 18, &mut hashed), writer)
            .map_err(step("turn the archive into a file system"))?;
        customise::apply(writer).map_err(step("adapt the file system"))?;
        Ok(hashed.hasher.finalize().into())
    }
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

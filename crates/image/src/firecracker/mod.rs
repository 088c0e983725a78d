//! The Firecracker that banger installs, for hosts whose package manager has none.
//!
//! ```text
//! state/engines/firecracker/current -> 1.16.1
//! state/engines/firecracker/1.16.1/{firecracker, jailer, manifest.json}
//! ```
//!
//! A release is downloaded and its hash checked before anything of it is unpacked ([`unpack`]).
//! It is unpacked into a draft, run once there, and published by a rename; then `current` is
//! made to name it. A directory that `current` does not name is of no use to anyone, and goes.
//! Whether a program works is for the [`Judge`] to say: this crate knows no engines.

mod pin;
mod unpack;

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use banger_proto::error::ErrorKind;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::disk;
use crate::download::{DownloadError, Downloaded, Downloads};
use crate::draft::{self, Draft};
use crate::flight::{FlightError, Flights};
use crate::hash::Expected;
use crate::manifest::MANIFEST_FILE;
use crate::progress::Reporter;
use crate::upload::{Upload, UploadError};

pub use self::pin::{InvalidSha256, Release, Sha256Sum};

/// Names the release that is used.
const CURRENT: &str = "current";
/// What the programs are called.
const FIRECRACKER: &str = "firecracker";
const JAILER: &str = "jailer";
/// Most bytes that an archive or a program may have: that of 1.16.1 has 7 million.
const FILE_MAX: u64 = 256 << 20;
/// How often a program is run that is said to be open for writing.
const BUSY_ATTEMPTS: u32 = 5;
/// Wait before it is run again.
const BUSY_WAIT: Duration = Duration::from_millis(50);

/// How every gzip file begins (RFC 1952, 2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Any error.
pub type AnyError = Box<dyn Error + Send + Sync>;
/// Runs a program and gives the version of Firecracker that it tells, such as `1.16.1`; the
/// error says why it is of no use. Blocks for some milliseconds.
pub type Judge = Arc<dyn Fn(&Path) -> Result<String, AnyError> + Send + Sync>;

/// What an [`Installer`] must know.
#[derive(Clone)]
pub struct InstallerConfig {
    /// Where releases are installed, such as `state/engines/firecracker`.
    pub directory: PathBuf,
    /// Where downloads are kept; may be emptied at any time.
    pub downloads: PathBuf,
    /// Tells whether a program works.
    pub judge: Judge,
}

/// What is installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// Its version, as it tells it.
    pub version: String,
    /// The SHA-256 of the archive, or of the program where that came alone.
    pub sha256: Sha256Sum,
    /// Where it came from, in words.
    pub source: String,
    /// When it was installed, RFC 3339.
    pub installed_at: String,
    /// The program.
    #[serde(skip)]
    pub program: PathBuf,
    /// The jailer, if it came with it.
    #[serde(skip)]
    pub jailer: Option<PathBuf>,
}

/// Where a release comes from.
#[derive(Debug)]
pub enum Source {
    /// An archive to be downloaded.
    Download(Release),
    /// A file that the user has: an archive, or the program alone.
    File {
        /// The file.
        file: Upload,
        /// What it must hash to. Without one an archive must be that of the pinned release,
        /// and a program is believed.
        sha256: Option<Sha256Sum>,
    },
}

/// Why Firecracker could not be installed or removed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// It could not be downloaded.
    #[error(transparent)]
    Download(AnyError),
    /// A file does not have the hash that the user says.
    #[error("the file's SHA-256 is {found}, not {wanted}")]
    OtherHash {
        /// What it is.
        found: Sha256Sum,
        /// What it should be.
        wanted: Sha256Sum,
    },
    /// A file is an archive, and not the one that banger knows.
    #[error(
        "the archive is not that of Firecracker {version}: its SHA-256 is {found}, not {wanted}"
    )]
    OtherArchive {
        /// The release that banger knows.
        version: String,
        /// What it is.
        found: Sha256Sum,
        /// What it should be.
        wanted: Sha256Sum,
    },
    /// The file that was given cannot be read.
    #[error(transparent)]
    Upload(#[from] UploadError),
    /// There is no release of it for this host.
    #[error("Firecracker has no release for the architecture {0}")]
    NoRelease(String),
    /// It cannot be unpacked.
    #[error("could not unpack the archive")]
    Unpack(#[source] AnyError),
    /// It does not work here.
    #[error("the program does not work on this host")]
    Unusable(#[source] AnyError),
    /// What it calls its version is none.
    #[error("the program calls its version `{0}`")]
    Version(String),
    /// The disk is full.
    #[error(transparent)]
    Room(AnyError),
    /// A file operation failed.
    #[error("could not {action} `{}`", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// All who waited for it went away.
    #[error("the installation was called off")]
    Cancelled,
    /// An installation that others waited for too failed.
    #[error(transparent)]
    Shared(Arc<InstallError>),
}

impl InstallError {
    /// What kind of failure it is, for the API.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::OtherHash { .. }
            | Self::OtherArchive { .. }
            | Self::Unpack(_)
            | Self::Version(_) => ErrorKind::Invalid,
            Self::NoRelease(_) | Self::Room(_) | Self::Unusable(_) => ErrorKind::Precondition,
            Self::Download(_) | Self::Io { .. } => ErrorKind::Failed,
            Self::Upload(error) => error.kind(),
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Shared(error) => error.kind(),
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Download(_) => Some(
                "check the network and `firecracker_url` in the config, or give a file that you \
                 have: `banger engine install firecracker --from FILE`"
                    .to_owned(),
            ),
            Self::OtherArchive { found, .. } => Some(format!(
                "for another release, compare this hash with the one that its publisher shows, \
                 and say so: `--sha256 {found}`"
            )),
            Self::Unpack(_) => Some(
                "give a release's archive (`firecracker-vX.Y.Z-ARCH.tgz`), or the program \
                 `firecracker` itself"
                    .to_owned(),
            ),
            Self::Unusable(error) => unusable_hint(error.as_ref()),
            Self::Shared(error) => error.hint(),
            Self::OtherHash { .. }
            | Self::NoRelease(_)
            | Self::Version(_)
            | Self::Room(_)
            | Self::Upload(_)
            | Self::Io { .. }
            | Self::Cancelled => None,
        }
    }
}

/// What to do about a program that cannot be run.
fn unusable_hint(error: &(dyn Error + 'static)) -> Option<String> {
    let hint = match Errno::from_io_error(system_error(error)?)? {
        Errno::NOEXEC => {
            format!("it must be a program for {}", std::env::consts::ARCH)
        }
        Errno::ACCESS => {
            "programs may not run from banger's state directory: see whether its file system is \
             mounted `noexec`"
                .to_owned()
        }
        _ => return None,
    };
    Some(hint)
}

/// The system's error at the bottom of another.
fn system_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    let mut below = Some(error);
    while let Some(error) = below {
        if let Some(system) = error.downcast_ref::<io::Error>() {
            return Some(system);
        }
        below = error.source();
    }
    None
}

/// Installs Firecracker. Cheap to clone.
#[derive(Clone)]
pub struct Installer {
    shared: Arc<Shared>,
}

struct Shared {
    config: InstallerConfig,
    flights: Flights<Key, Installed, InstallError>,
    uploads: AtomicU64,
    /// Held by whoever changes what is installed.
    place: Mutex<()>,
}

/// What makes two installations the same one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Download(String, Sha256Sum),
    /// The number of the upload: no two are the same.
    Upload(u64),
}

impl Installer {
    /// Removes what makers that died left behind. Blocks for a few file operations.
    pub fn open(config: InstallerConfig) -> Self {
        let current = fs::read_link(config.directory.join(CURRENT)).ok();
        remove_others(&config.directory, current.as_deref());
        Self {
            shared: Arc::new(Shared {
                config,
                flights: Flights::new(),
                uploads: AtomicU64::new(0),
                place: Mutex::new(()),
            }),
        }
    }

    /// What is installed, if anything is. Blocks for a few file operations.
    pub fn installed(&self) -> Option<Installed> {
        let directory = self.shared.config.directory.join(CURRENT);
        let program = directory.join(FIRECRACKER);
        if !program.is_file() {
            return None;
        }
        let json = fs::read(directory.join(MANIFEST_FILE)).ok()?;
        let jailer = directory.join(JAILER);
        Some(Installed {
            program,
            jailer: jailer.is_file().then_some(jailer),
            ..serde_json::from_slice(&json).ok()?
        })
    }

    /// Installs what comes from `source`, in place of what is installed.
    ///
    /// Callers that want the same download at once share one piece of work. Dropping one
    /// caller's future leaves the others alone; when the last goes, the work is called off,
    /// and all that it leaves is the part of a download with which the next one goes on.
    ///
    /// # Errors
    /// It cannot be had, is not what it should be, or does not work here; then what was
    /// installed before still is.
    pub async fn install(
        &self,
        source: Source,
        progress: &Reporter,
    ) -> Result<Installed, InstallError> {
        let shared = Arc::clone(&self.shared);
        let key = match &source {
            Source::Download(release) => Key::Download(release.url.clone(), release.sha256),
            Source::File { .. } => Key::Upload(shared.uploads.fetch_add(1, Ordering::Relaxed)),
        };
        let start = |progress: Reporter, cancel: CancellationToken| async move {
            shared.make(source, &progress, &cancel).await
        };
        let joined = self.shared.flights.join(&key, progress, start).await;
        joined.map_err(|error| match error {
            FlightError::Failed(error) => InstallError::Shared(error),
            FlightError::Lost => InstallError::Cancelled,
        })
    }

    /// Removes what is installed; `None` if nothing was.
    ///
    /// # Errors
    /// It cannot be removed.
    pub async fn remove(&self) -> Result<Option<Installed>, InstallError> {
        let _place = self.shared.place.lock().await;
        let installer = self.clone();
        blocking(move || {
            let before = installer.installed();
            let directory = &installer.shared.config.directory;
            let current = directory.join(CURRENT);
            match fs::remove_file(&current) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("remove", &current)(error));
                }
                _ => {}
            }
            remove_others(directory, None);
            Ok(before)
        })
        .await
    }

    /// A place for a file that comes from a client.
    ///
    /// # Errors
    /// The file cannot be made.
    pub async fn upload(&self) -> Result<Upload, UploadError> {
        let directory = &self.shared.config.downloads;
        tokio::fs::create_dir_all(directory)
            .await
            .map_err(|source| UploadError::Io {
                action: "make a place for",
                directory: directory.clone(),
                source,
            })?;
        Upload::new(directory, FILE_MAX).await
    }
}

impl Shared {
    async fn make(
        self: Arc<Self>,
        source: Source,
        progress: &Reporter,
        cancel: &CancellationToken,
    ) -> Result<Installed, InstallError> {
        let got = tokio::select! {
            got = self.get(source, progress) => got?,
            () = cancel.cancelled() => return Err(InstallError::Cancelled),
        };
        let _place = self.place.lock().await;
        let directory = self.config.directory.clone();
        let (draft, got) = blocking(move || {
            fs::create_dir_all(&directory).map_err(io_error("make the directory", &directory))?;
            let draft = Draft::new(&directory).map_err(io_error("make a draft in", &directory))?;
            got.unpack_into(draft.path())?;
            Ok((draft, got))
        })
        .await?;
        let version = self.judge(&draft).await?;
        if cancel.is_cancelled() {
            return Err(InstallError::Cancelled);
        }
        let installed = Installed {
            version,
            sha256: got.sha256,
            source: got.from,
            installed_at: now(),
            program: PathBuf::new(),
            jailer: None,
        };
        let shared = Arc::clone(&self);
        blocking(move || shared.publish(draft, &installed)).await?;
        if let Some(download) = got.download {
            // What is installed is worth more than the archive that it came in.
            let _ = tokio::fs::remove_file(download.path()).await;
        }
        let installer = Installer {
            shared: Arc::clone(&self),
        };
        let installed = blocking(move || Ok(installer.installed())).await?;
        // Whoever removed it meanwhile did so on purpose.
        installed.ok_or(InstallError::Cancelled)
    }

    /// Has the file here, with the hash that it should have.
    async fn get(&self, source: Source, progress: &Reporter) -> Result<Got, InstallError> {
        let release = match source {
            Source::Download(release) => release,
            Source::File { file, sha256 } => {
                let file = file.into_file().await?;
                return blocking(move || Got::of_file(file, sha256)).await;
            }
        };
        let downloads = self.downloads().await?;
        let url = release.url;
        let size = match release.size {
            Some(size) => size,
            None => {
                let length = downloads.length(&url, FILE_MAX).await;
                length.map_err(download_error)?
            }
        };
        let expected = Expected {
            sha256: release.sha256.0,
            size,
        };
        let download = downloads.file(&url, &expected, "download Firecracker", progress);
        let download = download.await.map_err(download_error)?;
        let path = download.path();
        Ok(Got {
            file: File::open(path).map_err(io_error("open", path))?,
            kind: Kind::Archive,
            sha256: release.sha256,
            from: url,
            download: Some(download),
        })
    }

    async fn downloads(&self) -> Result<Downloads, InstallError> {
        let directory = self.config.downloads.clone();
        blocking(move || {
            fs::create_dir_all(&directory).map_err(io_error("make the directory", &directory))?;
            Downloads::new(directory).map_err(download_error)
        })
        .await
    }

    /// Runs the program of a draft for its version.
    async fn judge(&self, draft: &Draft) -> Result<String, InstallError> {
        let program = draft.path().join(FIRECRACKER);
        let mut attempt = 0;
        let version = loop {
            attempt += 1;
            let (judge, program) = (Arc::clone(&self.config.judge), program.clone());
            match blocking(move || Ok(judge(&program))).await? {
                Ok(version) => break version,
                // A process that was forked while the program was written has it open until
                // it executes its own, which nothing tells of.
                Err(error) if attempt < BUSY_ATTEMPTS && is_busy(error.as_ref()) => {
                    tokio::time::sleep(BUSY_WAIT).await;
                }
                Err(error) => return Err(InstallError::Unusable(error)),
            }
        };
        match is_version(&version) {
            true => Ok(version),
            false => Err(InstallError::Version(version)),
        }
    }

    /// Makes a draft what is installed. Blocks for some file operations.
    fn publish(&self, draft: Draft, installed: &Installed) -> Result<(), InstallError> {
        let directory = &self.config.directory;
        let manifest = draft.path().join(MANIFEST_FILE);
        let json = serde_json::to_vec_pretty(installed).expect("a manifest has only string keys");
        write_through(&manifest, &json).map_err(io_error("write", &manifest))?;
        let place = directory.join(&installed.version);
        // The same version may have come from elsewhere. Processes that run have it open.
        let before = Draft::new(directory).map_err(io_error("make a draft in", directory))?;
        match fs::rename(&place, before.path().join("before")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("replace", &place)(error));
            }
            _ => {}
        }
        draft.publish(&place).map_err(io_error("publish", &place))?;
        let link = before.path().join(CURRENT);
        let current = directory.join(CURRENT);
        std::os::unix::fs::symlink(&installed.version, &link)
            .and_then(|()| fs::rename(&link, &current))
            .map_err(io_error("make", &current))?;
        remove_others(directory, Some(Path::new(&installed.version)));
        Ok(())
    }
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Archive,
    Program,
}

/// A file that is here and has the hash that it should have.
#[derive(Debug)]
struct Got {
    kind: Kind,
    sha256: Sha256Sum,
    /// Where it came from, in words.
    from: String,
    /// Where it lies in the cache.
    download: Option<Downloaded>,
    file: File,
}

impl Got {
    /// Looks at a file that the user has given.
    fn of_file(mut file: File, wanted: Option<Sha256Sum>) -> Result<Self, InstallError> {
        let failed = |source| io_error("read", Path::new("the file"))(source);
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 18];
        let mut beginning = Vec::new();
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        loop {
            let count = file.read(&mut buffer).map_err(failed)?;
            if count == 0 {
                break;
            }
            if beginning.is_empty() {
                beginning.extend_from_slice(&buffer[..count.min(GZIP.len())]);
            }
            hasher.update(&buffer[..count]);
        }
        let found = Sha256Sum(hasher.finalize().into());
        let kind = match beginning == GZIP {
            true => Kind::Archive,
            false => Kind::Program,
        };
        match (wanted, kind) {
            (Some(wanted), _) if wanted != found => {
                return Err(InstallError::OtherHash { found, wanted });
            }
            (None, Kind::Archive) => {
                let release = Release::pinned()?;
                if release.sha256 != found {
                    return Err(InstallError::OtherArchive {
                        version: release.version.unwrap_or_default(),
                        found,
                        wanted: release.sha256,
                    });
                }
            }
            _ => {}
        }
        Ok(Self {
            kind,
            sha256: found,
            from: match kind {
                Kind::Archive => "an archive that was given".to_owned(),
                Kind::Program => "a program that was given".to_owned(),
            },
            download: None,
            file,
        })
    }

    /// Puts the programs of the file into `directory`.
    fn unpack_into(&self, directory: &Path) -> Result<(), InstallError> {
        let mut file = &self.file;
        let rewound = file.seek(SeekFrom::Start(0));
        let length = rewound.and_then(|_| file.metadata()).map(|file| file.len());
        let length = length.map_err(io_error("read", directory))?;
        let room = disk::require_room(&directory.join(FIRECRACKER), length.saturating_mul(4));
        room.map_err(|error| InstallError::Room(error.into()))?;
        match self.kind {
            Kind::Archive => unpack::archive(file, directory, unpack::Limits::default())
                .map_err(|error| InstallError::Unpack(error.into())),
            Kind::Program => unpack::program(file, &directory.join(FIRECRACKER))
                .map_err(|error| InstallError::Unpack(error.into())),
        }
    }
}

/// Removes everything in `directory` but the version `kept` and what names it, and the drafts
/// of makers that live. A failure is logged: what is left takes room and does no harm.
fn remove_others(directory: &Path, kept: Option<&Path>) {
    if let Err(error) = draft::sweep(directory)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, directory = %directory.display(), "could not sweep");
    }
    let entries = fs::read_dir(directory).into_iter().flatten();
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let is_version = name.to_str().is_some_and(is_version);
        if is_version && Some(Path::new(&name)) != kept {
            draft::remove(&entry.path());
        }
    }
}

/// Whether this is a version, and so the name of a directory that is banger's: `1.16.1` or
/// `1.17.0-dev`.
fn is_version(text: &str) -> bool {
    let letters = |byte: u8| byte.is_ascii_alphanumeric() || b".-_+".contains(&byte);
    text.len() <= 64
        && text.starts_with(|first: char| first.is_ascii_digit())
        && text.bytes().all(letters)
}

fn is_busy(error: &(dyn Error + 'static)) -> bool {
    let system = system_error(error);
    system.is_some_and(|error| error.kind() == io::ErrorKind::ExecutableFileBusy)
}

/// Writes a file and waits until the disk has it.
fn write_through(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes a file a program of everybody's.
fn make_executable(file: &File) -> io::Result<()> {
    file.set_permissions(fs::Permissions::from_mode(0o755))?;
    file.sync_all()
}

fn now() -> String {
    jiff::Timestamp::now()
        .round(jiff::Unit::Second)
        .unwrap_or_else(|_| jiff::Timestamp::now())
        .to_string()
}

fn download_error(error: DownloadError) -> InstallError {
    match error {
        DownloadError::Room(error) => InstallError::Room(error.into()),
        error => InstallError::Download(error.into()),
    }
}

fn io_error<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> InstallError + 'a {
    move |source| InstallError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, InstallError> + Send + 'static,
) -> Result<T, InstallError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends.
            Err(_) => Err(InstallError::Cancelled),
        },
    }
}

#[cfg(test)]
mod tests;

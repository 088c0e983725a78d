//! Which artifacts are there, and one shared piece of work for each that is being made.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use banger_proto::doctor::{Check, CheckStatus};
use banger_proto::error::ErrorKind;
use banger_proto::id::ImageId;
use banger_proto::name::ArtifactName;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::catalog::{Catalog, CatalogOrigin, CatalogRefused, Catalogs, ImageEntry, KernelEntry};
use crate::debian::mirror::Family;
use crate::download::Patience;
use crate::draft;
use crate::elsewhere::{self, ElsewhereError};
use crate::flight::{FlightError, Flights};
use crate::image::{self, ImageError};
use crate::kernel::{self, KernelError};
use crate::manifest::{KernelManifest, MANIFEST_FILE, Manifest};
use crate::oci::{self, OciFailure, PullRequest, Shape};
use crate::progress::Reporter;
use crate::upload::{Upload, UploadError};

/// Downloads that broke off longer ago than this are removed.
const STALE_DOWNLOAD: Duration = Duration::from_secs(7 * 24 * 3600);

/// What a store must know.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Where images and kernels are kept.
    pub state_dir: PathBuf,
    /// Where downloads and disk templates are kept; may be emptied at any time.
    pub cache_dir: PathBuf,
    /// The guest agent's binary, which becomes the init of the initramfs.
    pub agent: PathBuf,
    /// The Debian mirror to use in place of the host's own, such as
    /// `http://ftp.debian.org/debian`.
    pub debian_mirror: Option<String>,
    /// The Ubuntu mirror to use in place of the host's own.
    pub ubuntu_mirror: Option<String>,
    /// Where there may be a newer catalog than the one that is built in.
    pub catalog: Option<CatalogOrigin>,
}

impl StoreConfig {
    pub(crate) fn images(&self) -> PathBuf {
        self.state_dir.join("images")
    }

    pub(crate) fn kernels(&self) -> PathBuf {
        self.state_dir.join("kernels")
    }

    pub(crate) fn oci(&self) -> PathBuf {
        self.cache_dir.join("oci")
    }

    pub(crate) fn catalogs(&self) -> PathBuf {
        self.cache_dir.join("catalogs")
    }

    pub(crate) fn downloads(&self) -> PathBuf {
        self.cache_dir.join("downloads")
    }

    /// The mirror that is configured.
    pub(crate) fn mirror(&self, family: Family) -> Option<&str> {
        match family {
            Family::Debian => self.debian_mirror.as_deref(),
            Family::Ubuntu => self.ubuntu_mirror.as_deref(),
        }
    }
}

/// Why the store could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("could not {action} `{path}`")]
    Io {
        /// What was being done, such as `read`.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// An image's files are not banger's, and cannot be booted from now.
    #[error("the files of the image `{name}`, which are not banger's own, cannot be used")]
    Elsewhere {
        /// Its name.
        name: String,
        /// Why not.
        #[source]
        source: ElsewhereError,
    },
    /// An artifact was removed as soon as it was made.
    #[error("the {what} `{name}` was removed as soon as it was made")]
    Vanished {
        /// `image` or `kernel`.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// An artifact is there but not whole.
    #[error("the {what} `{name}` is damaged: {why}")]
    Damaged {
        /// `image` or `kernel`.
        what: &'static str,
        /// Its name.
        name: String,
        /// What is wrong with it.
        why: String,
        /// Its directory.
        directory: PathBuf,
    },
}

impl StoreError {
    /// What kind of failure it is, for the API.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Elsewhere { .. } => ErrorKind::Precondition,
            Self::Vanished { .. } => ErrorKind::Conflict,
            Self::Io { .. } | Self::Damaged { .. } => ErrorKind::Failed,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Io { .. } => None,
            Self::Elsewhere { name, source } => source.hint().or_else(|| {
                Some(format!(
                    "bring the files back, or name others: \
                     `banger image register --name {name} --rootfs FILE`"
                ))
            }),
            Self::Damaged {
                what: "kernel",
                directory,
                ..
            } => Some(format!(
                "remove {}: a kernel of the catalog is made anew when it is next needed, and one \
                 of your own is imported again",
                directory.display()
            )),
            // The VMs' system disks fit these very files and no new image.
            Self::Damaged {
                directory, name, ..
            } => Some(format!(
                "put the files in {} back from a backup, if VMs of it are to start again; for new \
                 VMs delete it and make it anew: `banger image delete {name}`",
                directory.display()
            )),
            Self::Vanished { .. } => Some("try again".to_owned()),
        }
    }
}

/// An image that is there, whole.
#[derive(Clone, Debug)]
pub struct Image {
    /// What is known of it.
    pub manifest: Manifest,
    /// Its root file system: ext4, without a journal, to be mounted read-only.
    pub rootfs: PathBuf,
    /// What new VMs' work disks are cloned from, if it has something: an ext4 disk with a
    /// directory `root`.
    pub work_seed: Option<PathBuf>,
}

/// A kernel that is there, whole.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// What is known of it.
    pub manifest: KernelManifest,
    /// Its directory.
    pub directory: PathBuf,
    /// The kernel: an ELF file.
    pub vmlinux: PathBuf,
    /// An ext4 disk, to be attached read-only, whose root holds `<release>/…`: what belongs
    /// into `/lib/modules`.
    pub modules_disk: PathBuf,
}

/// All images and kernels of one state directory. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    config: Arc<StoreConfig>,
    images: Flights<ArtifactName, Image, ImageError>,
    pulls: Flights<PullRequest, Image, ImageError>,
    image_bundles: Flights<BundlePull, Image, ImageError>,
    kernel_bundles: Flights<BundlePull, Kernel, KernelError>,
    kernels: Flights<ArtifactName, Kernel, KernelError>,
    layers: Arc<oci::Cache>,
    catalogs: Arc<Catalogs>,
    agent: Mutex<Option<HashedAgent>>,
    /// Held while what is there is changed.
    changes: Mutex<()>,
    patience: Patience,
}

/// The agent's hash, as long as the file is the same.
struct HashedAgent {
    identity: (u64, u64, u64, i64, i64),
    hash: [u8; 32],
}

impl Store {
    /// Opens the store: makes its directories and removes what makers that died left behind.
    /// Blocks for a few file operations.
    pub fn open(config: StoreConfig) -> Result<Self, StoreError> {
        Self::open_with(config, Patience::default())
    }

    /// The same, with another patience with registries.
    pub(crate) fn open_with(config: StoreConfig, patience: Patience) -> Result<Self, StoreError> {
        for directory in [
            config.images(),
            config.kernels(),
            config.downloads(),
            config.oci(),
            config.catalogs(),
        ] {
            std::fs::create_dir_all(&directory)
                .map_err(io_error("make the directory", &directory))?;
        }
        for directory in [
            config.images(),
            config.kernels(),
            config.oci(),
            config.catalogs(),
        ] {
            draft::sweep(&directory).map_err(io_error("sweep", &directory))?;
        }
        // Builds of ordinary users may have been elsewhere; nothing depends on their going.
        if let Err(error) = draft::sweep(Path::new(draft::SHARED)) {
            tracing::warn!(%error, "could not sweep {}", draft::SHARED);
        }
        sweep_downloads(&config.downloads());
        let catalogs = Catalogs::open(config.catalog.clone(), config.catalogs());
        Ok(Self {
            shared: Arc::new(Shared {
                layers: Arc::new(oci::Cache::new(config.oci())),
                catalogs: Arc::new(catalogs),
                config: Arc::new(config),
                images: Flights::new(),
                pulls: Flights::new(),
                image_bundles: Flights::new(),
                kernel_bundles: Flights::new(),
                kernels: Flights::new(),
                agent: Mutex::new(None),
                changes: Mutex::new(()),
                patience,
            }),
        })
    }

    /// The images that are there, by name. Those with an unreadable manifest are left out and
    /// logged.
    pub fn images(&self) -> Result<Vec<Manifest>, StoreError> {
        let mut manifests: Vec<Manifest> = self
            .directories(&self.shared.config.images())?
            .iter()
            .filter_map(|directory| legible(read_manifest("image", directory)))
            .collect();
        manifests
            .sort_by(|a: &Manifest, b| (&a.name, &a.created_at).cmp(&(&b.name, &b.created_at)));
        Ok(manifests)
    }

    /// The image called `name`, if it is there; an error if it is damaged. If two have the
    /// name, the newer one counts.
    pub fn image(&self, name: &ArtifactName) -> Result<Option<Image>, StoreError> {
        let newest = self
            .images()?
            .into_iter()
            .rfind(|manifest| manifest.name == *name);
        newest
            .map(|manifest| self.whole_image(manifest))
            .transpose()
    }

    /// Refuses a name that neither an image that is there nor one of the catalog has.
    ///
    /// # Errors
    /// [`ImageError::Unknown`], or the store cannot be read.
    pub fn require_known(&self, name: &ArtifactName) -> Result<(), ImageError> {
        let catalog = self.catalog();
        let mut known: Vec<String> = image_names(&catalog);
        known.extend(self.images()?.iter().map(|image| image.name.to_string()));
        known.sort();
        known.dedup();
        match known.iter().any(|known| known == name.as_str()) {
            true => Ok(()),
            false => Err(ImageError::Unknown {
                name: name.clone(),
                known,
            }),
        }
    }

    /// Refuses a name that neither a kernel that is there nor one of the catalog has.
    ///
    /// # Errors
    /// [`KernelError::Unknown`], or the store cannot be read.
    pub fn require_known_kernel(&self, name: &ArtifactName) -> Result<(), KernelError> {
        match self.kernel(name)? {
            Some(_) => Ok(()),
            None => self.kernel_entry(name).map(drop),
        }
    }

    /// The catalog that counts.
    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        self.shared.catalogs.current().catalog
    }

    /// Looks for a newer catalog where the config says, for ten seconds at most. Returns why that
    /// went wrong, where the catalog that is here has to do.
    ///
    /// # Errors
    /// What came is not signed by whom it should be, and is not used.
    pub async fn ask_for_catalog(&self) -> Result<Option<String>, Arc<CatalogRefused>> {
        let downloads = self.shared.config.downloads();
        self.shared.catalogs.ask(&downloads).await
    }

    /// The kernel of images that do not say which one they need.
    pub fn default_kernel(&self) -> ArtifactName {
        self.catalog().default_kernel().clone()
    }

    /// The catalog's entry of the image `name`.
    fn image_entry(&self, name: &ArtifactName) -> Result<ImageEntry, ImageError> {
        let catalog = self.catalog();
        catalog
            .image(name)
            .cloned()
            .ok_or_else(|| ImageError::Unknown {
                name: name.clone(),
                known: image_names(&catalog),
            })
    }

    /// The catalog's entry of the kernel `name`.
    fn kernel_entry(&self, name: &ArtifactName) -> Result<KernelEntry, KernelError> {
        let catalog = self.catalog();
        let names = || catalog.kernels.iter().map(|kernel| kernel.name.to_string());
        catalog
            .kernel(name)
            .cloned()
            .ok_or_else(|| KernelError::Unknown {
                name: name.clone(),
                known: names().collect(),
            })
    }

    /// What keeps every VM from booting, whatever its image: the agent's binary is not there.
    pub fn missing(&self) -> Option<Check> {
        let agent = crate::check::agent(&self.shared.config.agent);
        (agent.status == CheckStatus::Fail).then_some(agent)
    }

    /// The image whose id is `id`, if it is there; an error if it is damaged.
    pub fn image_by_id(&self, id: &ImageId) -> Result<Option<Image>, StoreError> {
        let directory = self.shared.config.images().join(id.as_str());
        match directory.exists() {
            true => self
                .whole_image(read_manifest("image", &directory)?)
                .map(Some),
            false => Ok(None),
        }
    }

    /// The kernels that are there, by name. Those with an unreadable manifest are left out
    /// and logged.
    pub fn kernels(&self) -> Result<Vec<KernelManifest>, StoreError> {
        let mut manifests: Vec<KernelManifest> = self
            .directories(&self.shared.config.kernels())?
            .iter()
            .filter_map(|directory| legible(read_manifest("kernel", directory)))
            .collect();
        manifests.sort_by(|a: &KernelManifest, b| a.name.cmp(&b.name));
        Ok(manifests)
    }

    /// The kernel called `name`, if it is there; an error if it is damaged.
    pub fn kernel(&self, name: &ArtifactName) -> Result<Option<Kernel>, StoreError> {
        let directory = self.shared.config.kernels().join(name.as_str());
        match directory.exists() {
            true => whole_kernel(directory).map(Some),
            false => Ok(None),
        }
    }

    /// The image called `name`, made first if it is missing.
    ///
    /// Callers that ask for the same image at once share one piece of work. Dropping one
    /// caller's future leaves the others alone; when the last goes, the work is called off
    /// and leaves nothing behind.
    pub async fn ensure_image(
        &self,
        name: &ArtifactName,
        progress: &Reporter,
    ) -> Result<Image, ImageError> {
        if let Some(image) = self.blocking(name, Self::image).await? {
            return Ok(image);
        }
        let entry = self.image_entry(name)?;
        let store = self.clone();
        let start = |progress, cancel| {
            let name = name.clone();
            async move {
                // Another's work may have ended since we looked.
                if let Some(image) = store.blocking(&name, Self::image).await? {
                    return Ok(image);
                }
                let id = store.obtain_image(&entry, progress, cancel).await?;
                store.made(&id, &name).await
            }
        };
        self.shared
            .images
            .join(name, progress, start)
            .await
            .map_err(|error| match error {
                FlightError::Failed(error) => ImageError::Shared(error),
                FlightError::Lost => ImageError::Cancelled,
            })
    }

    /// The image that `request` means now, fetched and made first if it is not here; shared as
    /// in [`Store::ensure_image`].
    pub async fn pull(
        &self,
        request: &PullRequest,
        progress: &Reporter,
    ) -> Result<Image, ImageError> {
        let store = self.clone();
        let start = |progress, cancel| {
            let request = request.clone();
            async move { store.pull_alone(request, progress, cancel).await }
        };
        self.shared
            .pulls
            .join(request, progress, start)
            .await
            .map_err(|error| match error {
                FlightError::Failed(error) => ImageError::Shared(error),
                FlightError::Lost => ImageError::Cancelled,
            })
    }

    /// The image of the catalog called `name`: as [`Store::ensure_image`], but the newest catalog
    /// is asked for first if the image is not here. Also returns why that went wrong.
    ///
    /// # Errors
    /// As [`Store::ensure_image`], or the catalog that came is refused.
    pub async fn pull_image(
        &self,
        name: &ArtifactName,
        progress: &Reporter,
    ) -> Result<(Image, Option<String>), ImageError> {
        if let Some(image) = self.blocking(name, Self::image).await? {
            return Ok((image, None));
        }
        let warning = self.ask_for_catalog().await?;
        Ok((self.ensure_image(name, progress).await?, warning))
    }

    /// The kernel of the catalog called `name`; as [`Store::pull_image`].
    ///
    /// # Errors
    /// As [`Store::ensure_kernel`], or the catalog that came is refused.
    pub async fn pull_kernel(
        &self,
        name: &ArtifactName,
        progress: &Reporter,
    ) -> Result<(Kernel, Option<String>), KernelError> {
        if let Some(kernel) = self.blocking(name, Self::kernel).await? {
            return Ok((kernel, None));
        }
        let warning = self.ask_for_catalog().await?;
        Ok((self.ensure_kernel(name, progress).await?, warning))
    }

    async fn pull_alone(
        &self,
        request: PullRequest,
        progress: Reporter,
        cancel: CancellationToken,
    ) -> Result<Image, ImageError> {
        let name = request.shape.name.clone();
        let resolved = tokio::select! {
            resolved = oci::resolve(&request, &self.shared.layers, self.shared.patience) => resolved,
            () = cancel.cancelled() => return Err(ImageError::Cancelled),
        };
        let resolved = resolved.map_err(OciFailure::from)?;
        if let Some(image) = self.blocking(&name, Self::image).await?
            && image.manifest.digest == resolved.digest.as_str()
            && image.manifest.kernel == request.shape.kernel
        {
            return Ok(image);
        }
        let images = self.shared.config.images();
        let cache = Arc::clone(&self.shared.layers);
        let made = oci::make(images.clone(), cache, request, resolved, progress, cancel);
        let id = made.await.map_err(OciFailure::from)?;
        self.made(&id, &name).await
    }

    /// A place for the archive of an image that comes from a client. It may be as long as there
    /// is room.
    ///
    /// # Errors
    /// The file cannot be made.
    pub async fn upload(&self) -> Result<Upload, UploadError> {
        Upload::new(&self.shared.config.oci(), u64::MAX).await
    }

    /// Makes the image in `archive`, which `docker save`, `podman save` or `skopeo` wrote. When
    /// this future is dropped, the work is called off.
    pub async fn make_from_archive(
        &self,
        archive: std::fs::File,
        shape: Shape,
        progress: &Reporter,
    ) -> Result<Image, ImageError> {
        let cancel = CancellationToken::new();
        let _called_off = cancel.clone().drop_guard();
        let (images, scratch) = (self.shared.config.images(), self.shared.config.oci());
        let (name, progress) = (shape.name.clone(), progress.clone());
        let work =
            move || oci::make_from_archive(&images, archive, &scratch, &shape, &progress, &cancel);
        let made = tokio::task::spawn_blocking(work).await;
        let made = made.map_err(|error| ImageError::Step {
            step: "make the image",
            source: error.into(),
        })?;
        self.made(&made.map_err(OciFailure::from)?, &name).await
    }

    /// The image that was just made.
    async fn made(&self, id: &ImageId, name: &ArtifactName) -> Result<Image, ImageError> {
        let (store, wanted) = (self.clone(), id.clone());
        let images = self.shared.config.images();
        let found = tokio::task::spawn_blocking(move || store.image_by_id(&wanted))
            .await
            .map_err(|error| io_error("look into", &images)(std::io::Error::other(error)))?;
        found?.ok_or_else(|| ImageError::Store(vanished("image", name)))
    }

    /// The kernel called `name`, made first if it is missing; shared as in
    /// [`Store::ensure_image`].
    pub async fn ensure_kernel(
        &self,
        name: &ArtifactName,
        progress: &Reporter,
    ) -> Result<Kernel, KernelError> {
        if let Some(kernel) = self.blocking(name, Self::kernel).await? {
            return Ok(kernel);
        }
        let entry = self.kernel_entry(name)?;
        let store = self.clone();
        let start = |progress, cancel| {
            let name = name.clone();
            async move {
                if let Some(kernel) = store.blocking(&name, Self::kernel).await? {
                    return Ok(kernel);
                }
                store.obtain_kernel(&entry, progress, cancel).await?;
                let made = store.blocking(&name, Self::kernel).await?;
                made.ok_or_else(|| KernelError::Store(vanished("kernel", &name)))
            }
        };
        self.shared
            .kernels
            .join(name, progress, start)
            .await
            .map_err(|error| match error {
                FlightError::Failed(error) => KernelError::Shared(error),
                FlightError::Lost => KernelError::Cancelled,
            })
    }

    /// The initramfs that boots `kernel` with the agent as it is now, made first if it is
    /// missing (tens of milliseconds).
    pub async fn initramfs(&self, kernel: &Kernel) -> Result<PathBuf, KernelError> {
        let (store, directory) = (self.clone(), kernel.directory.clone());
        let work = move || {
            let agent = &store.shared.config.agent;
            kernel::initramfs(&directory, agent, &store.agent_hash()?)
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|source| KernelError::Step {
                step: "make the initramfs",
                source: source.into(),
            })?
    }

    /// The agent's hash; it is read again only after the file has changed.
    fn agent_hash(&self) -> Result<[u8; 32], KernelError> {
        let path = &self.shared.config.agent;
        let metadata = std::fs::metadata(path).map_err(|source| KernelError::Agent {
            path: path.clone(),
            source,
        })?;
        let identity = (
            metadata.dev(),
            metadata.ino(),
            metadata.len(),
            metadata.mtime(),
            metadata.mtime_nsec(),
        );
        let mut known = self
            .shared
            .agent
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = known.as_ref().filter(|agent| agent.identity == identity) {
            return Ok(agent.hash);
        }
        let hash = kernel::hash_agent(path)?;
        *known = Some(HashedAgent { identity, hash });
        Ok(hash)
    }

    /// Runs a look-up where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        name: &ArtifactName,
        look: fn(&Self, &ArtifactName) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let name = name.clone();
        self.looking(move |store| look(store, &name)).await
    }

    /// As [`Store::blocking`], for a look-up of any kind.
    async fn looking<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.clone();
        let path = self.shared.config.state_dir.clone();
        tokio::task::spawn_blocking(move || look(&store))
            .await
            .map_err(|error| io_error("look into", &path)(std::io::Error::other(error)))?
    }

    fn whole_image(&self, manifest: Manifest) -> Result<Image, StoreError> {
        if let Some(files) = &manifest.elsewhere {
            let checked = [Some(&files.rootfs), files.work_seed.as_ref()]
                .into_iter()
                .flatten()
                .try_for_each(|path| elsewhere::check(path).map(drop));
            checked.map_err(|source| StoreError::Elsewhere {
                name: manifest.name.to_string(),
                source,
            })?;
            let (rootfs, work_seed) = (files.rootfs.clone(), files.work_seed.clone());
            return Ok(Image {
                manifest,
                rootfs,
                work_seed,
            });
        }
        let directory = self.shared.config.images().join(manifest.id.as_str());
        let rootfs = directory.join(image::ROOTFS);
        require_length(
            "image",
            &manifest.name,
            &directory,
            &rootfs,
            manifest.rootfs_length,
        )?;
        let work_seed = directory.join(image::WORK_SEED);
        let work_seed = work_seed.is_file().then_some(work_seed);
        Ok(Image {
            manifest,
            rootfs,
            work_seed,
        })
    }

    fn directories(&self, parent: &Path) -> Result<Vec<PathBuf>, StoreError> {
        let entries = std::fs::read_dir(parent).map_err(io_error("read", parent))?;
        Ok(entries
            .filter_map(Result::ok)
            .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
            .map(|entry| entry.path())
            .collect())
    }
}

/// Bytes that the files of a directory take, not counting holes.
pub(crate) fn size_on_disk(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return 0;
    };
    entries
        .filter_map(|entry| entry.ok())
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size_on_disk(&entry.path()),
            Ok(metadata) => metadata.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

fn whole_kernel(directory: PathBuf) -> Result<Kernel, StoreError> {
    let manifest: KernelManifest = read_manifest("kernel", &directory)?;
    let vmlinux = directory.join(kernel::VMLINUX);
    let modules_disk = directory.join(kernel::MODULES_DISK);
    for (path, length) in [
        (&vmlinux, manifest.vmlinux_length),
        (&modules_disk, manifest.modules_length),
    ] {
        require_length("kernel", &manifest.name, &directory, path, length)?;
    }
    Ok(Kernel {
        manifest,
        directory,
        vmlinux,
        modules_disk,
    })
}

fn read_manifest<T: DeserializeOwned>(
    what: &'static str,
    directory: &Path,
) -> Result<T, StoreError> {
    let path = directory.join(MANIFEST_FILE);
    let damaged = |why: String| StoreError::Damaged {
        what,
        name: directory
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        why,
        directory: directory.to_owned(),
    };
    let json = std::fs::read(&path)
        .map_err(|error| damaged(format!("cannot read {MANIFEST_FILE}: {error}")))?;
    serde_json::from_slice(&json)
        .map_err(|error| damaged(format!("{MANIFEST_FILE} makes no sense: {error}")))
}

fn legible<T>(manifest: Result<T, StoreError>) -> Option<T> {
    manifest
        .inspect_err(|error| tracing::warn!(%error, "left out of the list"))
        .ok()
}

fn require_length(
    what: &'static str,
    name: &ArtifactName,
    directory: &Path,
    path: &Path,
    length: u64,
) -> Result<(), StoreError> {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let why = match std::fs::metadata(path) {
        Ok(found) if found.len() == length => return Ok(()),
        Ok(found) => format!("{file} is {} bytes long, not {length}", found.len()),
        Err(error) => format!("cannot read {file}: {error}"),
    };
    Err(StoreError::Damaged {
        what,
        name: name.to_string(),
        why,
        directory: directory.to_owned(),
    })
}

fn vanished(what: &'static str, name: &ArtifactName) -> StoreError {
    StoreError::Vanished {
        what,
        name: name.to_string(),
    }
}

/// Removes downloads that nobody has gone on with for long.
fn sweep_downloads(directory: &Path) {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return;
    };
    for entry in entries.filter_map(Result::ok) {
        let age = entry
            .metadata()
            .and_then(|metadata| metadata.modified())
            .map(|modified| {
                SystemTime::now()
                    .duration_since(modified)
                    .unwrap_or_default()
            });
        if age.is_ok_and(|age| age > STALE_DOWNLOAD) {
            // A cache: what stays does no harm.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn io_error<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(std::io::Error) -> StoreError + 'a {
    move |source| StoreError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

fn image_names(catalog: &Catalog) -> Vec<String> {
    let names = catalog.images.iter().map(|image| image.name.to_string());
    names.collect()
}

mod bundles;
mod capture;
mod carry;
mod obtain;
mod shelf;
mod tidy;

pub use bundles::BundlePull;
pub use capture::{Capture, CaptureError, Taken};
pub use carry::ImportError;
pub use shelf::{ChangeError, Registration};
pub use tidy::Pruning;

#[cfg(test)]
mod tests;

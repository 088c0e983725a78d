//! How a kernel is made from Debian's signed package, or of somebody's own files.

pub(crate) mod bzimage;
mod cpio;
mod import;
mod initramfs;
mod modules;
mod tree;

use std::error::Error;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_proto::error::ErrorKind;
use banger_proto::name::ArtifactName;
use banger_proto::size::ByteSize;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::attempt::Attempt;
use crate::catalog::{CatalogRefused, Package as Wanted};
use crate::debian::archive::{ArchiveError, Package, Suite};
use crate::debian::keyring::Keyring;
use crate::debian::mirror::Mirror;
use crate::debian::policy::{self, Policy};
use crate::debian::{deb, sources::Source};
use crate::disk;
use crate::download::{Downloaded, Downloads};
use crate::draft::Draft;
use crate::ext4::{Attributes, Writer};
use crate::hash::show_sha256;
use crate::manifest::{self, KernelManifest};
use crate::progress::Reporter;
use crate::store::{ImportError, StoreConfig, StoreError};
use crate::tool::{self, DEPMOD, ToolError};

pub(crate) use import::import;

/// Debian's name of the architecture.
const ARCHITECTURE: &str = "amd64";
/// File names in a kernel's directory.
pub(crate) const VMLINUX: &str = "vmlinux";
pub(crate) const MODULES_DISK: &str = "modules.ext4";
const BOOT_MODULES: &str = "boot";
const MODULES_LOAD: &str = "modules.load";
/// Somebody's own initrd, which is unpacked before banger's.
const EXTRA_INITRD: &str = "extra.img";
const INITRD_PREFIX: &str = "initrd-";
/// How many meta packages may lead to the kernel's own.
const META_DEPTH: usize = 3;
/// Room that unpacking takes at most, beyond what is checked for the download.
const UNPACKED: u64 = 512 << 20;

/// Why a kernel could not be had.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Nothing of that name is stored or in the catalog.
    #[error("there is no kernel `{name}`")]
    Unknown {
        /// What was asked for.
        name: ArtifactName,
        /// The catalog's names.
        known: Vec<String>,
    },
    /// None of its sources could be had.
    #[error("none of the sources of the kernel `{name}` could be had")]
    NoSource {
        /// The kernel.
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
    /// A package of Debian's could not be had.
    #[error(transparent)]
    Package(Box<dyn Error + Send + Sync>),
    /// What came as a bundle could not be taken.
    #[error(transparent)]
    Import(Box<ImportError>),
    /// A tool of the host is missing or failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The package holds modules of another kernel than its own.
    #[error("the package's modules are of `{modules}`, which its kernel is not")]
    Mismatch {
        /// The release that the modules are for.
        modules: String,
    },
    /// The modules that came with a kernel are another's.
    #[error("the modules are of {modules}, and the kernel is {kernel}")]
    OtherModules {
        /// The release that the modules are for.
        modules: String,
        /// The kernel's.
        kernel: String,
    },
    /// What should be a kernel says of no release that it is one.
    #[error("`vmlinux` does not say which release of Linux it is")]
    NoRelease,
    /// A step of making it failed.
    #[error("could not {step}")]
    Step {
        /// What was being done.
        step: &'static str,
        /// Why not.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The guest agent, which becomes the initramfs' init, cannot be read.
    #[error("could not read the guest agent `{path}`")]
    Agent {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A catalog came that nobody may use.
    #[error(transparent)]
    Catalog(#[from] Arc<CatalogRefused>),
    /// The store could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// All who waited for it went away.
    #[error("getting the kernel was called off")]
    Cancelled,
    /// Making it, which others waited for too, failed.
    #[error(transparent)]
    Shared(Arc<KernelError>),
}

impl KernelError {
    /// What kind of failure it is, for the API.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unknown { .. } => ErrorKind::NotFound,
            Self::NoSource { .. } | Self::Package(_) => ErrorKind::Unavailable,
            Self::Import(error) => error.kind(),
            Self::Tool(ToolError::Missing { .. }) | Self::Agent { .. } => ErrorKind::Precondition,
            Self::OtherModules { .. } | Self::NoRelease | Self::OtherArch { .. } => {
                ErrorKind::Invalid
            }
            Self::Tool(_) | Self::Mismatch { .. } | Self::Step { .. } => ErrorKind::Failed,
            Self::Catalog(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Shared(error) => error.kind(),
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown { known, .. } => Some(format!("there are: {}", known.join(", "))),
            Self::NoSource { tried, .. } => tried.hint(),
            Self::Import(error) => error.hint(),
            Self::Package(_) => Some(
                "check the network, or name a Debian mirror as `debian_mirror` in the config; \
                 `banger doctor` shows which one is used"
                    .to_owned(),
            ),
            Self::Tool(error) => error.hint(),
            Self::Agent { .. } => Some(crate::check::AGENT_FIX.to_owned()),
            Self::Catalog(error) => error.hint(),
            Self::Store(error) => error.hint(),
            Self::Shared(error) => error.hint(),
            Self::OtherModules { kernel, .. } => Some(format!(
                "take the modules of this kernel: `/lib/modules/{kernel}`"
            )),
            Self::NoRelease => Some(
                "take the kernel's own file: `vmlinux` of its build, or a distribution's `vmlinuz`"
                    .to_owned(),
            ),
            Self::OtherArch { .. }
            | Self::Mismatch { .. }
            | Self::Step { .. }
            | Self::Cancelled => None,
        }
    }
}

fn step<E: Into<Box<dyn Error + Send + Sync>>>(
    step: &'static str,
) -> impl FnOnce(E) -> KernelError {
    move |source| KernelError::Step {
        step,
        source: source.into(),
    }
}

/// Makes the kernel `name` out of a package of Debian's and publishes it as `directory`.
pub(crate) async fn make(
    config: Arc<StoreConfig>,
    name: ArtifactName,
    wanted: &Wanted,
    directory: PathBuf,
    progress: Reporter,
    cancel: CancellationToken,
) -> Result<(), KernelError> {
    let downloads = Downloads::new(config.downloads()).map_err(step("set up downloads"))?;
    let fetched = cancel
        .run_until_cancelled(fetch(&config, wanted, &downloads, &progress))
        .await
        .ok_or(KernelError::Cancelled)??;
    let work = move || {
        let outcome = unpack_and_publish(&name, &fetched, &directory, &progress, &cancel);
        match cancel.is_cancelled() {
            true if outcome.is_err() => Err(KernelError::Cancelled),
            _ => outcome,
        }
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(step("finish unpacking the kernel"))?
}

/// A package that is on the disk.
struct Fetched {
    deb: Downloaded,
    package: Package,
    origin: String,
}

/// Why a package is not the kernel.
#[derive(Debug, thiserror::Error)]
enum PackageError {
    #[error("no archive is known for the suite {0}")]
    Suite(String),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("it has version {found}, not {wanted}*")]
    Version { found: String, wanted: String },
    #[error("it leads to no kernel's package")]
    NoKernel,
    #[error("the search was cut short")]
    Search(#[source] tokio::task::JoinError),
}

async fn fetch(
    config: &Arc<StoreConfig>,
    wanted: &Wanted,
    downloads: &Downloads,
    progress: &Reporter,
) -> Result<Fetched, KernelError> {
    let configured = config.debian_mirror.clone();
    let prepare = move || {
        let mirror = Mirror::debian(configured.as_deref(), Path::new("/"));
        (mirror, Keyring::debian(), policy::of_host())
    };
    let (mirror, keyring, policy) = tokio::task::spawn_blocking(prepare)
        .await
        .map_err(step("read the host's apt configuration"))?;
    let failed = |error: PackageError| KernelError::Package(error.into());
    let source = mirror
        .source(&wanted.suite)
        .ok_or_else(|| failed(PackageError::Suite(wanted.suite.clone())))?;
    let fetched = fetch_from(&source, wanted, &keyring, policy, downloads, progress);
    fetched.await.map_err(failed)
}

async fn fetch_from(
    source: &Source,
    wanted: &Wanted,
    keyring: &Keyring,
    policy: Policy,
    downloads: &Downloads,
    progress: &Reporter,
) -> Result<Fetched, PackageError> {
    let suite = Suite::open(
        source,
        ARCHITECTURE,
        keyring.clone(),
        policy,
        downloads,
        progress,
    )
    .await?;
    let name = wanted.name.clone();
    let (suite, package) = tokio::task::spawn_blocking(move || {
        let package = find_kernel(&suite, &name);
        (suite, package)
    })
    .await
    .map_err(PackageError::Search)?;
    let package = package?;
    if !package.version.starts_with(&wanted.version) {
        return Err(PackageError::Version {
            found: package.version,
            wanted: wanted.version.clone(),
        });
    }
    let deb = suite.fetch(&package, downloads, progress).await?;
    Ok(Fetched {
        deb,
        package,
        origin: suite.origin(),
    })
}

/// The package that holds the kernel which the meta package `name` stands for.
fn find_kernel(suite: &Suite, name: &str) -> Result<Package, PackageError> {
    let mut package = suite.find(name)?;
    for _ in 0..META_DEPTH {
        let next = package
            .depends
            .iter()
            .find(|name| name.starts_with("linux-image-"));
        match next {
            Some(next) => package = suite.find(next)?,
            None => return Ok(package),
        }
    }
    Err(PackageError::NoKernel)
}

fn unpack_and_publish(
    name: &ArtifactName,
    fetched: &Fetched,
    directory: &Path,
    progress: &Reporter,
    cancel: &CancellationToken,
) -> Result<(), KernelError> {
    const STAGES: u64 = 4;
    let what = format!("unpack the kernel {name}");
    let stage = |done| progress.items(&what, done, Some(STAGES));
    let parent = directory.parent().unwrap_or(directory);
    disk::require_room(directory, UNPACKED).map_err(step("unpack the kernel"))?;
    let draft = Draft::new(parent).map_err(step("make a directory for the kernel"))?;

    stage(0);
    let tree = tree::unpack(fetched.deb.path(), &draft.path().join("tree"), cancel)
        .map_err(step("unpack the package"))?;
    let vmlinux = bzimage::extract(&tree.bzimage)
        .map_err(step("extract vmlinux from the package's kernel"))?;
    require_release(&vmlinux, &tree.release)?;
    std::fs::write(draft.path().join(VMLINUX), &vmlinux).map_err(step("write vmlinux"))?;

    stage(1);
    let mut depmod = DEPMOD.command()?;
    depmod.arg("-b").arg(&tree.root).arg(&tree.release);
    tool::run(&mut depmod)?;

    stage(2);
    keep_boot_modules(&tree.modules, draft.path())?;

    stage(3);
    let disk = draft.path().join(MODULES_DISK);
    let uuid = first_half(&fetched.package.expected.sha256);
    let modules_length = write_modules_disk(&tree, &disk, uuid)?;
    std::fs::remove_dir_all(&tree.root).map_err(step("remove what was unpacked"))?;
    let manifest = KernelManifest {
        name: name.clone(),
        release: tree.release,
        digest: format!("sha256:{}", show_sha256(&fetched.package.expected.sha256)),
        source: format!(
            "{} {} from {}",
            fetched.package.name, fetched.package.version, fetched.origin
        ),
        created_at: jiff::Timestamp::now().to_string(),
        size: ByteSize::from_bytes(crate::store::size_on_disk(draft.path())),
        vmlinux_length: vmlinux.len() as u64,
        modules_length,
    };
    manifest::write(&manifest, draft.path()).map_err(step("write the kernel's manifest"))?;
    draft
        .publish(directory)
        .map_err(step("publish the kernel"))?;
    // Only a cache, and no longer of use.
    let _ = std::fs::remove_file(fetched.deb.path());
    stage(STAGES);
    Ok(())
}

/// The kernel says its release in its banner (`linux_banner` in `init/version.c`).
fn require_release(vmlinux: &[u8], release: &str) -> Result<(), KernelError> {
    let banner = format!("Linux version {release} (");
    match vmlinux
        .windows(banner.len())
        .any(|window| window == banner.as_bytes())
    {
        true => Ok(()),
        false => Err(KernelError::Mismatch {
            modules: release.to_owned(),
        }),
    }
}

/// Decompresses the modules that boot needs beside the kernel, so that an initramfs is made
/// by copying.
fn keep_boot_modules(modules: &Path, draft: &Path) -> Result<(), KernelError> {
    let directory = draft.join(BOOT_MODULES);
    std::fs::create_dir(&directory).map_err(step("make a directory for boot's modules"))?;
    let mut list = String::new();
    for file in modules::boot_modules(modules).map_err(step("find the modules that boot needs"))? {
        let module = initramfs::read_module(&modules.join(&file))
            .map_err(step("read a module that boot needs"))?;
        std::fs::write(directory.join(&module.name), &module.content)
            .map_err(step("write a module"))?;
        list.push_str(&module.name);
        list.push('\n');
    }
    std::fs::write(draft.join(MODULES_LOAD), list).map_err(step("write the list of boot's modules"))
}

/// Writes `<release>/…` and returns the disk's length.
fn write_modules_disk(tree: &tree::Tree, disk: &Path, uuid: [u8; 16]) -> Result<u64, KernelError> {
    let file = std::fs::File::create_new(disk).map_err(step("create the module disk"))?;
    let mut writer = Writer::new(file, uuid);
    let root = Attributes {
        mode: 0o755,
        ..Attributes::default()
    };
    writer
        .directory(b"", &root)
        .map_err(step("write the module disk"))?;
    tree::copy_into(&tree.modules, tree.release.as_bytes(), &mut writer)
        .map_err(step("write the module disk"))?;
    let summary = writer.finish().map_err(step("write the module disk"))?;
    Ok(summary.length)
}

/// The initramfs in `directory` for the agent `agent`, whose hash is `hash`. Blocks for some
/// tens of milliseconds if it has to be made.
pub(crate) fn initramfs(
    directory: &Path,
    agent: &Path,
    hash: &[u8; 32],
) -> Result<PathBuf, KernelError> {
    let path = directory.join(format!("{INITRD_PREFIX}{}.img", &show_sha256(hash)[..16]));
    if path.is_file() {
        return Ok(path);
    }
    let list = std::fs::read_to_string(directory.join(MODULES_LOAD))
        .map_err(step("read the list of boot's modules"))?;
    let modules = list
        .lines()
        .map(|name| {
            let content = std::fs::read(directory.join(BOOT_MODULES).join(name))?;
            Ok(initramfs::Module {
                name: name.to_owned(),
                content,
            })
        })
        .collect::<io::Result<Vec<_>>>()
        .map_err(step("read boot's modules"))?;
    let agent = std::fs::read(agent).map_err(|source| KernelError::Agent {
        path: agent.to_owned(),
        source,
    })?;
    let mut bytes = extra_initrd(directory).map_err(step("read the kernel's own initrd"))?;
    bytes.extend(initramfs::build(&agent, &modules));
    write_whole(&path, &bytes).map_err(step("write the initramfs"))?;
    Ok(path)
}

/// The initrd that came with the kernel. Archives follow one another, and the later one's files
/// count (Documentation/driver-api/early-userspace/buffer-format.rst).
fn extra_initrd(directory: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = match std::fs::read(directory.join(EXTRA_INITRD)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        read => read?,
    };
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    Ok(bytes)
}

/// Writes a file under another name first, so that it is there whole or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(path);
    // An engine that runs as another user has to read it.
    let mut draft = tempfile::Builder::new()
        .prefix(".initrd-")
        .permissions(Permissions::from_mode(0o644))
        .tempfile_in(directory)?;
    io::Write::write_all(&mut draft, bytes)?;
    draft.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Hash of the guest agent's binary.
pub(crate) fn hash_agent(agent: &Path) -> Result<[u8; 32], KernelError> {
    let read = || {
        let mut file = std::fs::File::open(agent)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 18];
        loop {
            match io::Read::read(&mut file, &mut buffer)? {
                0 => return Ok(hasher.finalize().into()),
                count => hasher.update(&buffer[..count]),
            }
        }
    };
    read().map_err(|source| KernelError::Agent {
        path: agent.to_owned(),
        source,
    })
}

fn first_half(hash: &[u8; 32]) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&hash[..16]);
    half
}

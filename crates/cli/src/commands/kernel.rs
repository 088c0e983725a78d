//! `banger kernel`

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Instant;

use banger_client::Client;
use banger_proto::api::{Kernel as ApiKernel, PullBundle};
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::name::{ArtifactName, InvalidName};
use banger_proto::url::{InvalidUrl, WebUrl};
use clap::{Args, Subcommand, ValueHint};
use clap_complete::ArgValueCandidates;
use jiff::Timestamp;

use crate::archive::{KernelFiles, read_file};
use crate::args::{Json, Quiet};
use crate::complete;
use crate::failure::{Failure, Outcome};
use crate::follow;
use crate::output::{print, print_json};
use crate::progress::{Detail, Display, Verbosity};
use crate::render::catalog::catalog_kernel_table;
use crate::render::lists::{kernel_table, kernel_text};
use crate::render::time::took;
use crate::settings::Settings;
use crate::signals::Signals;
use crate::source;

const LIST_EXAMPLES: &str = "\
Examples:
  banger kernel list
  banger kernel list --available
  banger kernel list --json";

const PULL_EXAMPLES: &str = "\
Examples:
  banger kernel pull generic-6.1
  banger kernel pull https://example.org/mine-6.12.tar.zst --sha256 9f86d0…

What comes from an address is a bundle: a `.tar.zst` of `vmlinux`, and perhaps `initrd.img` and
`modules/`. Modules of another release than the kernel's are refused.";

const IMPORT_EXAMPLES: &str = "\
Examples:
  banger kernel import mine --vmlinux ./vmlinux --modules /lib/modules/6.12.9
  banger kernel import mine --vmlinux /boot/vmlinuz-6.12.9 --modules /lib/modules/6.12.9
  banger kernel import mine --bundle mine.tar.zst --sha256 9f86d0…

Without modules, all that boot needs must be built in: virtio_pci, virtio_blk, virtio_net,
virtio_console, ext4 and overlay. A bundle is a `.tar.zst` of `vmlinux`, and perhaps `initrd.img`
and `modules/`.";

#[derive(Debug, Subcommand)]
pub(crate) enum Kernel {
    /// List the kernels that are here
    #[command(visible_alias = "ls")]
    List(List),
    /// Get a kernel
    Pull(Pull),
    /// Show a kernel
    Show(Show),
    /// Make a kernel of files of this host
    Import(Import),
    /// Delete kernels that nothing uses
    #[command(visible_alias = "rm")]
    Delete(Delete),
}

#[derive(Debug, Args)]
#[command(after_help = LIST_EXAMPLES)]
pub(crate) struct List {
    /// List what the catalog has, and ask for the newest one where the config names one
    #[arg(long)]
    available: bool,
    #[command(flatten)]
    json: Json,
}

#[derive(Debug, Args)]
#[command(after_help = PULL_EXAMPLES)]
pub(crate) struct Pull {
    /// A kernel of the catalog, or the address of a bundle
    #[arg(value_name = "KERNEL", add = ArgValueCandidates::new(complete::catalog_kernels))]
    kernel: KernelSource,
    /// What to call a bundle's kernel here [default: as its file is called]
    #[arg(long)]
    name: Option<ArtifactName>,
    /// The SHA-256 that a bundle must have
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    #[command(flatten)]
    json: Json,
    #[command(flatten)]
    quiet: Quiet,
}

/// Where `banger kernel pull` gets a kernel.
#[derive(Clone, Debug)]
enum KernelSource {
    Catalog(ArtifactName),
    Bundle(WebUrl),
}

impl FromStr for KernelSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match WebUrl::is_meant_by(text) {
            true => text
                .parse()
                .map(Self::Bundle)
                .map_err(|error: InvalidUrl| error.to_string()),
            false => text
                .parse()
                .map(Self::Catalog)
                .map_err(|error: InvalidName| error.to_string()),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The kernel's name
    #[arg(add = ArgValueCandidates::new(complete::kernel_names))]
    kernel: ArtifactName,
    #[command(flatten)]
    json: Json,
}

#[derive(Debug, Args)]
#[command(after_help = IMPORT_EXAMPLES)]
pub(crate) struct Import {
    /// What the kernel is to be called
    name: ArtifactName,
    /// The kernel: `vmlinux`, or a bzImage
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, required_unless_present = "bundle")]
    vmlinux: Option<PathBuf>,
    /// An initrd that is unpacked before banger's own
    #[arg(long, value_name = "FILE", requires = "vmlinux", value_hint = ValueHint::FilePath)]
    initrd: Option<PathBuf>,
    /// Its modules, as in `/lib/modules/<release>`
    #[arg(long, value_name = "DIR", requires = "vmlinux", value_hint = ValueHint::DirPath)]
    modules: Option<PathBuf>,
    /// All of them in one file; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "vmlinux", value_hint = ValueHint::FilePath)]
    bundle: Option<PathBuf>,
    /// Refuse a bundle that does not have this SHA-256
    #[arg(long, value_name = "DIGITS", requires = "bundle")]
    sha256: Option<String>,
    #[command(flatten)]
    json: Json,
    #[command(flatten)]
    quiet: Quiet,
}

#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// The kernels' names
    #[arg(required = true, value_name = "KERNEL", add = ArgValueCandidates::new(complete::kernel_names))]
    kernels: Vec<ArtifactName>,
    #[command(flatten)]
    quiet: Quiet,
}

impl Kernel {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        match self {
            Self::List(command) => command.run(settings).await,
            Self::Pull(command) => command.run(settings).await,
            Self::Show(command) => command.run(settings).await,
            Self::Import(command) => command.run(settings).await,
            Self::Delete(command) => command.run(settings).await,
        }
    }
}

impl List {
    async fn run(self, settings: &Settings) -> Outcome {
        let client = settings.connect().await?;
        if self.available {
            let catalog = client.catalog(true).await?;
            catalog
                .warning
                .iter()
                .for_each(|text| settings.ui.warn(text));
            match self.json.json {
                true => print_json(&catalog.kernels)?,
                false => print(&catalog_kernel_table(&catalog.kernels))?,
            }
            return Ok(0);
        }
        let kernels = client.kernels().await?;
        match self.json.json {
            true => print_json(&kernels)?,
            false => print(&kernel_table(&kernels, Timestamp::now()))?,
        }
        Ok(0)
    }
}

impl Pull {
    async fn run(self, settings: &Settings) -> Outcome {
        let name = self.name()?;
        let bundle = self.bundle(&name)?;
        let mut signals = Signals::listen()?;
        let client = signals.or(settings.connect()).await?;
        let display = Display::new(settings.ui, Verbosity::from_quiet(self.quiet.quiet));
        let began = Instant::now();
        let operation = match &bundle {
            None => signals.or(client.pull_kernel(&name)).await?,
            Some(bundle) => signals.or(client.pull_kernel_bundle(bundle)).await?,
        };
        let progress = display.operation(&format!("getting kernel `{name}`"), Detail::Stages);
        follow::or_call_off(&client, &operation, progress, &mut signals).await?;
        let kernels = client.kernels().await?;
        let got = kernels.into_iter().find(|kernel| kernel.name == name);
        let kernel = got.ok_or_else(|| {
            let message = format!("the kernel `{name}` was pulled and is not in the list");
            ApiError::new(ErrorKind::NotFound, message)
        })?;
        display.note(&format!(
            "kernel `{}` is here after {}: Linux {}",
            kernel.name,
            took(began.elapsed()),
            kernel.release
        ));
        if self.json.json {
            print_json(&kernel)?;
        }
        Ok(0)
    }

    /// The bundle that is wanted, if one is.
    fn bundle(&self, name: &ArtifactName) -> Result<Option<PullBundle>, ApiError> {
        let KernelSource::Bundle(url) = &self.kernel else {
            return Ok(None);
        };
        let hash = self.sha256.as_deref().ok_or_else(source::unverifiable)?;
        Ok(Some(PullBundle {
            url: url.clone(),
            digest: source::digest(hash)?,
            name: Some(name.clone()),
            kernel: None,
        }))
    }

    /// What the kernel will be called; refuses what makes no sense together.
    fn name(&self) -> Result<ArtifactName, ApiError> {
        match &self.kernel {
            KernelSource::Catalog(_) if self.name.is_some() || self.sha256.is_some() => {
                let message = "a kernel of the catalog is as the catalog says";
                Err(ApiError::new(ErrorKind::Invalid, message)
                    .with_hint("`--name` and `--sha256` are for bundles, which have an address"))
            }
            KernelSource::Catalog(name) => Ok(name.clone()),
            KernelSource::Bundle(url) => {
                let name = self.name.clone().or_else(|| url.suggested_name());
                name.ok_or_else(|| {
                    let message = "what should the kernel be called?";
                    ApiError::new(ErrorKind::Invalid, message).with_hint("say it with `--name`")
                })
            }
        }
    }
}

impl Show {
    async fn run(self, settings: &Settings) -> Outcome {
        let kernels = settings.connect().await?.kernels().await?;
        let kernel = kernels
            .into_iter()
            .find(|kernel| kernel.name == self.kernel);
        let kernel = kernel.ok_or_else(|| {
            let message = format!("there is no kernel `{}` here", self.kernel);
            ApiError::new(ErrorKind::NotFound, message)
                .with_hint("see `banger kernel list`; `banger kernel pull` gets one of the catalog")
        })?;
        match self.json.json {
            true => print_json(&kernel)?,
            false => print(&kernel_text(&kernel, Timestamp::now()))?,
        }
        Ok(0)
    }
}

impl Import {
    async fn run(self, settings: &Settings) -> Outcome {
        let mut signals = Signals::listen()?;
        let client = signals.or(settings.connect()).await?;
        let kernel = match (self.vmlinux, self.bundle) {
            (Some(vmlinux), _) => {
                let files = KernelFiles {
                    vmlinux,
                    initrd: self.initrd,
                    modules: self.modules,
                };
                signals.or(send(&client, &self.name, files)).await?
            }
            (None, bundle) => {
                let bundle = read_file(&bundle.unwrap_or_else(|| "-".into()))?;
                let hash = self.sha256.as_deref();
                let sent = client.import_kernel(&self.name, hash, bundle.into_stream());
                signals.or(sent).await?
            }
        };
        match self.json.json {
            true => print_json(&kernel)?,
            false => Display::new(settings.ui, Verbosity::from_quiet(self.quiet.quiet)).note(
                &format!("kernel `{}` is here: Linux {}", kernel.name, kernel.release),
            ),
        }
        Ok(0)
    }
}

impl Delete {
    async fn run(self, settings: &Settings) -> Outcome {
        let client = settings.connect().await?;
        let display = Display::new(settings.ui, Verbosity::from_quiet(self.quiet.quiet));
        for kernel in &self.kernels {
            client.delete_kernel(kernel).await?;
            display.note(&format!("kernel `{kernel}` is deleted"));
        }
        Ok(0)
    }
}

/// Has the daemon make the kernel `name` of files of this host.
///
/// # Errors
/// They cannot be read, or are no kernel.
pub(crate) async fn send(
    client: &Client,
    name: &ArtifactName,
    files: KernelFiles,
) -> Result<ApiKernel, Failure> {
    let archive = files.pack()?.into_stream();
    Ok(client.import_kernel(name, None, archive).await?)
}

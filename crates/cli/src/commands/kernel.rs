//! `banger kernel`

use std::path::PathBuf;

use banger_client::Client;
use banger_proto::api::Kernel as ApiKernel;
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::name::ArtifactName;
use clap::{Args, Subcommand, ValueHint};
use clap_complete::ArgValueCandidates;
use jiff::Timestamp;

use crate::archive::{KernelFiles, read_file};
use crate::args::{Json, Quiet};
use crate::complete;
use crate::failure::{Failure, Outcome};
use crate::output::{print, print_json};
use crate::progress::{Display, Verbosity};
use crate::render::lists::{kernel_table, kernel_text};
use crate::settings::Settings;
use crate::signals::Signals;

const LIST_EXAMPLES: &str = "\
Examples:
  banger kernel list
  banger kernel list --available
  banger kernel list --json";

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
    /// List what the catalog has and is not here
    #[arg(long)]
    available: bool,
    #[command(flatten)]
    json: Json,
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
            let names = client.available_kernels().await?;
            match self.json.json {
                true => print_json(&names)?,
                false => print(
                    &names
                        .iter()
                        .map(|name| format!("{name}\n"))
                        .collect::<String>(),
                )?,
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

impl Show {
    async fn run(self, settings: &Settings) -> Outcome {
        let kernels = settings.connect().await?.kernels().await?;
        let kernel = kernels
            .into_iter()
            .find(|kernel| kernel.name == self.kernel);
        let kernel = kernel.ok_or_else(|| {
            let message = format!("there is no kernel `{}` here", self.kernel);
            ApiError::new(ErrorKind::NotFound, message)
                .with_hint("see `banger kernel list`; one of the catalog comes with its image")
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

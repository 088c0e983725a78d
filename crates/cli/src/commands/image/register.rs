//! `banger image register`

use std::path::{Path, PathBuf};

use banger_proto::api::RegisterImage;
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::name::ArtifactName;
use clap::{Args, ValueHint};
use clap_complete::ArgValueCandidates;

use crate::archive::KernelFiles;
use crate::args::{Json, Quiet};
use crate::complete;
use crate::failure::{Failure, Outcome};
use crate::output::print_json;
use crate::progress::{Display, Verbosity};
use crate::settings::Settings;
use crate::signals::Signals;

const EXAMPLES: &str = "\
Examples:
  banger image register --name base --rootfs /srv/images/base.ext4
  banger image register --name base --rootfs /srv/images/base.ext4 --kernel-ref generic-6.1
  banger image register --name mine --rootfs /srv/mine.ext4 --kernel ./vmlinux --modules ./modules

The file stays where it is and is not changed; with the same name again, the record is. With
--kernel, the kernel is imported under the image's name. `banger image promote` copies the file
into banger's own store.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Register {
    /// What the image is to be called
    #[arg(long)]
    name: ArtifactName,
    /// Its root file system: an ext4 file, by its absolute path
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    rootfs: PathBuf,
    /// An ext4 file with a directory `root`, which new VMs get as their /root
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    work_seed: Option<PathBuf>,
    /// The kernel that it boots with, of those that `banger kernel list` shows or the catalog has
    #[arg(long, value_name = "NAME", conflicts_with = "kernel", add = ArgValueCandidates::new(complete::kernel_names))]
    kernel_ref: Option<ArtifactName>,
    /// A kernel of its own: `vmlinux` or a bzImage
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    kernel: Option<PathBuf>,
    /// An initrd that is unpacked before banger's own
    #[arg(long, value_name = "FILE", requires = "kernel", value_hint = ValueHint::FilePath)]
    initrd: Option<PathBuf>,
    /// The kernel's modules, as in `/lib/modules/<release>`
    #[arg(long, value_name = "DIR", requires = "kernel", value_hint = ValueHint::DirPath)]
    modules: Option<PathBuf>,
    #[command(flatten)]
    json: Json,
    #[command(flatten)]
    quiet: Quiet,
}

impl Register {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let rootfs = text(&self.rootfs)?;
        let work_seed = self.work_seed.as_deref().map(text).transpose()?;
        let mut signals = Signals::listen()?;
        let client = signals.or(settings.connect()).await?;
        let kernel = match self.kernel {
            None => self.kernel_ref,
            Some(vmlinux) => {
                let files = KernelFiles {
                    vmlinux,
                    initrd: self.initrd,
                    modules: self.modules,
                };
                signals
                    .or(super::super::kernel::send(&client, &self.name, files))
                    .await?;
                Some(self.name.clone())
            }
        };
        let image = RegisterImage {
            name: self.name,
            rootfs,
            work_seed,
            kernel,
        };
        let image = signals.or(client.register_image(&image)).await?;
        if self.json.json {
            print_json(&image)?;
        } else {
            Display::new(settings.ui, Verbosity::from_quiet(self.quiet.quiet))
                .note(&format!("image `{}` is registered", image.name));
        }
        Ok(0)
    }
}

fn text(path: &Path) -> Result<String, Failure> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        let message = format!("the path `{}` is not UTF-8", path.display());
        ApiError::new(ErrorKind::Invalid, message).into()
    })
}

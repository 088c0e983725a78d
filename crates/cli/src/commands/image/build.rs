//! `banger image build`

use std::path::{Path, PathBuf};
use std::process::Stdio;

use banger_client::Client;
use banger_proto::api::{BuildImage, BuildScript};
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::name::ArtifactName;
use banger_proto::size::ByteSize;
use clap::{ArgGroup, Args};
use clap_complete::ArgValueCandidates;

use crate::args::{Json, Quiet, size};
use crate::complete;
use crate::failure::{Failure, Outcome};
use crate::follow;
use crate::output::{print, print_json};
use crate::progress::{Detail, Display, Verbosity};
use crate::settings::Settings;
use crate::signals::Signals;
use crate::source::{self, Source, Wanted};

const EXAMPLES: &str = "\
Examples:
  banger image build --name devbox --from-image debian-bookworm-slim --package jq --package make
  banger image build --name devbox --from-image base --docker --script ./setup.sh
  banger image build --name app -f Dockerfile .
  banger image build --name app -f Dockerfile --build-arg VERSION=2 ./app

With --from-image a VM of that image gets the packages, runs the scripts as root, in order, and
becomes the image; it is gone afterwards in any case. What is printed is shown, and kept with the
operation and in a file. With -f, buildah builds the image on this host, as you.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[command(group = ArgGroup::new("of").required(true).args(["from_image", "file"]))]
pub(crate) struct Build {
    /// What the image is to be called
    #[arg(long)]
    name: ArtifactName,
    /// The image to begin with
    #[arg(long, value_name = "IMAGE", add = ArgValueCandidates::new(complete::image_names))]
    from_image: Option<ArtifactName>,
    /// Install Docker, and start it at each boot
    #[arg(long, requires = "from_image")]
    docker: bool,
    /// Install a package, by the image's own package manager; may be given several times
    #[arg(long = "package", value_name = "PACKAGE", requires = "from_image")]
    packages: Vec<String>,
    /// Run this file in it, as root; may be given several times
    #[arg(long = "script", value_name = "FILE", requires = "from_image")]
    scripts: Vec<PathBuf>,
    /// Room for what is added, with --from-image; the most that its files may take, with -f
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true)]
    size: Option<ByteSize>,
    /// Supersede an image of this name; VMs that were made of it keep it
    #[arg(long, requires = "from_image")]
    replace: bool,
    /// Print the operation's id at once, and do not wait
    #[arg(long, requires = "from_image")]
    no_wait: bool,
    /// The Dockerfile to build
    #[arg(long, short, value_name = "DOCKERFILE")]
    file: Option<PathBuf>,
    /// A value for the Dockerfile; may be given several times
    #[arg(long = "build-arg", value_name = "KEY=VALUE", requires = "file")]
    build_args: Vec<String>,
    /// The kernel that it is to boot with, with -f
    #[arg(long, value_name = "KERNEL", requires = "file")]
    kernel_ref: Option<ArtifactName>,
    /// What the Dockerfile may copy from
    #[arg(value_name = "CONTEXT", default_value = ".", requires = "file")]
    context: PathBuf,
    #[command(flatten)]
    json: Json,
    #[command(flatten)]
    quiet: Quiet,
}

impl Build {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        match (&self.from_image, &self.file) {
            (Some(base), _) => self.of_image(base, settings).await,
            (None, Some(file)) => self.of_dockerfile(file, settings).await,
            (None, None) => unreachable!("clap wants one of them"),
        }
    }

    async fn of_image(&self, base: &ArtifactName, settings: &Settings) -> Outcome {
        // Files are read before anything is begun.
        let scripts: Result<Vec<BuildScript>, Failure> =
            self.scripts.iter().map(|path| read_script(path)).collect();
        let build = BuildImage {
            name: self.name.clone(),
            from: base.clone(),
            docker: self.docker,
            packages: self.packages.clone(),
            scripts: scripts?,
            size: self.size,
            replace: self.replace,
        };
        let mut signals = Signals::listen()?;
        let client = signals.or(settings.connect()).await?;
        let operation = client.build_image(&build).await?;
        if self.no_wait {
            match self.json.json {
                true => print_json(&operation)?,
                false => print(&format!("{}\n", operation.id))?,
            }
            return Ok(0);
        }
        let display = Display::new(settings.ui, Verbosity::from_quiet(self.quiet.quiet));
        let title = format!("building image `{}`", self.name);
        let progress = display.operation(&title, Detail::Stages);
        follow::or_call_off(&client, &operation, progress, &mut signals).await?;
        self.told(&client, &display).await
    }

    async fn of_dockerfile(&self, file: &Path, settings: &Settings) -> Outcome {
        let buildah = Buildah::find()?;
        for (what, path) in [("Dockerfile", file), ("directory", &*self.context)] {
            if !path.exists() {
                let message = format!("there is no {what} `{}`", path.display());
                return Err(ApiError::new(ErrorKind::NotFound, message).into());
            }
        }
        let mut signals = Signals::listen()?;
        let client = signals.or(settings.connect()).await?;
        let directory = tempfile::Builder::new().prefix("banger-build-").tempdir();
        let directory = directory.map_err(|error| {
            Failure::system("could not make a temporary directory".to_owned(), &error)
        })?;
        let archive = directory.path().join("image.tar");
        let build = buildah.build(
            file,
            &self.context,
            &self.build_args,
            &archive,
            self.quiet.quiet,
        );
        signals.or(build).await?;
        let display = Display::new(settings.ui, Verbosity::from_quiet(self.quiet.quiet));
        let wanted = Wanted {
            kernel: self.kernel_ref.clone(),
            size: self.size,
            insecure: false,
            digest: None,
        };
        let archive = Source::File(archive);
        let asked = source::ask(&client, &archive, Some(&self.name), &wanted);
        let operation = signals.or(asked).await?;
        let progress = display.operation(&format!("getting image `{}`", self.name), Detail::Stages);
        follow::or_call_off(&client, &operation, progress, &mut signals).await?;
        self.told(&client, &display).await
    }

    async fn told(&self, client: &Client, display: &Display) -> Outcome {
        display.note(&format!("image `{}` is built", self.name));
        if self.json.json {
            let images = client.images().await?;
            let image = images.into_iter().rfind(|image| image.name == self.name);
            print_json(&image)?;
        }
        Ok(0)
    }
}

fn read_script(path: &Path) -> Result<BuildScript, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::system(
            format!("could not read the script `{}`", path.display()),
            &error,
        )
    })?;
    let name = path.file_name().unwrap_or(path.as_os_str());
    Ok(BuildScript {
        name: name.to_string_lossy().into_owned(),
        text,
    })
}

/// The program that builds Dockerfiles.
struct Buildah(PathBuf);

impl Buildah {
    fn find() -> Result<Self, ApiError> {
        banger_process::find("buildah").map(Self).ok_or_else(|| {
            ApiError::new(
                ErrorKind::Precondition,
                "Dockerfiles are built by buildah, which is not installed",
            )
            .with_hint(
                "apt install buildah, or build it elsewhere: `docker save NAME | banger image \
                 pull - --name NAME`",
            )
        })
    }

    /// Builds an image into an archive. What buildah prints goes to standard error.
    async fn build(
        &self,
        file: &Path,
        context: &Path,
        arguments: &[String],
        archive: &Path,
        quiet: bool,
    ) -> Result<(), Failure> {
        let mut command = banger_process::command(&self.0);
        command.arg("build").arg("--file").arg(file);
        if quiet {
            command.arg("--quiet");
        }
        for argument in arguments {
            command.arg("--build-arg").arg(argument);
        }
        command.arg("--tag");
        command.arg(format!("oci-archive:{}", archive.display()));
        command.arg(context);
        let talk = rustix::io::dup(rustix::stdio::stderr()).map_err(|errno| {
            Failure::system(
                "could not run buildah".to_owned(),
                &std::io::Error::from(errno),
            )
        })?;
        command.stdout(Stdio::from(talk));
        let mut command = tokio::process::Command::from(command);
        command.kill_on_drop(true);
        let status = command.status().await;
        let status = status
            .map_err(|error| Failure::system("could not start buildah".to_owned(), &error))?;
        match status.success() {
            true => Ok(()),
            false => {
                let message = format!("could not build `{}`", file.display());
                let mut error = ApiError::new(ErrorKind::Failed, message);
                error.causes.push(format!("buildah: {status}"));
                Err(error.into())
            }
        }
    }
}

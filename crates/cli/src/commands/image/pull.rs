//! `banger image pull`

use std::time::Instant;

use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::name::ArtifactName;
use banger_proto::size::ByteSize;
use clap::Args;
use clap_complete::ArgValueCandidates;

use crate::args::{Json, Quiet, size};
use crate::complete;
use crate::failure::Outcome;
use crate::follow;
use crate::output::print_json;
use crate::progress::{Detail, Display, Verbosity};
use crate::render::time::took;
use crate::settings::Settings;
use crate::signals::Signals;
use crate::source::{self, ImageName, Source, Wanted};

const EXAMPLES: &str = "\
Examples:
  banger image pull debian-bookworm
  banger image pull debian-bookworm-slim --json
  banger image pull alpine:3.20
  banger image pull registry.example.com/team/app:1.4 --name app
  banger image pull docker-archive:app.tar
  docker save app:1.4 | banger image pull - --name app

A word without `:`, `/` and `@` is an image of banger's catalog. Registries are asked as the user
whom `docker login` or `podman login` has made known.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Pull {
    /// An image of the catalog or of a registry (NAME:TAG), docker-archive:FILE,
    /// oci-archive:FILE, oci:DIRECTORY, or - for an archive on standard input
    #[arg(value_name = "IMAGE", add = ArgValueCandidates::new(complete::image_names))]
    image: Source,
    /// What to call it here [default: made of its name there]
    #[arg(long)]
    name: Option<ArtifactName>,
    /// The kernel that it is to boot with
    #[arg(long, value_name = "KERNEL")]
    kernel_ref: Option<ArtifactName>,
    /// The most that its files may take [default: 4G and 50 times what is fetched]
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true)]
    size: Option<ByteSize>,
    /// Use plain HTTP if the registry speaks no TLS; on the loopback that is so anyway
    #[arg(long)]
    insecure: bool,
    #[command(flatten)]
    json: Json,
    #[command(flatten)]
    quiet: Quiet,
}

impl Pull {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let name = self.name()?;
        let wanted = Wanted {
            kernel: self.kernel_ref,
            size: self.size,
            insecure: self.insecure,
        };
        let mut signals = Signals::listen()?;
        let client = signals.or(settings.connect()).await?;
        let display = Display::new(settings.ui, Verbosity::from_quiet(self.quiet.quiet));
        let began = Instant::now();
        let asked = source::ask(&client, &self.image, &name, &wanted);
        let operation = signals.or(asked).await?;
        let progress = display.operation(&format!("getting image `{name}`"), Detail::Stages);
        follow::or_call_off(&client, &operation, progress, &mut signals).await?;
        display.note(&format!(
            "image `{name}` is here after {}",
            took(began.elapsed())
        ));
        if self.json.json {
            let images = client.images().await?;
            let image = images.into_iter().rfind(|image| image.name == name);
            print_json(&image.ok_or_else(|| {
                let message = format!("image `{name}` was pulled and is not in the list");
                ApiError::new(ErrorKind::NotFound, message)
            })?)?;
        }
        Ok(0)
    }

    /// What the image will be called; refuses what makes no sense together.
    fn name(&self) -> Result<ArtifactName, ApiError> {
        let invalid = |message: &str| ApiError::new(ErrorKind::Invalid, message);
        if let Source::Named(ImageName::Ours(name)) = &self.image {
            let asks = self.name.is_some()
                || self.kernel_ref.is_some()
                || self.size.is_some()
                || self.insecure;
            return match asks {
                false => Ok(name.clone()),
                true => Err(
                    invalid("an image of the catalog is as the catalog says").with_hint(format!(
                        "for the image of a registry, say `{name}:latest`, or its whole name"
                    )),
                ),
            };
        }
        let name = self.name.clone().or_else(|| self.image.suggested_name());
        name.ok_or_else(|| {
            invalid("what should the image be called?").with_hint("say it with `--name`")
        })
    }
}

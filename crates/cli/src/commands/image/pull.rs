//! `banger image pull`

use std::time::Instant;

use banger_client::Client;
use banger_proto::api::Image;
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::name::ArtifactName;
use banger_proto::reference::Digest;
use banger_proto::size::ByteSize;
use clap::Args;
use clap_complete::ArgValueCandidates;

use crate::args::{Json, Quiet, size};
use crate::complete;
use crate::failure::{Failure, Outcome};
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
  banger image pull https://example.org/devbox.tar.zst --sha256 9f86d0…

A word without `:`, `/` and `@` is an image of banger's catalog. Registries are asked as the user
whom `docker login` or `podman login` has made known. What comes from an address is a bundle that
`banger image export` has made.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Pull {
    /// An image of the catalog or of a registry (NAME:TAG), the address of a bundle,
    /// docker-archive:FILE, oci-archive:FILE, oci:DIRECTORY, or - for an archive on standard input
    #[arg(value_name = "IMAGE", add = ArgValueCandidates::new(complete::catalog_images))]
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
    /// The SHA-256 that a bundle must have
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
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
            digest: self.sha256.as_deref().map(source::digest).transpose()?,
        };
        let mut signals = Signals::listen()?;
        let client = signals.or(settings.connect()).await?;
        let display = Display::new(settings.ui, Verbosity::from_quiet(self.quiet.quiet));
        let began = Instant::now();
        let asked = source::ask(&client, &self.image, name.as_ref(), &wanted);
        let operation = signals.or(asked).await?;
        let title = match &name {
            Some(name) => format!("getting image `{name}`"),
            None => "getting an image".to_owned(),
        };
        let progress = display.operation(&title, Detail::Stages);
        follow::or_call_off(&client, &operation, progress, &mut signals).await?;
        let image = got(&client, name.as_ref(), wanted.digest.as_ref()).await?;
        display.note(&format!(
            "image `{}` is here after {}",
            image.name,
            took(began.elapsed())
        ));
        if self.json.json {
            print_json(&image)?;
        }
        Ok(0)
    }

    /// What the image will be called, unless a bundle says it; refuses what makes no sense together.
    fn name(&self) -> Result<Option<ArtifactName>, ApiError> {
        let invalid = |message: &str| ApiError::new(ErrorKind::Invalid, message);
        let is_bundle = matches!(self.image, Source::Bundle(_));
        if is_bundle && (self.size.is_some() || self.insecure) {
            return Err(invalid(
                "`--size` and `--insecure` are for images of registries",
            ));
        }
        match (is_bundle, &self.sha256) {
            (true, None) => return Err(source::unverifiable()),
            (false, Some(_)) => {
                return Err(invalid("`--sha256` is for bundles, which have an address")
                    .with_hint("an image of a registry is pinned by its digest: NAME@sha256:…"));
            }
            _ => {}
        }
        if let Source::Named(ImageName::Ours(name)) = &self.image {
            let asks = self.name.is_some()
                || self.kernel_ref.is_some()
                || self.size.is_some()
                || self.insecure;
            return match asks {
                false => Ok(Some(name.clone())),
                true => Err(
                    invalid("an image of the catalog is as the catalog says").with_hint(format!(
                        "for the image of a registry, say `{name}:latest`, or its whole name"
                    )),
                ),
            };
        }
        match self.name.clone().or_else(|| self.image.suggested_name()) {
            None if !is_bundle => Err(source::nameless()),
            name => Ok(name),
        }
    }
}

/// The image that was pulled: by its name, or else by the hash of its bundle.
async fn got(
    client: &Client,
    name: Option<&ArtifactName>,
    digest: Option<&Digest>,
) -> Result<Image, Failure> {
    let images = client.images().await?;
    let found = images.into_iter().rfind(|image| match (name, digest) {
        (Some(name), _) => image.name == *name,
        (None, Some(digest)) => image.digest == digest.as_str(),
        (None, None) => false,
    });
    found.ok_or_else(|| {
        let message = "the image was pulled and is not in the list";
        ApiError::new(ErrorKind::NotFound, message).into()
    })
}

//! Where an image comes from, as it is typed, and how it gets here.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Instant;

use banger_client::Client;
use banger_proto::api::{Operation, PullBundle, PullImage};
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::name::{ArtifactName, InvalidName};
use banger_proto::reference::{Digest, ImageReference, InvalidReference};
use banger_proto::size::ByteSize;
use banger_proto::url::{InvalidUrl, WebUrl};
use bytes::Bytes;
use futures_util::Stream;
use tokio_util::io::ReaderStream;

use crate::archive::{self, Owners, Packing};
use crate::credentials;
use crate::failure::Failure;
use crate::follow;
use crate::progress::{Detail, Display};
use crate::render::time::took;
use crate::signals::Signals;

/// Bytes of an archive that are sent at a time.
const PIECE: usize = 256 << 10;

/// An image that a VM can be made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ImageName {
    /// One that is here, or of the catalog.
    Ours(ArtifactName),
    /// One in a registry.
    Reference(ImageReference),
}

/// Why a text names no image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidImage {
    #[error("{0}; an image of a registry has a tag: `{1}:latest`")]
    Name(InvalidName, String),
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    #[error(transparent)]
    Url(#[from] InvalidUrl),
    #[error("an address is for `banger image pull`: get the image first, then use its name")]
    UrlHere,
}

impl FromStr for ImageName {
    type Err = InvalidImage;

    fn from_str(text: &str) -> Result<Self, InvalidImage> {
        if is_address(text) {
            return Err(InvalidImage::UrlHere);
        }
        match ImageReference::is_meant_by(text) {
            true => Ok(Self::Reference(text.parse()?)),
            false => match text.parse() {
                Ok(name) => Ok(Self::Ours(name)),
                Err(error) => Err(InvalidImage::Name(error, text.to_owned())),
            },
        }
    }
}

/// Whether a text is meant as an address on the web. `docker://` begins references.
pub(crate) fn is_address(text: &str) -> bool {
    WebUrl::is_meant_by(text) && !text.starts_with("docker://")
}

/// Where `banger image pull` gets an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The catalog or a registry.
    Named(ImageName),
    /// A file that `docker save`, `podman save` or `skopeo` wrote.
    File(PathBuf),
    /// A directory that is an image layout.
    Layout(PathBuf),
    /// Such a file, on standard input.
    Stdin,
    /// A bundle on the web.
    Bundle(WebUrl),
}

impl FromStr for Source {
    type Err = InvalidImage;

    fn from_str(text: &str) -> Result<Self, InvalidImage> {
        let after = |prefix| text.strip_prefix(prefix).map(PathBuf::from);
        Ok(if text == "-" {
            Self::Stdin
        } else if let Some(path) = after("docker-archive:").or(after("oci-archive:")) {
            Self::File(path)
        } else if let Some(path) = after("oci:") {
            Self::Layout(path)
        } else if is_address(text) {
            Self::Bundle(text.parse()?)
        } else {
            Self::Named(text.parse()?)
        })
    }
}

impl Source {
    /// What the image is called here if the user chooses no name.
    pub(crate) fn suggested_name(&self) -> Option<ArtifactName> {
        match self {
            Self::Named(ImageName::Ours(name)) => Some(name.clone()),
            Self::Named(ImageName::Reference(reference)) => Some(reference.suggested_name()),
            Self::File(path) | Self::Layout(path) => {
                let stem = path.file_stem()?.to_str()?.to_lowercase();
                stem.trim_end_matches(".tar").parse().ok()
            }
            // A bundle says how its image is called.
            Self::Stdin | Self::Bundle(_) => None,
        }
    }
}

/// What is wanted of an image besides where it comes from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) kernel: Option<ArtifactName>,
    pub(crate) size: Option<ByteSize>,
    pub(crate) insecure: bool,
    /// What a bundle must hash to.
    pub(crate) digest: Option<Digest>,
}

/// Asks the daemon for the image.
pub(crate) async fn ask(
    client: &Client,
    source: &Source,
    name: Option<&ArtifactName>,
    wanted: &Wanted,
) -> Result<Operation, Failure> {
    let Wanted { kernel, size, .. } = wanted;
    let required = || name.ok_or_else(nameless);
    match source {
        Source::Named(ImageName::Ours(name)) => Ok(client.pull_image(name).await?),
        Source::Named(ImageName::Reference(reference)) => {
            let pull = PullImage {
                reference: reference.clone(),
                name: name.cloned(),
                kernel: kernel.clone(),
                size: *size,
                insecure: wanted.insecure,
                auth: credentials::of(reference.registry()).await?,
            };
            Ok(client.pull_reference(&pull).await?)
        }
        Source::Bundle(url) => {
            let pull = PullBundle {
                url: url.clone(),
                digest: wanted.digest.clone().ok_or_else(unverifiable)?,
                name: name.cloned(),
                kernel: kernel.clone(),
            };
            Ok(client.pull_image_bundle(&pull).await?)
        }
        Source::File(path) => {
            let file = tokio::fs::File::open(path).await.map_err(|error| {
                Failure::system(format!("could not read `{}`", path.display()), &error)
            })?;
            let archive = ReaderStream::with_capacity(file, PIECE);
            send(client, required()?, wanted, archive).await
        }
        Source::Stdin => {
            let archive = ReaderStream::with_capacity(tokio::io::stdin(), PIECE);
            send(client, required()?, wanted, archive).await
        }
        Source::Layout(path) => {
            if !path.join("index.json").is_file() {
                let message = format!("`{}` is no image layout", path.display());
                let error = ApiError::new(ErrorKind::Invalid, message);
                return Err(error.with_hint("it would have an `index.json`").into());
            }
            let name = required()?;
            let (writer, reader) = archive::pieces();
            let packing = Packing {
                from: path.clone(),
                root: None,
                owners: Owners::Root,
            };
            // A failure ends the stream with an error, which is told.
            tokio::task::spawn_blocking(move || archive::pack(&packing, writer, |_| {}));
            send(client, name, wanted, reader.into_stream()).await
        }
    }
}

/// Nobody says what the image is to be called.
pub(crate) fn nameless() -> ApiError {
    let message = "what should the image be called?";
    ApiError::new(ErrorKind::Invalid, message).with_hint("say it with `--name`")
}

/// The hash that a bundle must have, as `sha256sum` prints it or as registries write it.
pub(crate) fn digest(text: &str) -> Result<Digest, ApiError> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text).to_lowercase();
    format!("sha256:{digits}").parse().map_err(|_| {
        ApiError::new(ErrorKind::Invalid, format!("`{text}` is not a SHA-256"))
            .with_hint("write the 64 hexadecimal digits that `sha256sum` prints")
    })
}

/// Nobody says what a bundle must hash to.
pub(crate) fn unverifiable() -> ApiError {
    let message = "what comes from an address counts only with the hash that it must have";
    ApiError::new(ErrorKind::Invalid, message)
        .with_hint("say it with `--sha256`: whoever publishes the bundle tells it")
}

async fn send(
    client: &Client,
    name: &ArtifactName,
    wanted: &Wanted,
    archive: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
) -> Result<Operation, Failure> {
    let Wanted { kernel, size, .. } = wanted;
    let sent = client.send_archive(name, kernel.as_ref(), *size, archive);
    Ok(sent.await?)
}

/// The name of an image that a VM is to be made of. One of a registry is got first, unless it
/// has been.
pub(crate) async fn at_hand(
    client: &Client,
    image: &ImageName,
    display: &Display,
    signals: &mut Signals,
) -> Result<ArtifactName, Failure> {
    let reference = match image {
        ImageName::Ours(name) => return Ok(name.clone()),
        ImageName::Reference(reference) => reference,
    };
    let wanted = reference.to_string();
    let images = signals.or(client.images()).await?;
    let known = images
        .into_iter()
        .rfind(|image| image.reference.as_deref() == Some(&wanted));
    if let Some(image) = known {
        return Ok(image.name);
    }
    let name = reference.suggested_name();
    let source = Source::Named(image.clone());
    let began = Instant::now();
    let operation = ask(client, &source, Some(&name), &Wanted::default()).await?;
    let progress = display.operation(&format!("getting image `{name}`"), Detail::Stages);
    follow::or_call_off(client, &operation, progress, signals).await?;
    display.note(&format!(
        "image `{name}` is here after {}",
        took(began.elapsed())
    ));
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_is_made_of_what_has_a_name() {
        let error = "https://example.org/x".parse::<ImageName>().unwrap_err();
        assert!(error.to_string().contains("banger image pull"), "{error}");
    }

    #[test]
    fn sources_are_told_apart_by_what_is_typed() {
        let typed = [
            "debian-bookworm",
            "alpine:3.20",
            "ghcr.io/a/b",
            "docker-archive:/x/App.tar",
            "oci-archive:app.tar.gz",
            "oci:layout",
            "-",
            "Alpine",
            "ghcr.io/A",
            "https://example.org/x.tar.zst",
            "https://user:secret@example.org/x",
            "docker://alpine:3.20",
        ];
        let shown: Vec<_> = typed
            .iter()
            .map(|text| match text.parse::<Source>() {
                Ok(source) => {
                    let name = source.suggested_name();
                    let name = name.map_or("no name".to_owned(), |name| name.to_string());
                    format!("{text}: {name}")
                }
                Err(error) => format!("{text}: {error}"),
            })
            .collect();
        insta::assert_snapshot!(shown.join("\n"), @r"
        debian-bookworm: debian-bookworm
        alpine:3.20: alpine-3.20
        ghcr.io/a/b: ghcr.io-a-b-latest
        docker-archive:/x/App.tar: app
        oci-archive:app.tar.gz: app
        oci:layout: layout
        -: no name
        Alpine: `Alpine` is not an image or kernel name: use 1 to 128 of a-z, 0-9, `.`, `_` and `-`, starting with a letter or digit; an image of a registry has a tag: `Alpine:latest`
        ghcr.io/A: `ghcr.io/A` is not a reference to an image: a repository is made of a-z and 0-9, with `.`, `_`, `-` and `/` between them
        https://example.org/x.tar.zst: no name
        https://user:secret@example.org/x: `…@example.org/x` is not the address of a file on the web: it holds a user or password, which would be kept where others read
        docker://alpine:3.20: alpine-3.20
        ");
    }
}

//! `banger image export`

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use banger_client::{Client, Download};
use banger_proto::error::{ApiError, ErrorKind};
use clap::{Args, ValueHint};
use clap_complete::ArgValueCandidates;

use crate::args::Quiet;
use crate::complete;
use crate::failure::{Failure, Outcome};
use crate::progress::{Display, Verbosity};
use crate::settings::Settings;
use crate::signals::Signals;

const EXAMPLES: &str = "\
Examples:
  banger image export devbox devbox.tar.zst
  banger image export devbox - | ssh elsewhere banger image import -

A bundle holds the image's file system and what is known of it. It appears under its name when
it is whole.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Export {
    /// The image: its name, its id, or the beginning of its id
    #[arg(add = ArgValueCandidates::new(complete::image_names))]
    image: String,
    /// The file to write; `-` is standard output
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    file: PathBuf,
    #[command(flatten)]
    quiet: Quiet,
}

impl Export {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let mut signals = Signals::listen()?;
        let client = signals.or(settings.connect()).await?;
        if self.file == Path::new("-") {
            if io::stdout().is_terminal() {
                let message = "a bundle is nothing for a terminal";
                return Err(ApiError::new(ErrorKind::Precondition, message)
                    .with_hint("name a file, or send standard output elsewhere")
                    .into());
            }
            signals.or(self.write(&client, &mut io::stdout())).await?;
            return Ok(0);
        }
        let failed = |error: &io::Error| {
            let message = format!("could not write `{}`", self.file.display());
            Failure::system(message, error)
        };
        let directory = match self.file.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let mut draft = tempfile::Builder::new()
            .prefix(".banger-export-")
            .tempfile_in(directory)
            .map_err(|error| failed(&error))?;
        signals.or(self.write(&client, &mut draft)).await?;
        draft.as_file().sync_all().map_err(|error| failed(&error))?;
        draft
            .persist(&self.file)
            .map_err(|error| failed(&error.error))?;
        Display::new(settings.ui, Verbosity::from_quiet(self.quiet.quiet)).note(&format!(
            "image `{}` is in `{}`",
            self.image,
            self.file.display()
        ));
        Ok(0)
    }

    async fn write(&self, client: &Client, into: &mut impl Write) -> Result<(), Failure> {
        let mut bundle: Download = client.export_image(&self.image).await?;
        while let Some(piece) = bundle.next().await? {
            into.write_all(&piece)
                .map_err(|error| self.failed(&error))?;
        }
        into.flush().map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &io::Error) -> Failure {
        match self.file == Path::new("-") {
            true => Failure::output(error),
            false => Failure::system(format!("could not write `{}`", self.file.display()), error),
        }
    }
}

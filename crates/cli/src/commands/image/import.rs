//! `banger image import`

use std::path::PathBuf;

use banger_proto::name::ArtifactName;
use clap::{Args, ValueHint};

use crate::archive::read_file;
use crate::args::{Json, Quiet};
use crate::failure::Outcome;
use crate::output::print_json;
use crate::progress::{Display, Verbosity};
use crate::settings::Settings;
use crate::signals::Signals;

const EXAMPLES: &str = "\
Examples:
  banger image import devbox.tar.zst
  banger image import --name other --sha256 9f86d0… devbox.tar.zst
  curl https://example.org/devbox.tar.zst | banger image import --sha256 9f86d0… -

Takes what `banger image export` makes.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Import {
    /// The bundle; `-` is standard input
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// What the image is to be called; as the bundle says if left out
    #[arg(long)]
    name: Option<ArtifactName>,
    /// Refuse a bundle that does not have this SHA-256
    #[arg(long, value_name = "DIGITS")]
    sha256: Option<String>,
    #[command(flatten)]
    json: Json,
    #[command(flatten)]
    quiet: Quiet,
}

impl Import {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let bundle = read_file(&self.file)?;
        let mut signals = Signals::listen()?;
        let client = signals.or(settings.connect()).await?;
        let name = self.name.as_ref();
        let sent = client.import_image(name, self.sha256.as_deref(), bundle.into_stream());
        let image = signals.or(sent).await?;
        match self.json.json {
            true => print_json(&image)?,
            false => Display::new(settings.ui, Verbosity::from_quiet(self.quiet.quiet))
                .note(&format!("image `{}` is here", image.name)),
        }
        Ok(0)
    }
}

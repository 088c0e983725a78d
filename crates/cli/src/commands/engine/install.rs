//! `banger engine install`

use std::path::{Path, PathBuf};
use std::time::Instant;

use banger_client::{Client, ClientError};
use banger_proto::api::{EngineKind, InstallEngine, Operation};
use banger_proto::error::{ApiError, ErrorKind};
use clap::{Args, ValueHint};
use tokio::fs::File;
use tokio_util::io::ReaderStream;

use crate::args::{EngineArg, Json, Quiet, sha256};
use crate::failure::{Failure, Outcome};
use crate::follow;
use crate::output::print_json;
use crate::progress::{Detail, Display, Verbosity};
use crate::render::engine::{unused, unverified};
use crate::render::time::took;
use crate::settings::Settings;
use crate::signals::Signals;

/// Bytes that are read of a file at once.
const PIECE: usize = 128 << 10;

const EXAMPLES: &str = "\
Examples:
  banger engine install firecracker
  banger engine install firecracker --from firecracker-v1.16.1-x86_64.tgz
  banger engine install firecracker --from ./firecracker

banger knows one release by its SHA-256, downloads it, and installs nothing else. A file is an
archive of that release; that of another release, with the hash that you give; or the program
`firecracker` itself, which is believed because you name it. What is installed is replaced.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Install {
    /// The engine
    engine: EngineArg,
    /// Install it from this file: a release's archive, or the program itself
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    from: Option<PathBuf>,
    /// Take only what has this SHA-256: the file, or what `firecracker_url` in the config names
    #[arg(long, value_name = "HEX", value_parser = sha256)]
    sha256: Option<String>,
    #[command(flatten)]
    json: Json,
    #[command(flatten)]
    quiet: Quiet,
}

impl Install {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let engine = EngineKind::from(self.engine);
        let mut signals = Signals::listen()?;
        let file = match &self.from {
            Some(path) => Some(open(path).await?),
            None => None,
        };
        let client = signals.or(settings.connect()).await?;
        let display = Display::new(settings.ui, Verbosity::from_quiet(self.quiet.quiet));
        let began = Instant::now();
        let operation = signals.or(self.begin(&client, engine, file)).await?;
        let progress = display.operation(&format!("installing {engine}"), Detail::Stages);
        follow::or_call_off(&client, &operation, progress, &mut signals).await?;
        let installed = client.engine(engine).await?;
        let version = installed.installed.as_ref().map(|it| it.version.as_str());
        display.note(&format!(
            "{engine} {} is installed after {}",
            version.unwrap_or_default(),
            took(began.elapsed())
        ));
        if self.from.is_some() && self.sha256.is_none() {
            unverified(&installed).inspect(|note| display.note(note));
        }
        unused(&installed).inspect(|note| display.note(note));
        if self.json.json {
            print_json(&installed)?;
        }
        Ok(0)
    }

    async fn begin(
        &self,
        client: &Client,
        engine: EngineKind,
        file: Option<File>,
    ) -> Result<Operation, ClientError> {
        match file {
            Some(file) => {
                let pieces = ReaderStream::with_capacity(file, PIECE);
                let sha256 = self.sha256.as_deref();
                client.install_engine_from(engine, sha256, pieces).await
            }
            None => {
                let request = InstallEngine {
                    sha256: self.sha256.clone(),
                };
                client.install_engine(engine, &request).await
            }
        }
    }
}

async fn open(path: &Path) -> Result<File, Failure> {
    let failed = |error| Failure::system(format!("could not open `{}`", path.display()), &error);
    let file = File::open(path).await.map_err(failed)?;
    let metadata = file.metadata().await.map_err(failed)?;
    match metadata.is_dir() {
        false => Ok(file),
        true => Err(ApiError::new(
            ErrorKind::Invalid,
            format!("`{}` is a directory", path.display()),
        )
        .with_hint("give the release's archive, or the program `firecracker` in it")
        .into()),
    }
}

//! `banger image cache`

use banger_proto::size::ByteSize;
use clap::{Args, Subcommand};

use crate::args::{Json, Quiet};
use crate::failure::Outcome;
use crate::output::{print, print_json};
use crate::progress::{Display, Verbosity};
use crate::render::catalog::cache_table;
use crate::render::lists::rounded;
use crate::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  banger image cache prune --dry-run
  banger image cache prune

Frees what nobody uses just now: downloads, layers of registries, templates of disks, and catalogs
that no longer count. All of it can be had again. Images and kernels stay: see `banger image prune`.";

#[derive(Debug, Subcommand)]
pub(crate) enum Cache {
    /// Remove what is kept to be quicker the next time
    Prune(Prune),
}

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Prune {
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    json: Json,
    #[command(flatten)]
    quiet: Quiet,
}

impl Cache {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        match self {
            Self::Prune(command) => command.run(settings).await,
        }
    }
}

impl Prune {
    async fn run(self, settings: &Settings) -> Outcome {
        let client = settings.connect().await?;
        let parts = client.prune_cache(self.dry_run).await?;
        if self.json.json {
            print_json(&parts)?;
            return Ok(0);
        }
        let freed = parts.iter().map(|part| part.freed.bytes()).sum();
        let freed = rounded(ByteSize::from_bytes(freed));
        let display = Display::new(settings.ui, Verbosity::from_quiet(self.quiet.quiet));
        match self.dry_run {
            true => {
                print(&cache_table(&parts))?;
                display.note(&format!("{freed} would be freed"));
            }
            false => {
                for part in parts.iter().filter(|part| part.files > 0) {
                    let (what, size) = (part.kind.as_str(), rounded(part.freed));
                    display.note(&format!("{what}: {} removed, {size}", part.files));
                }
                display.note(&format!("{freed} is freed"));
            }
        }
        Ok(0)
    }
}

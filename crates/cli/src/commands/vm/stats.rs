//! `banger vm stats`

use std::io::IsTerminal;
use std::time::Duration;

use banger_client::Client;
use banger_proto::api::VmStats;
use clap::Args;
use clap_complete::ArgValueCandidates;
use futures_util::future::join_all;
use tokio::time::sleep;

use crate::args::Json;
use crate::complete;
use crate::failure::{Failure, Outcome};
use crate::near;
use crate::output::{print, print_json, print_json_line};
use crate::render::stats::{Looks, stats_table};
use crate::settings::Settings;

/// Between the two looks that a rate needs.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

const EXAMPLES: &str = "\
Examples:
  banger vm stats
  banger vm stats calm-otter --watch
  banger vm stats --json

CPU is the share of one CPU over a second: 200% are two CPUs at work. HOST is what the VM takes
of this host's memory and disk. JSON has the counters themselves; with --watch it is one list a
line.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Stats {
    /// The VMs: names, ids, or beginnings of ids [default: all that run]
    #[arg(value_name = "VM", add = ArgValueCandidates::new(complete::vm_names))]
    vms: Vec<String>,
    /// Look again and again, every 2 seconds or as stats_poll_interval in the config says
    #[arg(long, short)]
    watch: bool,
    #[command(flatten)]
    json: Json,
}

impl Stats {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let client = settings.connect().await?;
        let mut looks = Looks::default();
        let first = look(&client, &self.vms).await?;
        match (self.json.json, self.watch) {
            (true, false) => {
                print_json(&first)?;
                return Ok(0);
            }
            (true, true) => print_json_line(&first)?,
            (false, _) => drop(looks.add(first)),
        }
        if !self.watch {
            sleep(BETWEEN_LOOKS).await;
            let rows = looks.add(look(&client, &self.vms).await?);
            print(&stats_table(&rows))?;
            return Ok(0);
        }
        let every = settings.config()?.stats_poll_interval.duration();
        let mut screen = Screen::new();
        sleep(BETWEEN_LOOKS).await;
        loop {
            let now = look(&client, &self.vms).await?;
            match self.json.json {
                true => print_json_line(&now)?,
                false => screen.show(&stats_table(&looks.add(now)))?,
            }
            sleep(every).await;
        }
    }
}

async fn look(client: &Client, vms: &[String]) -> Result<Vec<VmStats>, Failure> {
    if vms.is_empty() {
        return Ok(client.stats().await?);
    }
    let looks = vms.iter().map(async |vm| match client.vm_stats(vm).await {
        Ok(stats) => Ok(stats),
        Err(error) => Err(near::explain(client, vm, error).await),
    });
    join_all(looks).await.into_iter().collect()
}

/// Where a table takes the place of the one before: a terminal. Elsewhere they follow each
/// other, with one line of headings.
#[derive(Debug)]
struct Screen {
    terminal: bool,
    /// Lines of the table that is shown; `None` before the first.
    shown: Option<usize>,
}

impl Screen {
    fn new() -> Self {
        Self {
            terminal: std::io::stdout().is_terminal(),
            shown: None,
        }
    }

    fn show(&mut self, table: &str) -> Result<(), Failure> {
        let before = self.shown.replace(table.lines().count());
        match (self.terminal, before) {
            (_, None) => print(table),
            // Up to where the table began, and away with all from there on (ECMA-48: CUU, ED).
            (true, Some(lines)) => print(&format!("\x1b[{lines}A\x1b[J{table}")),
            (false, Some(_)) => {
                let rows = table.split_once('\n').map_or("", |(_, rows)| rows);
                print(rows)
            }
        }
    }
}

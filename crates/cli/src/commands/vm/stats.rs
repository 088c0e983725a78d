//! `banger vm stats`

use std::io::IsTerminal;
use std::time::Duration;

use banger_client::Client;
use banger_proto::api::VmStats;
use banger_proto::exit;
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
use crate::session::terminal_size;
use crate::settings::Settings;
use crate::ui::Ui;

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
    /// The VMs: names, ids, or the first 4 or more digits of ids [default: all that run]
    #[arg(value_name = "VM", value_parser = crate::args::vm_selector, add = ArgValueCandidates::new(complete::vm_names))]
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
        let mut looking = Looking {
            client: &client,
            ui: settings.ui,
            wanted: match self.vms.is_empty() {
                true => Wanted::Running,
                false => Wanted::Named(self.vms),
            },
            missed: false,
        };
        let mut looks = Looks::default();
        if !self.json.json && settings.ui.live {
            settings
                .ui
                .note("two looks, a second apart; a guest that does not answer takes longer");
        }
        let first = looking.look().await?;
        match (self.json.json, self.watch) {
            (true, false) => {
                print_json(&first)?;
                return Ok(looking.status());
            }
            (true, true) => print_json_line(&first)?,
            (false, _) => drop(looks.add(first)),
        }
        if !self.watch {
            if !looking.has_ended() {
                sleep(BETWEEN_LOOKS).await;
                let rows = looks.add(looking.look().await?);
                print(&stats_table(&rows))?;
            }
            return Ok(looking.status());
        }
        let every = settings.config()?.stats_poll_interval.duration();
        let mut screen = Screen::new();
        sleep(BETWEEN_LOOKS).await;
        while !looking.has_ended() {
            let now = looking.look().await?;
            match self.json.json {
                true => print_json_line(&now)?,
                false => screen.show(&stats_table(&looks.add(now)))?,
            }
            sleep(every).await;
        }
        Ok(looking.status())
    }
}

/// Which VMs are looked at.
#[derive(Debug)]
enum Wanted {
    /// All that run.
    Running,
    /// Those that were named, and can be looked at.
    Named(Vec<String>),
}

/// Looks at VMs again and again. One that cannot be looked at is told of once, and the others go
/// on.
struct Looking<'a> {
    client: &'a Client,
    ui: Ui,
    wanted: Wanted,
    /// Whether one could not be looked at.
    missed: bool,
}

impl Looking<'_> {
    async fn look(&mut self) -> Result<Vec<VmStats>, Failure> {
        let vms = match &mut self.wanted {
            Wanted::Running => return Ok(self.client.stats().await?),
            Wanted::Named(vms) => vms,
        };
        let client = self.client;
        let looks = std::mem::take(vms).into_iter().map(async |vm| {
            let look = client.vm_stats(&vm).await;
            match look {
                Ok(stats) => Ok((vm, stats)),
                Err(error) => Err(near::explained(client, &vm, error).await),
            }
        });
        let mut found = Vec::new();
        for look in join_all(looks).await {
            match look {
                Ok((vm, stats)) => {
                    vms.push(vm);
                    found.push(stats);
                }
                Err(error) => {
                    self.missed = true;
                    self.ui.error(&error);
                }
            }
        }
        Ok(found)
    }

    /// Whether none is left to look at.
    fn has_ended(&self) -> bool {
        matches!(&self.wanted, Wanted::Named(vms) if vms.is_empty())
    }

    fn status(&self) -> u8 {
        match self.missed {
            true => exit::FAILURE,
            false => 0,
        }
    }
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
        let table = &match self.terminal {
            true => within(table, terminal_size().0.into()),
            false => table.to_owned(),
        };
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

/// The table without what goes beyond so many columns: a line that wraps is more than one when the
/// next table takes its place.
fn within(table: &str, columns: usize) -> String {
    let cut = |line: &str| line.chars().take(columns).collect::<String>();
    table.lines().map(|line| cut(line) + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        assert_eq!(
            within("NAME  STATE\nbox   run\n", 8),
            "NAME  ST\nbox   ru\n"
        );
        assert_eq!(within("a\n", 8), "a\n");
    }
}

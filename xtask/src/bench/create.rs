//! B7: making a VM without starting it, against copying its disks; and how long a VM takes
//! from `vm create` until it answers by ssh.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::home::Home;
use super::report::{Aim, Peer, Row};
use super::run::directory_of;
use super::timing::{median, median_ms, timed};

/// Data in each template of the second half of B7, as a seed of a work disk would have.
const SEED: usize = 16 << 20;
/// Where that data is: in the third group of blocks (of 128 MiB), in which ext4 has neither
/// inodes nor a copy of the superblock, so that the disks stay good.
const SEED_AT: u64 = (2 * 128 + 64) << 20;

/// B7, with disks as they are and with data in them.
pub fn without_start(home: &Home, runs: usize) -> Result<Vec<Row>> {
    let (ours, peer) = against_copy(home, runs)?;
    let templates = fill_templates(home)?;
    let filled = against_copy(home, runs);
    for template in templates {
        fs::remove_file(template)?; // the next create makes it anew
    }
    let (ours_filled, peer_filled) = filled?;
    let row = |what: &str, value, peer: Option<f64>, aim| Row {
        id: "B7",
        what: what.to_owned(),
        value,
        unit: "ms",
        peer: peer.map(|value| Peer {
            what: "`cp --sparse=always` of its disks".to_owned(),
            value,
        }),
        aim,
    };
    Ok(vec![
        row(
            "`vm create --no-start`",
            ours,
            Some(peer),
            Aim::RatioAtMost(0.1),
        ),
        row("the same", ours, None, Aim::AtMost(20.0)),
        row(
            "the same with 16 MiB of data in each disk",
            ours_filled,
            Some(peer_filled),
            Aim::RatioAtMost(0.1),
        ),
    ])
}

/// Milliseconds that a create takes, and a copy of the disks that it makes.
fn against_copy(home: &Home, runs: usize) -> Result<(f64, f64)> {
    let create =
        |name: &str| home.banger(&["vm", "create", "--quiet", "--no-start", "--name", name]);
    timed(&mut create("first"))?; // templates of the disks are made now
    let first = home.json(&["vm", "show", "--json", "first"])?;
    let disks = disks(&directory_of(home, &first)?)?;
    let own = tempfile::tempdir_in(home.path())?;
    let mut ours = Vec::new();
    let mut peer = Vec::new();
    for _ in 0..runs {
        ours.push(timed(&mut create("again"))?.as_secs_f64() * 1e3);
        home.delete("again")?;
        let mut copy = Command::new("cp");
        copy.arg("--sparse=always").args(&disks).arg(own.path());
        peer.push(timed(&mut copy)?.as_secs_f64() * 1e3);
    }
    home.delete("first")?;
    Ok((
        median(ours).context("no runs")?,
        median(peer).context("no runs")?,
    ))
}

/// Puts data into the templates that disks are cloned from, and returns them.
fn fill_templates(home: &Home) -> Result<Vec<PathBuf>> {
    let templates = disks(&home.path().join("cache/templates"))?;
    let data: Vec<u8> = (0..SEED).map(|at| (at % 251) as u8).collect();
    for template in &templates {
        let file = fs::File::options().write(true).open(template)?;
        let end = SEED_AT + SEED as u64;
        if file.metadata()?.len() < end {
            bail!("{} is too small for a seed", template.display());
        }
        file.write_all_at(&data, SEED_AT)?;
        file.sync_all()?;
    }
    Ok(templates)
}

/// The disks in a directory.
fn disks(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory)
        .with_context(|| format!("could not look into {}", directory.display()))?;
    let disks = entries.flatten().map(|entry| entry.path()).filter(|path| {
        path.extension()
            .is_some_and(|extension| extension == "ext4" || extension == "img")
    });
    Ok(disks.collect())
}

/// What `make bench-create` prints.
#[derive(Debug, Serialize)]
pub struct Creation {
    /// The image.
    pub image: String,
    /// How often it was done.
    pub runs: usize,
    /// Milliseconds from the start of `vm create` to its end; the median.
    pub create_ms: f64,
    /// Milliseconds from the start of `vm create` until `ssh VM true` has succeeded.
    pub ssh_ready_ms: f64,
    /// Milliseconds that the stages of the start took, of the last run.
    pub stages: serde_json::Value,
}

/// Times of `vm create`.
pub fn to_ssh(home: &Home, image: &str, runs: usize) -> Result<Creation> {
    let mut ready = Vec::new();
    let mut stages = serde_json::Value::Null;
    timed(&mut home.banger(&["vm", "run", "--rm", "--quiet", "--", "true"]))?; // warm caches
    let create_ms = median_ms(runs, || {
        let begin = Instant::now();
        let created = timed(&mut home.banger(&["vm", "create", "--quiet", "--name", "timed"]))?;
        timed(&mut home.banger(&["vm", "ssh", "timed", "--", "true"]))?;
        ready.push(begin.elapsed().as_secs_f64() * 1e3);
        stages = home.json(&["vm", "show", "--json", "timed"])?["stages"].take();
        home.delete("timed")?;
        Ok(created)
    })?;
    Ok(Creation {
        image: image.to_owned(),
        runs,
        create_ms,
        ssh_ready_ms: median(ready).context("no runs")?,
        stages,
    })
}

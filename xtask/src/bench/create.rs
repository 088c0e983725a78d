//! B7: making a VM without starting it, against copying its disks; and how long a VM takes
//! from `vm create` until it answers by ssh.

use std::fs;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;

use super::home::Home;
use super::report::{Aim, Peer, Row};
use super::run::directory_of;
use super::timing::{median, median_ms, timed};

/// B7.
pub fn without_start(home: &Home, runs: usize) -> Result<Vec<Row>> {
    let create =
        |name: &str| home.banger(&["vm", "create", "--quiet", "--no-start", "--name", name]);
    timed(&mut create("first"))?; // templates of the disks are made now
    let first = home.json(&["vm", "show", "--json", "first"])?;
    let disks: Vec<_> = fs::read_dir(directory_of(home, &first)?)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "ext4" || extension == "img")
        })
        .collect();
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
    let ours = median(ours).context("no runs")?;
    let row = |what: &str, peer, aim| Row {
        id: "B7",
        what: what.to_owned(),
        value: ours,
        unit: "ms",
        peer,
        aim,
    };
    let peer = Peer {
        what: "`cp --sparse=always` of its disks".to_owned(),
        value: median(peer).context("no runs")?,
    };
    Ok(vec![
        row("`vm create --no-start`", Some(peer), Aim::RatioAtMost(0.1)),
        row("the same", None, Aim::AtMost(20.0)),
    ])
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

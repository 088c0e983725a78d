//! B1: a cold `vm run --rm -- true` against the bare engine's own boot.

use std::path::PathBuf;

use std::time::Duration;

use anyhow::{Context, Result};

use super::bare::BareEngine;
use super::bare_firecracker::BareFirecracker;
use super::home::Home;
use super::report::{Aim, Peer, Row};
use super::timing::{median, timed};

/// Measures it. Ours and the peer's take turns, so that a machine that slows down slows
/// down both.
pub fn measure(home: &Home, runs: usize) -> Result<Row> {
    let vm = home.create("model")?;
    home.text(&[
        "vm",
        "create",
        "--quiet",
        "--no-start",
        "--name",
        "pristine",
    ])?;
    let pristine = home.json(&["vm", "show", "--json", "pristine"])?;
    let disks = directory_of(home, &pristine)?;
    let own = tempfile::tempdir_in("/tmp")?;
    let pid = vm["pid"].as_u64().context("a running VM has a process")?;
    // Whichever it is, it goes when the measurement ends.
    let boot: Box<dyn Fn() -> Result<Duration>> = match vm["engine"].as_str() {
        Some("firecracker") => {
            let bare = BareFirecracker::like(home, pid, &disks, own.path())?;
            Box::new(move || bare.boot())
        }
        _ => {
            let bare = BareEngine::like(pid, &disks, own.path())?;
            Box::new(move || bare.boot())
        }
    };
    home.delete("model")?;

    let mut ours = Vec::new();
    let mut peer = Vec::new();
    let run = ["vm", "run", "--rm", "--quiet", "--", "true"];
    timed(&mut home.banger(&run))?; // both have warm caches then
    for _ in 0..runs {
        ours.push(timed(&mut home.banger(&run))?.as_secs_f64() * 1e3);
        peer.push(boot()?.as_secs_f64() * 1e3);
    }
    home.delete("pristine")?;
    Ok(Row {
        id: "B1",
        what: "cold `vm run --rm -- true`".to_owned(),
        value: median(ours).context("no runs")?,
        unit: "ms",
        peer: Some(Peer {
            what: "bare engine to the agent's first byte".to_owned(),
            value: median(peer).context("no runs")?,
        }),
        aim: Aim::RatioAtMost(1.1),
    })
}

/// Where a VM's disks are.
pub fn directory_of(home: &Home, vm: &serde_json::Value) -> Result<PathBuf> {
    let id = vm["id"].as_str().context("a VM has an id")?;
    Ok(home.path().join("state/vms").join(id))
}

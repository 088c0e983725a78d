//! B8: what a thousand VMs cost whoever lists them and the daemon that finds them; and what it
//! costs to start the command at all.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::home::Home;
use super::report::{Aim, Peer, Row};
use super::timing::{median, median_ms, timed};
use crate::process;

/// How many VMs there are.
const VMS: u16 = 1000;
/// How often what takes milliseconds is done.
const SHORT_RUNS: usize = 20;
/// The VMs' own disks.
const DISKS: [&str; 2] = ["system.ext4", "work.ext4"];

/// Measures all of it.
pub fn measure(home: &Home, runs: usize) -> Result<Vec<Row>> {
    let start = command_start(home)?;
    home.text(&["vm", "create", "--quiet", "--no-start", "--name", "row-1"])?;
    let model = home.json(&["vm", "show", "--json", "row-1"])?;
    home.text(&["daemon", "stop"])?;
    let ids = multiply(home, &model)?;
    let rows = many(home, runs);
    home.text(&["daemon", "stop"])?;
    remove(home, &ids)?;
    home.text(&["daemon", "start"])?;
    home.delete("row-1")?;
    let mut rows = rows?;
    rows.push(start);
    Ok(rows)
}

fn many(home: &Home, runs: usize) -> Result<Vec<Row>> {
    // The first daemon writes down in each directory what its VM is.
    timed(&mut home.banger(&["daemon", "start"]))?;
    let started = median_ms(runs, || {
        home.text(&["daemon", "stop"])?;
        timed(&mut home.banger(&["daemon", "start"]))
    })?;
    let mut ours = Vec::new();
    let mut peer = Vec::new();
    for _ in 0..runs.max(SHORT_RUNS) {
        ours.push(timed(&mut home.banger(&["vm", "list", "--json"]))?.as_secs_f64() * 1e3);
        let mut read = Command::new("sqlite3");
        read.arg("-json")
            .arg(database(home))
            .arg("SELECT * FROM vm");
        peer.push(timed(&mut read)?.as_secs_f64() * 1e3);
    }
    Ok(vec![
        Row {
            id: "B8",
            what: format!("`vm list --json` of {VMS} VMs"),
            value: median(ours).context("no runs")?,
            unit: "ms",
            peer: Some(Peer {
                what: "`sqlite3 -json` of the same rows".to_owned(),
                value: median(peer).context("no runs")?,
            }),
            aim: Aim::RatioAtMost(3.0),
        },
        Row {
            id: "B8",
            what: format!("`daemon start` until {VMS} VMs are reconciled"),
            value: started,
            unit: "ms",
            peer: None,
            aim: Aim::AtMost(1000.0),
        },
    ])
}

/// How long the command takes to do nothing.
fn command_start(home: &Home) -> Result<Row> {
    let ours = median_ms(SHORT_RUNS, || timed(&mut home.banger(&["--version"])))?;
    let peer = median_ms(SHORT_RUNS, || timed(&mut Command::new("true")))?;
    Ok(Row {
        id: "B8",
        what: "`banger --version`".to_owned(),
        value: ours,
        unit: "ms",
        peer: Some(Peer {
            what: "`true`".to_owned(),
            value: peer,
        }),
        aim: Aim::AtMost(10.0),
    })
}

/// Makes VMs like the one that there is, without a daemon: rows, and directories with empty
/// disks. Returns their ids.
fn multiply(home: &Home, model: &Value) -> Result<Vec<String>> {
    let model = model["id"].as_str().context("a VM has an id")?;
    let mut ids = Vec::new();
    let mut insert = String::from("BEGIN;\n");
    for slot in 2..=VMS {
        // The model's id with another end: both are hex digits.
        let id = format!("{}{slot:04x}", &model[..28]);
        insert.push_str(&format!(
            "INSERT INTO vm (id, name, slot, phase, image, image_id, kernel, vcpu, memory, \
             disk_size, system_size, engine, engine_reason, nat, labels, created_at, stages) \
             SELECT '{id}', 'row-{slot}', {slot}, phase, image, image_id, kernel, vcpu, memory, \
             disk_size, system_size, engine, engine_reason, nat, labels, created_at, stages \
             FROM vm WHERE id = '{model}';\n"
        ));
        let directory = home.path().join("state/vms").join(&id);
        fs::create_dir(&directory)?;
        for disk in DISKS {
            fs::write(directory.join(disk), "")?;
        }
        ids.push(id);
    }
    insert.push_str("COMMIT;\n");
    change(home, &insert)?;
    Ok(ids)
}

fn remove(home: &Home, ids: &[String]) -> Result<()> {
    change(
        home,
        "DELETE FROM vm WHERE name LIKE 'row-%' AND name != 'row-1';",
    )?;
    for id in ids {
        fs::remove_dir_all(home.path().join("state/vms").join(id))?;
    }
    Ok(())
}

fn change(home: &Home, statements: &str) -> Result<()> {
    let script = home.path().join("rows.sql");
    fs::write(&script, statements)?;
    let mut sqlite = Command::new("sqlite3");
    sqlite.arg(database(home));
    sqlite.arg(format!(".read {}", script.display()));
    process::run_quietly(&mut sqlite)
}

fn database(home: &Home) -> std::path::PathBuf {
    home.path().join("state/banger.db")
}

//! B2 and B11: commands in a running VM, and bytes through them, against ssh.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::home::Home;
use super::report::{Aim, Peer, Row};
use super::ssh::Connection;
use super::timing::{median, timed};

/// What goes through `cat`.
const BULK: u64 = 1 << 30;
/// How often the guest itself forks and executes, to know its own cost.
const FORKS: u32 = 200;

/// B2: the round trip of `vm exec VM -- true`.
pub fn round_trip(home: &Home, runs: usize) -> Result<Vec<Row>> {
    home.create("round")?;
    let ssh = Connection::open(home, "round")?;
    let mut ours = Vec::new();
    let mut peer = Vec::new();
    for _ in 0..runs {
        ours.push(
            timed(&mut home.banger(&["vm", "exec", "round", "--", "true"]))?.as_secs_f64() * 1e3,
        );
        peer.push(timed(&mut ssh.command(&["true"]))?.as_secs_f64() * 1e3);
    }
    let fork = guest_fork_ms(home)?;
    drop(ssh);
    home.delete("round")?;
    let ours = median(ours).context("no runs")?;
    Ok(vec![
        Row {
            id: "B2",
            what: "`vm exec VM -- true`".to_owned(),
            value: ours,
            unit: "ms",
            peer: Some(Peer {
                what: "`ssh VM true` over an open connection".to_owned(),
                value: median(peer).context("no runs")?,
            }),
            aim: Aim::RatioAtMost(0.5),
        },
        Row {
            id: "B2",
            what: format!("the same without the guest's own fork and exec ({fork:.1} ms)"),
            value: ours - fork,
            unit: "ms",
            peer: None,
            aim: Aim::AtMost(5.0),
        },
    ])
}

/// What one fork and exec costs the guest's own shell.
fn guest_fork_ms(home: &Home) -> Result<f64> {
    let script = format!(
        "a=$(date +%s%N); i=0; while [ $i -lt {FORKS} ]; do /bin/true; i=$((i + 1)); done; \
         b=$(date +%s%N); echo $((b - a))"
    );
    let told = home.text(&["vm", "exec", "round", "--", "sh", "-c", &script])?;
    let nanoseconds: f64 = told.trim().parse().context("the guest tells a number")?;
    Ok(nanoseconds / f64::from(FORKS) / 1e6)
}

/// B11: 1 GiB into `cat` and out of it again.
pub fn throughput(home: &Home) -> Result<Row> {
    home.create("bulk")?;
    let ssh = Connection::open(home, "bulk")?;
    let ours = through(&mut home.banger(&["vm", "exec", "bulk", "--", "cat"]))?;
    let peer = through(&mut ssh.command(&["cat"]))?;
    drop(ssh);
    home.delete("bulk")?;
    let mebibytes = (BULK >> 20) as f64;
    Ok(Row {
        id: "B11",
        what: "1 GiB through `vm exec VM -- cat`".to_owned(),
        value: mebibytes / ours.as_secs_f64(),
        unit: "MiB/s",
        peer: Some(Peer {
            what: "`ssh VM cat`".to_owned(),
            value: mebibytes / peer.as_secs_f64(),
        }),
        aim: Aim::RatioAtLeast(1.5),
    })
}

/// How long the bulk takes to go through a command and come back.
fn through(command: &mut Command) -> Result<Duration> {
    let begin = Instant::now();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("it is piped")?;
    let mut output = child.stdout.take().context("it is piped")?;
    let writer = std::thread::spawn(move || -> std::io::Result<()> {
        // Bytes that a compressing connection could not make smaller.
        let mut block = vec![0; 1 << 20];
        File::open("/dev/urandom")?.read_exact(&mut block)?;
        for _ in 0..BULK >> 20 {
            input.write_all(&block)?;
        }
        Ok(())
    });
    let came = std::io::copy(&mut output, &mut std::io::sink())?;
    let took = begin.elapsed();
    let status = child.wait()?;
    writer.join().expect("the writer does not panic")?;
    if came != BULK || !status.success() {
        bail!("{came} of {BULK} bytes came back, {status}");
    }
    Ok(took)
}

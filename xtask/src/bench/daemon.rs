//! B9: what the daemon costs while nothing happens.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::home::Home;
use super::report::{Aim, Row};

/// VMs whose cost is measured together.
const VMS: u32 = 3;
/// How long nothing happens.
const IDLE: Duration = Duration::from_secs(30);
/// Ticks of a processor's second in `/proc/PID/stat` (proc_pid_stat(5)): 100 on every Linux.
const TICKS: f64 = 100.0;

/// Measures memory without and with VMs, and processor time while idle.
pub fn measure(home: &Home) -> Result<Vec<Row>> {
    // A daemon that has just been started, so that no earlier benchmark counts.
    home.text(&["daemon", "restart"])?;
    let pid = home.json(&["daemon", "status", "--json"])?["pid"].as_u64();
    let pid = pid.context("the daemon has a process")?;
    let idle = resident_kib(pid)?;
    let cpu = idle_percent(pid)?;
    // The first VM loads those pages of the program that all of them share.
    home.create("first")?;
    home.delete("first")?;
    let without_vms = resident_kib(pid)?;
    for index in 0..VMS {
        home.create(&format!("resident-{index}"))?;
    }
    let with_vms = resident_kib(pid)?;
    for index in 0..VMS {
        home.delete(&format!("resident-{index}"))?;
    }
    let row = |what: &str, value, unit, limit| Row {
        id: "B9",
        what: what.to_owned(),
        value,
        unit,
        peer: None,
        aim: Aim::AtMost(limit),
    };
    Ok(vec![
        row("daemon, idle: resident memory", idle / 1024.0, "MiB", 20.0),
        row(
            "daemon: resident memory for each running VM",
            (with_vms - without_vms) / 1024.0 / f64::from(VMS),
            "MiB",
            1.0,
        ),
        row("daemon, idle: processor time", cpu, "%", 0.0),
    ])
}

/// `VmRSS` of a process (proc_pid_status(5)).
fn resident_kib(pid: u64) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    number
        .context("a process has a VmRSS")?
        .parse()
        .context("a number")
}

fn idle_percent(pid: u64) -> Result<f64> {
    let before = ticks(pid)?;
    let begin = Instant::now();
    std::thread::park_timeout(IDLE);
    let ticks = ticks(pid)? - before;
    Ok(ticks / TICKS / begin.elapsed().as_secs_f64() * 100.0)
}

/// `utime` and `stime` of a process: the 14th and 15th field, behind the name in brackets.
fn ticks(pid: u64) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("a name in brackets")?;
    let times = fields.split(' ').skip(11).take(2);
    times
        .map(|field| field.parse::<f64>().context("a number"))
        .sum()
}

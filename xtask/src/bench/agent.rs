//! B13: what the guest agent costs.

use anyhow::{Context, Result};

use super::home::Home;
use super::report::{Aim, Row};
use crate::workspace::AGENT;

/// Measures the agent of a VM that has just come up.
pub fn measure(home: &Home) -> Result<Vec<Row>> {
    home.create("agent")?;
    // The agent is the parent of every command.
    let script = "grep VmRSS /proc/$PPID/status | tr -dc 0-9; echo; cat /run/banger/boot.json";
    let told = home.text(&["vm", "exec", "agent", "--", "sh", "-c", script])?;
    home.delete("agent")?;
    let (resident, report) = told.split_once('\n').context("two lines")?;
    let resident: f64 = resident.parse().context("the guest tells a number")?;
    let report: serde_json::Value = serde_json::from_str(report)?;
    let steps = report["steps"].as_array().context("the boot has steps")?;
    let at = |step: Option<&serde_json::Value>| {
        step.and_then(|step| step["at_us"].as_f64())
            .context("a step has a time")
    };
    let init_ms = (at(steps.last())? - at(steps.first())?) / 1e3;
    let size = std::fs::metadata(home.program(AGENT))?.len() as f64;
    let row = |what: &str, value, unit, limit| Row {
        id: "B13",
        what: what.to_owned(),
        value,
        unit,
        peer: None,
        aim: Aim::AtMost(limit),
    };
    Ok(vec![
        row("agent: resident memory", resident / 1024.0, "MiB", 8.0),
        row(
            "agent: size of the program",
            size / f64::from(1 << 20),
            "MiB",
            8.0,
        ),
        row(
            "agent: from init's start to ready (the aim is for KVM)",
            init_ms,
            "ms",
            250.0,
        ),
    ])
}

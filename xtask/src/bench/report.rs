//! What was measured, as a table for people and as JSON for programs.

use std::fmt;

use serde::Serialize;

/// One number, and what it is compared with.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The benchmark's number, such as `B1`.
    pub id: &'static str,
    /// What was measured.
    pub what: String,
    /// What came of it.
    pub value: f64,
    /// In what.
    pub unit: &'static str,
    /// What it is compared with, if with anything.
    pub peer: Option<Peer>,
    /// What it should be.
    pub aim: Aim,
}

/// The peer of a number, measured in the same run.
#[derive(Clone, Debug, Serialize)]
pub struct Peer {
    /// What it is.
    pub what: String,
    /// What came of it, in the row's unit.
    pub value: f64,
}

/// What a number should be.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Aim {
    /// At most so much of the row's unit.
    AtMost(f64),
    /// At most so many times the peer.
    RatioAtMost(f64),
    /// At least so many times the peer.
    RatioAtLeast(f64),
}

impl Row {
    /// The number as a multiple of its peer's.
    pub fn ratio(&self) -> Option<f64> {
        self.peer.as_ref().map(|peer| self.value / peer.value)
    }

    /// Whether the aim is reached.
    pub fn is_met(&self) -> bool {
        match (self.aim, self.ratio()) {
            (Aim::AtMost(limit), _) => self.value <= limit,
            (Aim::RatioAtMost(limit), Some(ratio)) => ratio <= limit,
            (Aim::RatioAtLeast(limit), Some(ratio)) => ratio >= limit,
            (_, None) => false,
        }
    }
}

/// Everything that one run measured.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// The version of banger.
    pub version: String,
    /// The engine, and how it ran.
    pub engine: String,
    /// The rows.
    pub rows: Vec<Row>,
}

impl Report {
    /// The report with what can be derived from it, for programs.
    pub fn to_json(&self) -> serde_json::Value {
        let mut json = serde_json::json!(self);
        for (row, derived) in self
            .rows
            .iter()
            .zip(json["rows"].as_array_mut().into_iter().flatten())
        {
            derived["ratio"] = serde_json::json!(row.ratio());
            derived["met"] = serde_json::json!(row.is_met());
        }
        json
    }
}

impl fmt::Display for Report {
    /// A table in Markdown, as `docs/performance.md` has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "banger {}, {}\n", self.version, self.engine)?;
        writeln!(f, "| # | what | measured | against | ratio | aim | |")?;
        writeln!(f, "|---|---|---|---|---|---|---|")?;
        for row in &self.rows {
            let unit = row.unit;
            let peer = row.peer.as_ref().map_or("-".to_owned(), |peer| {
                format!("{}: {:.1} {unit}", peer.what, peer.value)
            });
            let ratio = row
                .ratio()
                .map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
            let aim = match row.aim {
                Aim::AtMost(limit) => format!("<= {limit} {unit}"),
                Aim::RatioAtMost(limit) => format!("<= {limit} x"),
                Aim::RatioAtLeast(limit) => format!(">= {limit} x"),
            };
            let met = if row.is_met() { "met" } else { "not met" };
            writeln!(
                f,
                "| {} | {} | {:.1} {unit} | {peer} | {ratio} | {aim} | {met} |",
                row.id, row.what, row.value
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_judged_by_its_aim() {
        let row = |aim, peer: Option<f64>| Row {
            id: "B0",
            what: "a thing".to_owned(),
            value: 10.0,
            unit: "ms",
            peer: peer.map(|value| Peer {
                what: "another".to_owned(),
                value,
            }),
            aim,
        };
        assert!(row(Aim::AtMost(10.0), None).is_met());
        assert!(!row(Aim::AtMost(9.0), None).is_met());
        assert!(row(Aim::RatioAtMost(1.1), Some(9.1)).is_met());
        assert!(!row(Aim::RatioAtMost(1.1), Some(9.0)).is_met());
        assert!(row(Aim::RatioAtLeast(2.0), Some(5.0)).is_met());
        assert!(!row(Aim::RatioAtLeast(2.0), None).is_met());
    }
}

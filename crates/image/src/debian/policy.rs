//! What the host's apt says about dates that are not as they should be.

use super::sources::parse_bool;
use crate::tool::{self, APT_CONFIG};

/// Which dates of a release are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    /// `Acquire::Check-Valid-Until`: refuse a release whose `Valid-Until` is past.
    pub(crate) check_valid_until: bool,
    /// `Acquire::Check-Date`: refuse a release from the future, and check `Valid-Until` at
    /// all.
    pub(crate) check_date: bool,
}

impl Default for Policy {
    /// apt's own defaults.
    fn default() -> Self {
        Self {
            check_valid_until: true,
            check_date: true,
        }
    }
}

/// The host's policy, or apt's default where there is no apt. Blocks for a process.
pub(crate) fn of_host() -> Policy {
    let dump = || tool::run(APT_CONFIG.command()?.args(["dump", "Acquire"]));
    dump()
        .map(|output| parse(&String::from_utf8_lossy(&output)))
        .unwrap_or_default()
}

fn parse(dump: &str) -> Policy {
    let mut policy = Policy::default();
    for line in dump.lines() {
        let Some((key, value)) = line.trim_end_matches(';').split_once(' ') else {
            continue;
        };
        let Some(value) = parse_bool(value.trim_matches('"')) else {
            continue;
        };
        match key.to_ascii_lowercase().as_str() {
            "acquire::check-valid-until" => policy.check_valid_until = value,
            "acquire::check-date" => policy.check_date = value,
            _ => {}
        }
    }
    policy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_is_read_from_apts_dump() {
        let dump = "Acquire \"\";\nAcquire::Check-Valid-Until \"false\";\nAcquire::cdrom \"\";\n";
        assert_eq!(
            parse(dump),
            Policy {
                check_valid_until: false,
                check_date: true
            }
        );
        assert_eq!(parse(""), Policy::default());
    }
}

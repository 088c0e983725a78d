//! What a VM may be: the bounds of its settings, for creating and for changing it.

use banger_config::bounds::{DISK_MAX, DISK_MIN, MEMORY_MIN};
use banger_config::defaults::HostResources;

use crate::store::VmRow;

const LABELS_MAX: usize = 64;
const LABEL_KEY_MAX: usize = 63;
const LABEL_VALUE_MAX: usize = 256;
/// Ten years.
const TTL_MAX_S: u64 = 10 * 366 * 24 * 3600;

/// What is wrong with a VM to be.
///
/// # Errors
/// The first thing that is wrong, in words with its bound.
pub fn check(row: &VmRow, host: HostResources) -> Result<(), String> {
    let HostResources { cpus, memory } = host;
    if !(1..=cpus).contains(&row.vcpu) {
        return Err(format!(
            "{} CPUs are not to be had: this host has {cpus}",
            row.vcpu
        ));
    }
    if row.memory < MEMORY_MIN {
        return Err(format!(
            "{} of memory are too little: the least is {MEMORY_MIN}",
            row.memory
        ));
    }
    if row.memory > memory {
        return Err(format!(
            "{} of memory are not to be had: this host has {}M",
            row.memory,
            memory.mib()
        ));
    }
    for (what, size) in [("work", row.disk_size), ("system", row.system_size)] {
        if size < DISK_MIN {
            return Err(format!(
                "a {what} disk of {size} is too small: the least is {DISK_MIN}"
            ));
        }
        if size > DISK_MAX {
            return Err(format!(
                "a {what} disk of {size} is too large: the most is {DISK_MAX}"
            ));
        }
    }
    if row.labels.len() > LABELS_MAX {
        return Err(format!(
            "{} labels are too many: the most is {LABELS_MAX}",
            row.labels.len()
        ));
    }
    for (key, value) in &row.labels {
        if key.is_empty() || key.len() > LABEL_KEY_MAX || key.contains(char::is_control) {
            return Err(format!(
                "{key:?} is no label: use 1 to {LABEL_KEY_MAX} characters"
            ));
        }
        if value.len() > LABEL_VALUE_MAX || value.contains(char::is_control) {
            return Err(format!(
                "the value of label `{key}` must be at most {LABEL_VALUE_MAX} plain characters"
            ));
        }
    }
    Ok(())
}

/// When a VM that may live for `ttl_s` seconds from now on is deleted, RFC 3339.
///
/// # Errors
/// That is no time to live, in words with its bound.
pub fn expiry(now: jiff::Timestamp, ttl_s: u64) -> Result<String, String> {
    if ttl_s == 0 {
        return Err("a time to live of 0 s is too short: the least is 1 s".to_owned());
    }
    if ttl_s > TTL_MAX_S {
        return Err(format!(
            "a time to live of {ttl_s} s is too long: the most is {TTL_MAX_S} s (ten years)"
        ));
    }
    let ttl = jiff::SignedDuration::from_secs(ttl_s.cast_signed());
    let end = now.checked_add(ttl);
    Ok(end.expect("ten years from now is a time").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::vms::tests::row;
    use banger_proto::size::ByteSize;

    fn host(cpus: u32, gib: u64) -> HostResources {
        HostResources {
            cpus,
            memory: ByteSize::from_gib(gib),
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_bounds() {
        let changes: [fn(&mut VmRow); 9] = [
            |row| row.vcpu = 0,
            |row| row.vcpu = 5,
            |row| row.memory = ByteSize::from_mib(127),
            |row| row.memory = ByteSize::from_gib(9),
            |row| row.disk_size = ByteSize::from_mib(1),
            |row| row.system_size = ByteSize::from_gib(1 << 20),
            |row| drop(row.labels.insert(String::new(), "v".to_owned())),
            |row| drop(row.labels.insert("k".to_owned(), "\u{1b}[2J".to_owned())),
            |row| {
                row.labels
                    .extend((0..65).map(|n| (n.to_string(), String::new())))
            },
        ];
        let words: Vec<String> = changes
            .into_iter()
            .map(|change| {
                let mut row = row("a");
                change(&mut row);
                check(&row, host(4, 8)).unwrap_err()
            })
            .collect();
        insta::assert_snapshot!(words.join("\n"));
        check(&row("a"), host(1, 1)).unwrap();
    }

    #[test]
    fn a_time_to_live_has_bounds_and_an_end() {
        let now: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(expiry(now, 90).unwrap(), "2026-01-01T00:01:30Z");
        assert!(expiry(now, TTL_MAX_S).is_ok());
        for ttl in [0, TTL_MAX_S + 1, u64::MAX] {
            assert!(expiry(now, ttl).is_err(), "{ttl}");
        }
    }
}

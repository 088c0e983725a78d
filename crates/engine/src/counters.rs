//! What an engine counts of its machine.

use std::collections::BTreeMap;

/// Most counters of one machine, whatever its engine says. Firecracker has 22 for each disk.
const MOST: usize = 1024;
/// Longest name of a group or a counter.
const NAME_MAX: usize = 64;

/// Counters by group and name, in the engine's own words. They only grow, from the moment at which
/// the daemon has the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(BTreeMap<(String, String), u64>);

impl Counters {
    /// All of them: group, name and count.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, u64)> {
        let counters = self.0.iter();
        counters.map(|((group, name), count)| (group.as_str(), name.as_str(), *count))
    }

    /// Counts more. An engine may be in the hands of its guest: what is no name is left out.
    pub fn add(&mut self, group: &str, name: &str, more: u64) {
        if !is_name(group) || !is_name(name) {
            return;
        }
        let key = (group.to_owned(), name.to_owned());
        if let Some(count) = self.0.get_mut(&key) {
            *count = count.saturating_add(more);
        } else if self.0.len() < MOST {
            self.0.insert(key, more);
        }
    }
}

fn is_name(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    !text.is_empty() && text.len() <= NAME_MAX && text.bytes().all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_cannot_fill_the_memory_or_break_the_page() {
        let mut counters = Counters::default();
        for number in 0..2 * MOST {
            counters.add("block_work", &format!("n{number}"), 1);
        }
        counters.add("block\"", "n", 1);
        counters.add("block", "a b", 1);
        counters.add("block", &"x".repeat(NAME_MAX + 1), 1);
        assert_eq!(counters.iter().count(), MOST);
        counters.add("block_work", "n0", u64::MAX);
        let first = counters.iter().next();
        assert_eq!(first, Some(("block_work", "n0", u64::MAX)));
    }
}

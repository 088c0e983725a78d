//! Which port of a VM's loopback address stands for which port of its guest. Pure: no I/O.
//!
//! It is the same one. Where that cannot be had, because only root may open it here or because
//! another program has it, it is one that is 10000 above, or 20000, and so on: 80 becomes 10080.
//! A port that the guest itself listens on is nobody else's.

use std::collections::{BTreeMap, BTreeSet};

/// How far apart are the ports that are tried.
const STEP: u16 = 10_000;

/// The ports of the host that may stand for the guest's `port`, the best one first.
pub(super) fn candidates(port: u16, guest: &BTreeSet<u16>) -> impl Iterator<Item = u16> {
    let above = std::iter::successors(port.checked_add(STEP), |port| port.checked_add(STEP));
    let above = above.filter(|candidate| !guest.contains(candidate));
    std::iter::once(port).chain(above)
}

/// What must be done so that `guest`'s ports are reached, of which `present` are (guest's port
/// to host's port).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    /// Guest's ports that are to be given up first.
    pub(super) close: Vec<u16>,
    /// Guest's ports that are to be opened then, in this order.
    pub(super) open: Vec<u16>,
}

/// Compares what is with what shall be.
pub(super) fn change(present: &BTreeMap<u16, u16>, guest: &BTreeSet<u16>) -> Change {
    let stays = |port: &u16, host: &u16| {
        // One that stands elsewhere makes room for the guest's own.
        guest.contains(port) && (port == host || !guest.contains(host))
    };
    let close = present
        .iter()
        .filter(|(port, host)| !stays(port, host))
        .map(|(port, _)| *port);
    let close: Vec<u16> = close.collect();
    let open = guest
        .iter()
        .copied()
        .filter(|port| !present.contains_key(port) || close.contains(port))
        .collect();
    Change { close, open }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn first(port: u16, guest: &[u16]) -> Vec<u16> {
        candidates(port, &guest.iter().copied().collect())
            .take(3)
            .collect()
    }

    #[test]
    fn a_port_stands_for_itself_or_for_one_far_below() {
        assert_eq!(first(80, &[80]), [80, 10080, 20080]);
        assert_eq!(first(80, &[80, 10080]), [80, 20080, 30080]);
        assert_eq!(first(50_000, &[]), [50_000, 60_000]);
        assert_eq!(first(60_000, &[60_000]), [60_000]);
    }

    #[test]
    fn what_stands_elsewhere_makes_room() {
        let present = [(80, 10080), (443, 443)].into();
        assert_eq!(
            change(&present, &[80, 443, 10080].into()),
            Change {
                close: vec![80],
                open: vec![80, 10080],
            }
        );
        assert_eq!(change(&present, &[80, 443].into()), Change::default());
        let gone = change(&present, &[80].into());
        assert_eq!((gone.close, gone.open), (vec![443], vec![]));
    }

    proptest! {
        #[test]
        fn after_a_change_every_port_of_the_guest_is_there_once(
            before in proptest::collection::btree_set(1_u16..40, 0..8),
            after in proptest::collection::btree_set(1_u16..40, 0..8),
            moved in proptest::collection::btree_set(1_u16..40, 0..8),
        ) {
            // Ports in `moved` cannot be had.
            let step = |port: u16, guest: &BTreeSet<u16>, taken: &BTreeMap<u16, u16>| {
                (port..=u16::MAX).step_by(7).find(|host| {
                    (*host == port || !guest.contains(host))
                        && !moved.contains(host)
                        && !taken.values().any(|taken| taken == host)
                })
            };
            let mut present = BTreeMap::new();
            for guest in [&before, &after] {
                let change = change(&present, guest);
                for port in &change.close {
                    present.remove(port);
                }
                for port in change.open {
                    prop_assert!(!present.contains_key(&port));
                    if let Some(host) = step(port, guest, &present) {
                        present.insert(port, host);
                    }
                }
            }
            let reached: BTreeSet<u16> = present.keys().copied().collect();
            prop_assert_eq!(&reached, &after);
            let hosts: BTreeSet<u16> = present.values().copied().collect();
            prop_assert_eq!(hosts.len(), present.len());
            for (port, host) in present {
                prop_assert!(port == host || !after.contains(&host));
            }
        }
    }
}

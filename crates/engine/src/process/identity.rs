//! As whom an engine runs: never as root.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use banger_proto::id::InstanceId;
use rustix::process::{Gid, Uid};

/// First of the user ids that systemd's list of uid ranges leaves unused
/// (<https://systemd.io/UIDS-GIDS>: 1879048192 to 2147352575).
const FIRST: u32 = 0x7000_0000;
/// Number of instances whose slots fit into that range.
const INSTANCES: u32 = 0xffd;
const NOBODY: u32 = 65534;

/// The user and groups of an engine's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub uid: Uid,
    pub gid: Gid,
    pub groups: Vec<Gid>,
}

impl Identity {
    /// Whom the engine in `slot` is to become. `None`: it stays who this process is, which
    /// is not root.
    ///
    /// Root's engines get a user of their own each, where this user namespace has so many,
    /// so that one that was taken over by its guest can do nothing to the others. `device`
    /// is what it must open by itself, if anything: its group is kept.
    pub(crate) fn for_engine(
        instance: &InstanceId,
        slot: u16,
        device: Option<&Path>,
    ) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let maps = ["/proc/self/uid_map", "/proc/self/gid_map"]
            .map(|path| fs::read_to_string(path).unwrap_or_default());
        let own = own_id(instance, slot);
        let id = match maps.iter().all(|map| is_mapped(map, own)) {
            true => own,
            false => NOBODY,
        };
        let groups = device
            .and_then(|path| fs::metadata(path).ok())
            .map(|device| vec![Gid::from_raw(device.gid())])
            .unwrap_or_default();
        Some(Self {
            uid: Uid::from_raw(id),
            gid: Gid::from_raw(id),
            groups: groups.into_iter().filter(|gid| !gid.is_root()).collect(),
        })
    }
}

fn own_id(instance: &InstanceId, slot: u16) -> u32 {
    let instance = instance.head() % INSTANCES;
    FIRST + (instance << 16) + u32::from(slot)
}

/// Whether a user namespace has this id (user_namespaces(7): first inside, first outside, count).
fn is_mapped(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace().map(str::parse::<u32>);
        let (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) =
            (fields.next(), fields.next(), fields.next())
        else {
            return false;
        };
        id.checked_sub(first).is_some_and(|offset| offset < count)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_slots_of_an_instance_share_a_user_and_all_stay_in_the_free_range() {
        let instance = |head: &str| format!("{head:0<32}").parse::<InstanceId>().unwrap();
        let (one, two) = (instance("00001f2e"), instance("00001f2f"));
        assert_ne!(own_id(&one, 1), own_id(&one, 2));
        assert_ne!(own_id(&one, 1), own_id(&two, 1));
        for head in ["0", "ffffffff", "00000ffc", "00000ffd"] {
            for slot in [0, u16::MAX] {
                assert!((0x7000_0000..=2_147_352_575).contains(&own_id(&instance(head), slot)));
            }
        }
    }

    #[test]
    fn a_container_without_so_many_users_has_no_own_one() {
        let host = "         0          0 4294967295\n";
        let container = "0 100000 65536\n";
        assert!(is_mapped(host, FIRST));
        assert!(!is_mapped(container, FIRST));
        assert!(is_mapped(container, NOBODY));
        assert!(!is_mapped("nonsense", 0));
    }
}

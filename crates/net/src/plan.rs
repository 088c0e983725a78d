//! Which names and addresses a VM's slot stands for.
//!
//! Everything here is a pure function of the instance, the bridge's address and the slot,
//! so that whatever a VM had on the network can be found again without any record of it.

use std::fmt;
use std::net::Ipv4Addr;

use banger_proto::id::InstanceId;

use crate::config::{InvalidConfig, NetworkConfig};

/// Most ports that a Linux bridge can have (`BR_MAX_PORTS` in `net/bridge/br_private.h`),
/// of which the kernel gives out one less.
const BRIDGE_PORTS_MAX: u32 = 1023;

/// A VM's place on the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Its tap device.
    pub tap: TapName,
    /// The guest's address.
    pub ip: Ipv4Addr,
    /// The guest's hardware address.
    pub mac: Mac,
    /// The bridge's address, by which the guest reaches all else.
    pub gateway: Ipv4Addr,
    /// Length of the prefix that guest and gateway share.
    pub prefix: u8,
    /// The guest's resolver.
    pub dns: Ipv4Addr,
    /// The largest packet of the guest's NIC, in bytes.
    pub mtu: u16,
}

impl Plan {
    /// The shared prefix as a mask, such as 255.255.255.0.
    pub fn netmask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(mask(self.prefix))
    }
}

/// Why a slot has no place on the network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// There is no network at all.
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    /// Outside of what the prefix and the bridge can hold.
    #[error("slot {slot} is not on the network, which has slots 1 to {last}")]
    Slot {
        /// The slot asked for.
        slot: u16,
        /// The last slot that there is.
        last: u16,
    },
}

/// Plans the place of the VM in `slot`. `mtu` is that of the way out: see
/// [`crate::Network::mtu`].
pub fn plan(config: &NetworkConfig, slot: u16, mtu: u16) -> Result<Plan, PlanError> {
    let instance = Instance::of(&config.instance);
    let subnet = Subnet::new(config.bridge)?;
    Ok(Plan {
        tap: TapName { instance, slot },
        ip: address(config, slot)?,
        mac: Mac::of_guest(instance, slot),
        gateway: subnet.gateway,
        prefix: subnet.prefix,
        dns: subnet.gateway,
        mtu,
    })
}

/// The address of the guest in `slot`.
pub fn address(config: &NetworkConfig, slot: u16) -> Result<Ipv4Addr, PlanError> {
    let subnet = Subnet::new(config.bridge)?;
    subnet.guest(slot).ok_or(PlanError::Slot {
        slot,
        last: subnet.last_slot(),
    })
}

/// The first two bytes of the loopback addresses by which the host reaches VMs.
const LOOPBACK: [u8; 2] = [127, 77];
/// Bits of such an address that are the slot's; those before are the instance's.
const SLOT_BITS: u32 = 10;

/// The host's own address for the VM in `slot`: 127.77.x.y, whatever the network is like. The
/// whole of 127.0.0.0/8 is the host's (RFC 1122, section 3.2.1.3), so nothing must be set up.
///
/// The instance has a part in it, so that two on one host seldom want the same port.
pub fn loopback(instance: &InstanceId, slot: u16) -> Ipv4Addr {
    debug_assert!(slot >> SLOT_BITS == 0, "the bridge has fewer ports");
    let of_instance = instance.head() >> (16 + SLOT_BITS);
    let of_instance = u16::try_from(of_instance).expect("6 bits are left");
    let [a, b] = LOOPBACK;
    let [c, d] = (of_instance << SLOT_BITS | slot).to_be_bytes();
    Ipv4Addr::new(a, b, c, d)
}

/// The slot whose [`loopback`] address this is.
pub fn slot_of_loopback(instance: &InstanceId, address: Ipv4Addr) -> Option<u16> {
    let [.., c, d] = address.octets();
    let slot = u16::from_be_bytes([c, d]) & ((1 << SLOT_BITS) - 1);
    (slot > 0 && loopback(instance, slot) == address).then_some(slot)
}

/// The last slot that has a place on the network; the first is 1.
pub fn last_slot(config: &NetworkConfig) -> Result<u16, InvalidConfig> {
    Ok(Subnet::new(config.bridge)?.last_slot())
}

/// Tells the networks of different state directories apart where a name has little room. Each
/// is in a namespace of its own, so that two which look alike are no harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instance(u16);

impl Instance {
    /// The first four digits: an interface's name has room for no more.
    pub(crate) fn of(id: &InstanceId) -> Self {
        let [a, b, ..] = id.head().to_be_bytes();
        Self(u16::from_be_bytes([a, b]))
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}", self.0)
    }
}

/// Name of a VM's tap device: `bgr-<instance>-<slot>`.
///
/// With five digits of slot it has 14 bytes, and Linux allows 15 (`IFNAMSIZ`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TapName {
    instance: Instance,
    slot: u16,
}

impl TapName {
    pub(crate) fn new(instance: Instance, slot: u16) -> Self {
        Self { instance, slot }
    }

    /// The slot of the tap called `name`, if it is one of this instance.
    pub(crate) fn slot_of(instance: Instance, name: &str) -> Option<u16> {
        let slot = name
            .strip_prefix(&format!("bgr-{instance}-"))?
            .parse()
            .ok()?;
        (Self { instance, slot }.to_string() == name).then_some(slot)
    }
}

impl fmt::Display for TapName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bgr-{}-{}", self.instance, self.slot)
    }
}

/// A hardware address, such as `02:62:1f:2e:00:07`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac([u8; 6]);

impl Mac {
    /// Locally administered and unicast (IEEE 802, the second-lowest and lowest bit of the
    /// first byte), a `b` for banger, the instance, and the slot.
    pub(crate) fn of_guest(instance: Instance, slot: u16) -> Self {
        let [a, b] = instance.0.to_be_bytes();
        let [c, d] = slot.to_be_bytes();
        Self([0x02, b'b', a, b, c, d])
    }

    /// The address of the bridge itself: that of the slot that no guest has.
    pub(crate) fn of_bridge(instance: Instance) -> Self {
        Self::of_guest(instance, 0)
    }

    /// The six bytes.
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The addresses that the bridge and the guests share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Subnet {
    pub(crate) gateway: Ipv4Addr,
    pub(crate) prefix: u8,
}

impl Subnet {
    pub(crate) fn new((gateway, prefix): (Ipv4Addr, u8)) -> Result<Self, InvalidConfig> {
        let subnet = Self { gateway, prefix };
        if !(8..=30).contains(&prefix) {
            return Err(InvalidConfig::Bridge(gateway, prefix));
        }
        let unusable = gateway.is_loopback() || gateway.is_multicast() || gateway.octets()[0] == 0;
        if unusable || gateway == subnet.network() || gateway == subnet.broadcast() {
            return Err(InvalidConfig::Bridge(gateway, prefix));
        }
        Ok(subnet)
    }

    pub(crate) fn network(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.gateway.to_bits() & mask(self.prefix))
    }

    pub(crate) fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(mask(self.prefix))
    }

    fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.gateway.to_bits() | !mask(self.prefix))
    }

    pub(crate) fn last_slot(self) -> u16 {
        // All addresses but the network's, the broadcast and the gateway's.
        let guests = (1u32 << (32 - self.prefix)) - 3;
        u16::try_from(guests.min(BRIDGE_PORTS_MAX)).expect("the bridge's ports are fewer")
    }

    /// The guest's address: the slot's place among the subnet's, the gateway's left out.
    pub(crate) fn guest(self, slot: u16) -> Option<Ipv4Addr> {
        if !(1..=self.last_slot()).contains(&slot) {
            return None;
        }
        let address = self.network().to_bits() + u32::from(slot);
        let behind_gateway = address >= self.gateway.to_bits();
        Some(Ipv4Addr::from_bits(address + u32::from(behind_gateway)))
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX << (32 - prefix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// The longest name of an interface (`IFNAMSIZ` without the zero at its end).
    const INTERFACE_NAME_MAX: usize = 15;

    fn config(bridge: &str, prefix: u8) -> NetworkConfig {
        NetworkConfig {
            instance: "1f2e0000000000000000000000000000".parse().unwrap(),
            bridge: (bridge.parse().unwrap(), prefix),
            runtime_dir: "/run".into(),
            log_dir: "/log".into(),
            holder: vec!["bangerd".into(), "net-holder".into()],
        }
    }

    #[test]
    fn a_slot_has_the_same_place_for_ever() {
        let plan = plan(&config("172.16.0.1", 24), 7, 1400).unwrap();
        insta::assert_snapshot!(format!(
            "{} {}/{} ({}) {} by {}, resolver {}, mtu {}",
            plan.tap,
            plan.ip,
            plan.prefix,
            plan.netmask(),
            plan.mac,
            plan.gateway,
            plan.dns,
            plan.mtu
        ));
    }

    #[test]
    fn a_loopback_address_is_of_one_instance_and_one_slot() {
        let one: InstanceId = "1f2e0000000000000000000000000000".parse().unwrap();
        let other: InstanceId = "ffffffff000000000000000000000000".parse().unwrap();
        let address = loopback(&one, 7);
        assert_eq!(address, Ipv4Addr::new(127, 77, 28, 7));
        assert_eq!(loopback(&other, 1023), Ipv4Addr::new(127, 77, 255, 255));
        for slot in 1..=u16::try_from(BRIDGE_PORTS_MAX).unwrap() {
            let address = loopback(&one, slot);
            assert_eq!(slot_of_loopback(&one, address), Some(slot));
            assert_eq!(slot_of_loopback(&other, address), None);
        }
        for stranger in [
            [127, 0, 0, 1],
            [127, 77, 28, 0],
            [127, 78, 28, 7],
            [10, 77, 28, 7],
        ] {
            assert_eq!(slot_of_loopback(&one, stranger.into()), None);
        }
    }

    #[test]
    fn slots_end_where_the_prefix_or_the_bridge_does() {
        for (prefix, last) in [
            (30, 1),
            (29, 5),
            (24, 253),
            (22, 1021),
            (16, 1023),
            (8, 1023),
        ] {
            let config = config("10.0.0.1", prefix);
            assert_eq!(last_slot(&config), Ok(last));
            let ip = plan(&config, last, 1500).unwrap().ip;
            assert_eq!(address(&config, last), Ok(ip), "/{prefix}");
            for slot in [0, last + 1] {
                let error = plan(&config, slot, 1500).unwrap_err();
                assert_eq!(error, PlanError::Slot { slot, last }, "/{prefix}");
            }
        }
    }

    #[test]
    fn what_makes_no_network_is_refused() {
        for (address, prefix) in [
            ("172.16.0.0", 24),
            ("172.16.0.255", 24),
            ("172.16.0.1", 31),
            ("172.16.0.1", 0),
            ("172.16.0.1", 33),
            ("127.0.0.1", 24),
            ("224.0.0.1", 24),
            ("0.0.0.1", 24),
        ] {
            let refused = plan(&config(address, prefix), 1, 1500).unwrap_err();
            assert!(
                matches!(refused, PlanError::Config(InvalidConfig::Bridge(..))),
                "{address}/{prefix}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_two_of_a_network_share_an_address(gateway in any::<u32>(), prefix in 20u8..=30) {
            let Ok(subnet) = Subnet::new((Ipv4Addr::from_bits(gateway), prefix)) else {
                return Ok(());
            };
            let last = subnet.last_slot();
            let addresses: BTreeSet<_> = (1..=last).map(|slot| subnet.guest(slot).unwrap()).collect();
            prop_assert_eq!(addresses.len(), usize::from(last));
            for reserved in [subnet.gateway, subnet.network(), subnet.broadcast()] {
                prop_assert!(!addresses.contains(&reserved));
            }
            for address in addresses {
                prop_assert_eq!(address.to_bits() & mask(prefix), subnet.network().to_bits());
            }
        }

        #[test]
        fn a_taps_name_tells_its_slot_to_its_instance_only(
            instance in any::<u16>(), other in any::<u16>(), slot in any::<u16>(),
        ) {
            let name = TapName::new(Instance(instance), slot).to_string();
            prop_assert!(name.len() <= INTERFACE_NAME_MAX);
            let found = TapName::slot_of(Instance(other), &name);
            prop_assert_eq!(found, (instance == other).then_some(slot));
        }

        #[test]
        fn other_names_are_no_taps(name in "(bgr-1f2e-)?[0-9+a-z-]{0,8}") {
            if let Some(slot) = TapName::slot_of(Instance(0x1f2e), &name) {
                prop_assert_eq!(TapName::new(Instance(0x1f2e), slot).to_string(), name);
            }
        }
    }
}

//! Which packets pass in the namespace: the nftables script, rendered.
//!
//! The script is loaded once, when the holder starts, and covers every slot that there can
//! be. What is particular to a VM is not in the rules but on its tap: the name of the tap
//! says which addresses it may speak with, and the tap's group ([`Reach`]) whether it may
//! speak to the outside. So attaching and detaching change no rules, and a tap that is
//! deleted leaves none behind.
//!
//! - A guest speaks IPv4 and ARP with its own addresses and nothing else (`bridge` table).
//! - Guests do not reach each other: their ports of the bridge are isolated, and what one
//!   sends to another through the gateway is not forwarded.
//! - The gateway answers echo requests, and DNS to those who may reach the outside.
//! - All else goes outside with the namespace's address as its source, because pasta of
//!   2023 knows but one address of its guest: that of the last packet. What conntrack cannot
//!   give another source, as it belongs to no connection, must therefore not go outside.
//! - That pasta also refuses connections with a reset that lacks the ACK flag, though not the
//!   number, and so is ignored (RFC 9293, section 3.10.7.3). The flag is added.

use std::fmt;

use crate::plan::{Instance, Mac, Subnet, TapName};

/// Name of the bridge in the namespace.
pub(crate) const BRIDGE: &str = "banger0";

/// How far a VM's packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reach {
    /// To the gateway only.
    Gateway,
    /// To everything that the host reaches.
    Outside,
}

impl Reach {
    /// The interface group of a tap with this reach. New interfaces have group 0.
    pub(crate) fn group(self) -> u32 {
        match self {
            Self::Gateway => 0,
            Self::Outside => 1,
        }
    }
}

/// Renders the script for `nft -f`: it replaces all of banger's tables in one transaction.
pub(crate) fn render(instance: Instance, subnet: Subnet) -> String {
    let outside = Reach::Outside.group();
    let (gateway, prefix, network) = (subnet.gateway, subnet.prefix, subnet.network());
    let guests = Guests { instance, subnet };
    format!(
        "\
table bridge banger
delete table bridge banger
table bridge banger {{
  set guests {{
    type ifname . ether_addr . ipv4_addr
    elements = {{
{guests}    }}
  }}

  chain prerouting {{
    type filter hook prerouting priority -300; policy drop;
    iifgroup {outside} meta mark set {outside}
    ether type ip iifname . ether saddr . ip saddr @guests accept
    ether type arp iifname . ether saddr . arp saddr ip @guests accept
  }}
}}

table ip banger
delete table ip banger
table ip banger {{
  chain mend {{
    type filter hook prerouting priority -300; policy accept;
    iifname != {BRIDGE} tcp flags & (rst | ack) == rst tcp flags set rst | ack
  }}

  chain input {{
    type filter hook input priority 0; policy drop;
    iifname lo accept
    iifname {BRIDGE} icmp type echo-request accept
    iifname {BRIDGE} meta mark {outside} ip daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 accept
    iifname {BRIDGE} meta l4proto tcp reject with tcp reset
    iifname {BRIDGE} reject with icmp type port-unreachable
  }}

  chain forward {{
    type filter hook forward priority 0; policy drop;
    ct state invalid drop
    iifname {BRIDGE} oifname != {BRIDGE} meta mark {outside} accept
    iifname != {BRIDGE} oifname {BRIDGE} ct state established,related accept
    iifname {BRIDGE} reject with icmp type admin-prohibited
  }}

  chain postrouting {{
    type nat hook postrouting priority 100; policy accept;
    ip saddr {network}/{prefix} oifname != {BRIDGE} masquerade
  }}
}}
"
    )
}

/// One line for each slot: the tap, and the addresses that may come from it.
struct Guests {
    instance: Instance,
    subnet: Subnet,
}

impl fmt::Display for Guests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for slot in 1..=self.subnet.last_slot() {
            let tap = TapName::new(self.instance, slot);
            let mac = Mac::of_guest(self.instance, slot);
            let ip = self.subnet.guest(slot).expect("the slot is within range");
            writeln!(f, "      {tap} . {mac} . {ip},")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_name_every_slot() {
        let subnet = Subnet::new(("10.1.2.1".parse().unwrap(), 29)).unwrap();
        insta::assert_snapshot!(render(
            Instance::of(&"1f2e0000000000000000000000000000".parse().unwrap()),
            subnet
        ));
    }
}

//! What the network looks up on the host, and never changes there.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use crate::plan::Subnet;

/// `RTF_UP` and `RTF_REJECT` of `linux/route.h`.
const ROUTE_UP: u32 = 0x1;
const ROUTE_REJECT: u32 = 0x200;

/// An IPv4 route of the host's main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) interface: String,
    pub(crate) destination: Ipv4Addr,
    pub(crate) mask: Ipv4Addr,
    metric: u32,
}

impl Route {
    fn is_default(&self) -> bool {
        self.mask.is_unspecified()
    }

    /// Whether the route leads to an address that the bridge or a guest has.
    pub(crate) fn overlaps(&self, subnet: Subnet) -> bool {
        let mask = self.mask.to_bits() & subnet.mask().to_bits();
        let differ = self.destination.to_bits() ^ subnet.network().to_bits();
        !self.is_default() && differ & mask == 0
    }
}

/// The host's IPv4 routes: those of the network namespace of the calling thread.
pub(crate) fn routes() -> io::Result<Vec<Route>> {
    let table = fs::read_to_string("/proc/thread-self/net/route")?;
    Ok(parse_routes(&table))
}

/// What is said of a host that has no way out itself.
pub(crate) const NO_WAY_OUT: &str = "the host has no IPv4 default route";

/// The route that leads outside: the default route of the lowest metric.
pub(crate) fn way_out(routes: &[Route]) -> Option<&Route> {
    routes
        .iter()
        .filter(|route| route.is_default())
        .min_by_key(|route| route.metric)
}

/// The MTU of an interface of the host.
pub(crate) fn mtu(interface: &str) -> Option<u32> {
    let path = Path::new("/sys/class/net").join(interface).join("mtu");
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Reads `/proc/net/route` (proc(5)): a heading, then one route a line, its addresses as
/// hexadecimal numbers of the machine's byte order.
fn parse_routes(table: &str) -> Vec<Route> {
    let address = |word: &str| {
        let bits = u32::from_str_radix(word, 16).ok()?;
        Some(Ipv4Addr::from(bits.to_ne_bytes()))
    };
    let route = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let flags = u32::from_str_radix(words.get(3)?, 16).ok()?;
        let route = Route {
            interface: (*words.first()?).to_owned(),
            destination: address(words.get(1)?)?,
            mask: address(words.get(7)?)?,
            metric: words.get(6)?.parse().ok()?,
        };
        (flags & ROUTE_UP != 0 && flags & ROUTE_REJECT == 0).then_some(route)
    };
    table.lines().skip(1).filter_map(route).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
*\t000010AC\t00000000\t0200\t0\t0\t0\t0000FFFF\t0\t0\t0
";

    #[test]
    fn the_way_out_is_the_default_route_of_the_lowest_metric() {
        let routes = parse_routes(TABLE);
        assert_eq!(way_out(&routes).unwrap().interface, "eth0");
        assert_eq!(way_out(&routes[2..]), None);
    }

    #[test]
    fn only_routes_to_the_bridges_addresses_overlap() {
        let routes = parse_routes(TABLE);
        let overlapping = |bridge: &str, prefix| {
            let subnet = Subnet::new((bridge.parse().unwrap(), prefix)).unwrap();
            let overlapping = routes.iter().filter(|route| route.overlaps(subnet));
            overlapping
                .map(|route| route.interface.as_str())
                .collect::<Vec<_>>()
        };
        assert_eq!(overlapping("172.16.0.1", 24), [""; 0]);
        assert_eq!(overlapping("172.17.3.1", 24), ["docker0"]);
        assert_eq!(overlapping("172.16.0.1", 12), ["docker0"]);
        assert_eq!(overlapping("192.0.2.129", 25), ["eth0"]);
    }

    #[test]
    fn rubbish_is_no_route() {
        assert_eq!(parse_routes("x\n\neth0 zz\neth0 1 2 3 4 5 6 z\n"), []);
    }
}

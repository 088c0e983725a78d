//! What is told of a guest's ports: what the agent sees, where the host reaches it, and whether
//! it is a web server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use banger_proto::agent::Listener;
use banger_proto::api::Port;
use banger_proto::port::Protocol;
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::timeout;

use super::probe::{Web, probe};
use super::{Reached, Table, carry};
use crate::fleet::Fleet;
use crate::guest::Guest;
use crate::vm::task::Handle;

/// How long a port that has just begun to listen may take to be forwarded.
const SETTLE: Duration = Duration::from_secs(1);
/// Ports that are asked whether they are web servers.
const PROBES_MAX: usize = 64;
/// Services that are known not to be web servers, and may take it ill if they are asked.
const NO_WEB: [u16; 24] = [
    21, 22, 23, 25, 53, 110, 111, 143, 389, 465, 587, 636, 993, 995, 1433, 1521, 2049, 3306, 3389,
    5432, 5672, 6379, 11211, 27017,
];

/// A VM's ports, of which the agent has told these listeners.
pub async fn of(fleet: &Fleet, vm: &Handle, listeners: Vec<Listener>) -> Vec<Port> {
    let mut table = fleet.host().reach.table(&vm.id());
    let reached = settled(&mut table, &listeners).await;
    let (name, loopback) = (vm.name(), fleet.loopback(vm));
    let mut ports: BTreeMap<_, Port> = BTreeMap::new();
    for listener in listeners {
        let pid = listener.process.as_ref().map(|process| process.pid);
        let reached = match listener.protocol {
            Protocol::Tcp => reached.get(&listener.port).cloned(),
            Protocol::Udp => None,
        };
        let Reached { port, because } = reached.unwrap_or_default();
        let port = ports
            .entry((listener.port, listener.protocol, pid))
            .or_insert(Port {
                vm: name.clone(),
                port: listener.port,
                protocol: listener.protocol,
                addresses: Vec::new(),
                process: listener.process,
                endpoint: port.map(|port| SocketAddr::new(loopback.into(), port)),
                note: because,
                url: None,
            });
        port.addresses.push(listener.address);
    }
    ports.into_values().collect()
}

/// The table of what is forwarded once all of `listeners` are in it, or after a while.
async fn settled(table: &mut watch::Receiver<Table>, listeners: &[Listener]) -> Table {
    let tcp = listeners
        .iter()
        .filter(|listener| listener.protocol == Protocol::Tcp);
    let complete = table.wait_for(|table| tcp.clone().all(|port| table.contains_key(&port.port)));
    // Too slow, or the VM goes down: then what there is counts.
    let _ = timeout(SETTLE, complete).await;
    table.borrow().clone()
}

/// Asks the ports whether they are web servers, all at once, within limits.
pub async fn add_urls(guest: &Guest, ports: &mut [Port]) {
    let asked = ports.iter_mut().filter(|port| {
        let known = NO_WEB.contains(&port.port) || port.protocol == Protocol::Udp;
        port.endpoint.is_some() && !known
    });
    let answers = asked.take(PROBES_MAX).map(async |port| {
        let addresses = port.addresses.iter();
        let target = carry::target(port.port, addresses.copied());
        let host = format!("{}.vm", port.vm);
        let web = probe(guest, &target, &host).await;
        let endpoint = port.endpoint;
        port.url = web.zip(endpoint).map(|(web, endpoint)| url(web, endpoint));
    });
    join_all(answers).await;
}

fn url(web: Web, endpoint: SocketAddr) -> String {
    let (scheme, usual) = match web {
        Web::Http => ("http", 80),
        Web::Https => ("https", 443),
    };
    match endpoint.port() == usual {
        true => format!("{scheme}://{}/", endpoint.ip()),
        false => format!("{scheme}://{endpoint}/"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_no_port_that_goes_without_saying() {
        let url = |web, port| url(web, SocketAddr::new([127, 77, 0, 1].into(), port));
        assert_eq!(url(Web::Http, 80), "http://127.77.0.1/");
        assert_eq!(url(Web::Http, 443), "http://127.77.0.1:443/");
        assert_eq!(url(Web::Https, 443), "https://127.77.0.1/");
        assert_eq!(url(Web::Https, 8443), "https://127.77.0.1:8443/");
    }
}

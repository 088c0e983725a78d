//! Follows one VM's listening sockets, and forwards each port while it listens.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use banger_proto::agent::Listener;
use banger_proto::port::{Place, Protocol};
use tokio::sync::Semaphore;
use tracing::Instrument as _;

use super::bind::{self, BindError};
use super::forward::Forward;
use super::{CONNECTIONS_MAX, FORWARDS_MAX, Reach, Reached, Table, assign, carry};
use crate::guest::{Guest, RequestError};
use crate::vm::task::{Caller, Status};

/// Between two lists of one guest: it cannot keep the host busy by changing them all the time.
const BREATH: Duration = Duration::from_millis(50);
/// Before a watch that broke off is begun again.
const AGAIN: Duration = Duration::from_secs(1);

/// Forwards the ports of a VM whenever it runs, until it is gone.
pub(super) async fn serve(reach: Reach, caller: Caller, loopback: Ipv4Addr) {
    let (id, name) = caller.look(|status| (status.row.id.clone(), status.row.name.clone()));
    let span = tracing::info_span!("ports", vm = %id.short(), %name);
    let serving = async {
        loop {
            match caller.sees(|status| is_up(status) || status.gone).await {
                Some(status) if !status.gone => {}
                // The VM is gone, or the daemon ends.
                _ => return,
            }
            let mut forwards = Forwards::new(reach.clone(), caller.clone(), loopback);
            tokio::select! {
                () = forwards.follow() => {}
                _ = caller.sees(|status| !is_up(status)) => {}
            }
        }
    };
    serving.instrument(span).await;
}

/// Whether there is a machine whose guest may listen.
fn is_up(status: &Status) -> bool {
    status.pid.is_some()
}

/// The forwarded ports of a VM that runs.
struct Forwards {
    reach: Reach,
    caller: Caller,
    loopback: Ipv4Addr,
    /// What is forwarded, by the guest's port.
    open: BTreeMap<u16, Open>,
    /// How many connections there may be yet.
    places: Arc<Semaphore>,
}

/// One port that is forwarded.
struct Open {
    forward: Forward,
    host_port: u16,
    because: Option<String>,
}

impl Forwards {
    fn new(reach: Reach, caller: Caller, loopback: Ipv4Addr) -> Self {
        let id = caller.look(|status| status.row.id.clone());
        reach.tables().insert(id, Default::default());
        Self {
            reach,
            caller,
            loopback,
            open: BTreeMap::new(),
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        }
    }

    /// Does what each link to the guest tells. Ends with the daemon.
    async fn follow(&mut self) {
        while let Some(status) = self.caller.sees(|status| status.guest.is_some()).await {
            let guest = status.guest.expect("it is what was waited for");
            if let Err(error) = self.obey(&guest).await {
                tracing::debug!(%error, "the guest tells of its ports no longer");
            }
            // What was forwarded stays: the guest may listen as before, and be reached again.
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Does what one link tells, until it breaks off.
    async fn obey(&mut self, guest: &Guest) -> std::io::Result<()> {
        let mut watched = match guest.watch_ports().await {
            Ok(watched) => watched,
            Err(RequestError::Refused { status: 404, .. }) => {
                tracing::debug!("the agent is too old to tell of its ports");
                guest.closed().await;
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        while let Some(listeners) = watched.next().await? {
            self.agree(&listeners);
            tokio::time::sleep(BREATH).await;
        }
        Ok(())
    }

    /// Opens and closes what it takes so that just the ports of `listeners` are forwarded.
    fn agree(&mut self, listeners: &[Listener]) {
        let tcp = || {
            let of_tcp = |listener: &&Listener| listener.protocol == Protocol::Tcp;
            listeners.iter().filter(of_tcp)
        };
        let guest: BTreeSet<u16> = tcp().map(|listener| listener.port).collect();
        if guest.len() > FORWARDS_MAX {
            tracing::warn!(
                ports = guest.len(),
                FORWARDS_MAX,
                "the guest has too many ports"
            );
        }
        let guest: BTreeSet<u16> = guest.into_iter().take(FORWARDS_MAX).collect();
        let present = self.open.iter().map(|(port, open)| (*port, open.host_port));
        let change = assign::change(&present.collect(), &guest);
        for port in &change.close {
            self.open.remove(port);
        }
        let target = |port| {
            let at = tcp().filter(|listener| listener.port == port);
            carry::target(port, at.map(|listener| listener.address))
        };
        for (port, open) in &self.open {
            open.forward.lead_to(target(*port));
        }
        let mut table = Table::new();
        for port in change.open {
            if let Err(because) = self.forward(port, target(port), &guest) {
                let nowhere = Reached {
                    port: None,
                    because,
                };
                table.insert(port, nowhere);
            }
        }
        table.extend(self.open.iter().map(|(port, open)| {
            let reached = Reached {
                port: Some(open.host_port),
                because: open.because.clone(),
            };
            (*port, reached)
        }));
        let id = self.caller.look(|status| status.row.id.clone());
        if let Some(shown) = self.reach.tables().get(&id) {
            shown.send_replace(table);
        }
    }

    /// Forwards one port, from the same port or else from another.
    ///
    /// # Errors
    /// None can be had, for this reason.
    fn forward(
        &mut self,
        port: u16,
        target: String,
        guest: &BTreeSet<u16>,
    ) -> Result<(), Option<String>> {
        let mut because: Option<String> = None;
        for host_port in assign::candidates(port, guest) {
            match self.start(host_port, target.clone()) {
                Ok(forward) => {
                    tracing::debug!(port, host_port, "forwarded");
                    let open = Open {
                        forward,
                        host_port,
                        because,
                    };
                    self.open.insert(port, open);
                    return Ok(());
                }
                Err(error) => because = because.or_else(|| Some(in_words(&error))),
            }
        }
        tracing::debug!(port, ?because, "not forwarded");
        Err(because)
    }

    fn start(&self, port: u16, target: String) -> Result<Forward, BindError> {
        let place = Place {
            address: self.loopback.into(),
            port,
            protocol: Protocol::Tcp,
        };
        let (listener, held) = self.reach.open(place, &self.caller, bind::listen)?;
        let (caller, places) = (self.caller.clone(), Arc::clone(&self.places));
        Forward::start(listener, held, caller, target, places)
            .map_err(|source| BindError::Other { place, source })
    }
}

impl Drop for Forwards {
    fn drop(&mut self) {
        let id = self.caller.look(|status| status.row.id.clone());
        self.reach.tables().remove(&id);
    }
}

/// Why a port is not the same on the host. The user has no other to choose.
fn in_words(error: &BindError) -> String {
    match error {
        BindError::Privileged { place } => format!(
            "only root may open port {} here; to change that, as root: sysctl -w \
             net.ipv4.ip_unprivileged_port_start={}",
            place.port, place.port
        ),
        other => other.in_words(),
    }
}

//! How the host reaches the ports of guests without a route to them: a socket of the host's for
//! each, and for each connection a stream over the agent link.
//!
//! ```text
//! agent ── its listening sockets ──> follow ── assign ──> forward: 127.77.x.y:PORT ── carry ──> agent
//! ```
//!
//! What is open here ends with the daemon, and the next daemon opens it again: nothing of it is
//! written down.

mod assign;
mod bind;
mod carry;
mod follow;
mod forward;
pub mod ports;
mod probe;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};

use banger_proto::id::VmId;
use banger_proto::port::Place;
use tokio::sync::watch;

use crate::vm::task::Caller;

pub use self::bind::BindError;

/// Connections to one VM that may be open at once; more wait.
const CONNECTIONS_MAX: usize = 512;
/// Ports of one VM that are forwarded; what a guest listens on beyond is not.
const FORWARDS_MAX: usize = 512;

/// Where a guest's TCP ports are reached, by the guest's port.
pub type Table = BTreeMap<u16, Reached>;

/// Where one port of a guest is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// The port of the VM's loopback address; `None` if there is none.
    pub port: Option<u16>,
    /// Why it is not the same port, with what to do about it.
    pub because: Option<String>,
}

/// Everything that this daemon has open for VMs. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Reach {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Whose each open port is.
    held: Mutex<BTreeMap<Place, Caller>>,
    /// What each VM that runs is reached by.
    tables: Mutex<BTreeMap<VmId, watch::Sender<Table>>>,
}

impl Reach {
    /// Forwards the ports of a VM to `loopback` whenever it runs, until it is gone.
    pub fn serve(&self, caller: Caller, loopback: Ipv4Addr) {
        tokio::spawn(follow::serve(self.clone(), caller, loopback));
    }

    /// Where the ports of a VM are reached; none while it does not run.
    pub fn table(&self, vm: &VmId) -> watch::Receiver<Table> {
        let tables = self.tables();
        match tables.get(vm) {
            Some(table) => table.subscribe(),
            None => watch::Sender::new(Table::new()).subscribe(),
        }
    }

    /// Opens a port of the host for a VM.
    fn open<T>(
        &self,
        place: Place,
        caller: &Caller,
        bind: impl FnOnce(SocketAddr) -> io::Result<T>,
    ) -> Result<(T, Held), BindError> {
        let bound = bind(SocketAddr::new(place.address, place.port))
            .map_err(|source| BindError::new(place, source, self.whose(place)))?;
        self.held().insert(place, caller.clone());
        let held = Held {
            place,
            reach: self.clone(),
        };
        Ok((bound, held))
    }

    /// The VM that keeps a port from being opened, in words.
    fn whose(&self, place: Place) -> Option<String> {
        let held = self.held();
        let meet = |other: &Place| {
            let same = (other.port, other.protocol) == (place.port, place.protocol);
            same && (other.address == place.address
                || other.address.is_unspecified()
                || place.address.is_unspecified())
        };
        let (_, caller) = held.iter().find(|(other, _)| meet(other))?;
        Some(caller.look(|status| format!("VM `{}`", status.row.name)))
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<Place, Caller>> {
        let held = self.shared.held.lock();
        held.expect("no holder of this lock panics")
    }

    fn tables(&self) -> MutexGuard<'_, BTreeMap<VmId, watch::Sender<Table>>> {
        let tables = self.shared.tables.lock();
        tables.expect("no holder of this lock panics")
    }
}

/// A port of the host that a VM has until this is dropped.
#[derive(Debug)]
struct Held {
    place: Place,
    reach: Reach,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.reach.held().remove(&self.place);
    }
}

//! A port of the host that leads to a TCP port of a guest.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tracing::Instrument as _;

use super::Held;
use super::carry;
use crate::vm::task::Caller;

/// Between attempts to accept, so that a lack of descriptors does not become a busy loop.
const BREATH: Duration = Duration::from_millis(100);

/// Takes connections until it is dropped; those that were taken go on.
#[derive(Debug)]
pub(super) struct Forward {
    task: AbortHandle,
    target: Target,
}

/// The address in the guest that connections lead to.
#[derive(Clone, Debug)]
struct Target(Arc<Mutex<String>>);

impl Target {
    fn get(&self) -> String {
        self.0
            .lock()
            .expect("no holder of this lock panics")
            .clone()
    }

    fn set(&self, target: String) {
        *self.0.lock().expect("no holder of this lock panics") = target;
    }
}

impl Forward {
    /// Takes connections for `target`, an address in the guest.
    ///
    /// # Errors
    /// The runtime cannot watch the socket.
    pub(super) fn start(
        listener: std::net::TcpListener,
        held: Held,
        caller: Caller,
        target: String,
        places: Arc<Semaphore>,
    ) -> io::Result<Self> {
        let listener = TcpListener::from_std(listener)?;
        let target = Target(Arc::new(Mutex::new(target)));
        let accepting = accept(listener, held, caller, target.clone(), places);
        let task = tokio::spawn(accepting.in_current_span()).abort_handle();
        Ok(Self { task, target })
    }

    /// Connections lead there from now on.
    pub(super) fn lead_to(&self, target: String) {
        self.target.set(target);
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    held: Held,
    caller: Caller,
    target: Target,
    places: Arc<Semaphore>,
) {
    // Given back when this is called off.
    let (listener, _held) = (listener, held);
    loop {
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                // The client has gone already, or descriptors are scarce and others will close.
                tracing::debug!(%error, "could not take a connection");
                tokio::time::sleep(BREATH).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let (caller, target) = (caller.clone(), target.clone());
        let carried = async move {
            lead(client, &caller, &target.get()).await;
            drop(place);
        };
        tokio::spawn(carried.in_current_span());
    }
}

async fn lead(client: TcpStream, caller: &Caller, target: &str) {
    let _using = caller.connected();
    let guest = async {
        let guest = caller.guest().await.map_err(|error| error.to_string())?;
        let stream = guest.tcp(target).await;
        stream.map_err(|error| error.to_string())
    };
    match guest.await {
        Ok(guest) => carry::join(client, guest).await,
        Err(error) => {
            tracing::debug!(error, target, "could not reach the guest's port");
            carry::break_off(&client);
        }
    }
}

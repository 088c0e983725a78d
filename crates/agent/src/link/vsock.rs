//! The vsock of a guest (vsock(7)): the agent listens, and knocks at the host when it does.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use banger_proto::agent::VSOCK_PORT;
use tokio::io::Interest;
use tracing::{debug, info, warn};

use super::{Current, End, Wire, serve as serve_wire};
use crate::agent::Agent;
use crate::watch::watch;

/// Connections that wait for the agent.
const BACKLOG: libc::c_int = 16;

/// How long nobody is let in after that failed, as for want of descriptors: whoever waits is
/// still there then, and so is what made it fail.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves the host until the machine is off.
///
/// # Errors
/// There is no vsock, or it cannot be watched.
pub async fn serve(agent: Arc<Agent>) -> io::Result<()> {
    let listener = watch(listen()?, Interest::READABLE)?;
    info!(port = VSOCK_PORT, "ready");
    // Whoever looked for the agent before it listened has been waiting since.
    tokio::spawn(async {
        match knock().await {
            Ok(()) => debug!("the host has heard the knock"),
            // It will find the agent when it looks for it.
            Err(error) => debug!(%error, "nobody at the host waits"),
        }
    });
    let current = Arc::new(Current::default());
    loop {
        let mut ready = listener.readable().await?;
        let Ok(accepted) = ready.try_io(|listener| accept(listener.get_ref())) else {
            continue;
        };
        match accepted.and_then(wire_to_host) {
            Ok(Some(wire)) => {
                tokio::spawn(serve_wire(wire, agent.clone(), Some(current.clone())));
            }
            Ok(None) => debug!("somebody in the guest was turned away"),
            Err(error) => {
                warn!(%error, "could not take a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// A connection of the host's. `None`: the agent obeys the host alone, and whoever runs in the
/// guest may connect as well, by the guest's own address or by the local one (vsock(7)).
fn wire_to_host((socket, peer): (OwnedFd, libc::c_uint)) -> io::Result<Option<Wire>> {
    match peer {
        libc::VMADDR_CID_HOST => Wire::new(socket, End::Final).map(Some),
        _ => Ok(None),
    }
}

fn listen() -> io::Result<OwnedFd> {
    let socket = socket()?;
    let address = address(libc::VMADDR_CID_ANY);
    // SAFETY: the address is a whole `sockaddr_vm`, which lives longer than the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), LENGTH) })?;
    // SAFETY: listen has no memory to go wrong with.
    check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
    Ok(socket)
}

/// Accepts a connection; says from which address (CID) it comes.
fn accept(listener: &OwnedFd) -> io::Result<(OwnedFd, libc::c_uint)> {
    let mut peer = address(libc::VMADDR_CID_ANY);
    let mut length = LENGTH;
    // SAFETY: the kernel writes one `sockaddr_vm` at most, which `peer` is, and its length.
    let accepted = check(unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            (&raw mut peer).cast(),
            &raw mut length,
            libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
        )
    })?;
    // SAFETY: accept4 returned a new descriptor that nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(accepted) };
    Ok((socket, peer.svm_cid))
}

/// Connects to the host and hangs up.
async fn knock() -> io::Result<()> {
    let socket = socket()?;
    let address = address(libc::VMADDR_CID_HOST);
    // SAFETY: the address is a whole `sockaddr_vm`, which lives longer than the call.
    let connected =
        check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), LENGTH) });
    match connected {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
        _ => {}
    }
    let socket = watch(socket, Interest::WRITABLE)?;
    let _ready = socket.writable().await?;
    match rustix::net::sockopt::socket_error(socket.get_ref())? {
        Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket has no memory to go wrong with.
    let socket = check(unsafe { libc::socket(libc::AF_VSOCK, kind, 0) })?;
    // SAFETY: socket returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

/// Length of a `sockaddr_vm`.
const LENGTH: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;

/// The link's port of one side.
fn address(cid: libc::c_uint) -> libc::sockaddr_vm {
    // SAFETY: a `sockaddr_vm` is numbers, for which zeros are valid.
    let mut address: libc::sockaddr_vm = unsafe { mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = VSOCK_PORT;
    address
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        other => Ok(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_host_is_obeyed() {
        let socket = || {
            let (near, _) = std::os::unix::net::UnixStream::pair().unwrap();
            OwnedFd::from(near)
        };
        assert!(
            wire_to_host((socket(), libc::VMADDR_CID_HOST))
                .unwrap()
                .is_some()
        );
        // The guest's own address, the local one, and none.
        for cid in [3, libc::VMADDR_CID_LOCAL, libc::VMADDR_CID_ANY] {
            assert!(wire_to_host((socket(), cid)).unwrap().is_none(), "{cid}");
        }
    }
}

//! SSH in the guest: `ssh`, `scp`, `sftp`, `rsync` and editors work with every image.
//!
//! ```text
//! POST /v1/ssh -> handler: who logs in, what is asked for
//!                   ├ shell, exec, sftp -> crate::exec ┐
//!                   ├ direct-tcpip      -> crate::tcp  ┼ channel: bytes both ways
//!                   └ what it listens on, its agent -> forward ┘
//! ```
//!
//! The keys come from the daemon. sftp runs as a process of its own, so that it has the
//! user's rights: see [`crate::sftp`].

mod channel;
mod forward;
mod handler;
mod keys;

use std::sync::Arc;
use std::time::Duration;

use russh::server::{Config, run_stream};
use russh::{MethodKind, MethodSet, SshId};
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::{debug, info};

pub use keys::{Keys, KeysError};

use crate::agent::Agent;

/// What a client may send before it has been taken. Small, because russh grants more of it
/// when bytes arrive rather than when they are taken: see [`channel`].
const WINDOW: u32 = 256 * 1024;

/// Serves one SSH connection to its end.
pub async fn serve<S>(agent: Arc<Agent>, keys: Keys, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let config = Config {
        server_id: SshId::Standard(concat!("SSH-2.0-banger_", env!("CARGO_PKG_VERSION")).into()),
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        // Who cannot log in here has come through the daemon's socket: nothing to slow down.
        auth_rejection_time: Duration::ZERO,
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: keys.host.into_iter().collect(),
        window_size: WINDOW,
        channel_buffer_size: 16,
        // The daemon's connection says when the client is gone.
        inactivity_timeout: None,
        ..Config::default()
    };
    let handler = handler::Handler::new(agent, keys.authorized);
    let session = match run_stream(Arc::new(config), stream, handler).await {
        Ok(session) => session,
        Err(error) => return info!(%error, "no SSH connection came about"),
    };
    match session.await {
        Ok(()) => debug!("SSH connection ended"),
        Err(error) => info!(%error, "SSH connection broke"),
    }
}

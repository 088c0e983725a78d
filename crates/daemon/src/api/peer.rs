//! Who is at the other end of the socket: only this user may be.

use axum::extract::Request;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use axum::serve::IncomingStream;
use banger_proto::error::{ApiError, ErrorKind};
use tokio::net::UnixListener;

use super::exchange::Failure;

/// The user id at the other end, as the kernel says it (`SO_PEERCRED`, unix(7)).
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    uid: Option<u32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self {
            uid: stream
                .io()
                .peer_cred()
                .ok()
                .map(|credentials| credentials.uid()),
        }
    }
}

/// Lets this user and root through.
pub async fn admit(request: Request, next: Next) -> Response {
    let peer = request
        .extensions()
        .get::<ConnectInfo<Peer>>()
        .map(|info| info.0);
    let own = rustix::process::geteuid().as_raw();
    match peer.and_then(|peer| peer.uid) {
        Some(uid) if uid == own || uid == 0 => next.run(request).await,
        uid => {
            tracing::warn!(?uid, "a stranger was refused");
            let error = ApiError::new(ErrorKind::Forbidden, "this is another user's banger");
            Failure(error).into_response()
        }
    }
}

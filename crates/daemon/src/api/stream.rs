//! Connections that become streams of bytes: leases, and what is copied to and from a guest.

use std::future::poll_fn;
use std::io;
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::sync::Mutex;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, Request as HttpRequest, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use banger_proto::api::{LeaseGrant, UPGRADE_TOKEN};
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::id::RequestId;
use bytes::{Bytes, BytesMut};
use futures_util::Stream as _;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade;
use tokio::io::{AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tracing::Instrument as _;

use super::Api;
use super::exchange::Failure;
use crate::descriptor::watched;
use crate::fleet::refused;
use crate::guest::{Guest, GuestStream};
use crate::names;
use crate::vm::lifecycle::Request;
use crate::vm::task::Use;

/// Bytes that are read from a client at once.
const CHUNK: usize = 256 << 10;

pub async fn lease(State(api): State<Api>, request: HttpRequest) -> Result<Response, Failure> {
    let (answer, upgrading) = upgrade(request)?;
    let lease = api.fleet.host().leases.grant();
    tokio::spawn(async move {
        let held = async {
            let mut client = upgrading.client().await?;
            let grant = LeaseGrant {
                lease: lease.clone(),
            };
            let mut line = serde_json::to_vec(&grant).expect("it has only string keys");
            line.push(b'\n');
            client.stream.write_all(&line).await?;
            // Whatever the client sends means nothing; its end means the end.
            let mut ignored = [0; 64];
            while client.stream.read(&mut ignored).await? > 0 {}
            Ok::<_, io::Error>(())
        };
        // A broken connection ends the lease as well as a closed one.
        if let Err(error) = held.await {
            tracing::debug!(%error, "a lease broke off");
        }
        api.fleet.end_lease(&lease).await;
    });
    Ok(answer)
}

pub async fn exec(
    State(api): State<Api>,
    Path(vm): Path<String>,
    Extension(id): Extension<RequestId>,
    request: HttpRequest,
) -> Result<Response, Failure> {
    let (guest, using) = reach(&api, &vm, &id).await?;
    let (answer, upgrading) = upgrade(request)?;
    carry(upgrading, guest.exec(), using);
    Ok(answer)
}

pub async fn ssh(
    State(api): State<Api>,
    Path(vm): Path<String>,
    Extension(id): Extension<RequestId>,
    request: HttpRequest,
) -> Result<Response, Failure> {
    let (guest, using) = reach(&api, &vm, &id).await?;
    // ssh looks for the guest's key once it hears from the guest.
    names::pin(&api.fleet).await;
    let opened = guest.ssh().await.map_err(|error| {
        ApiError::new(ErrorKind::Unavailable, format!("could not reach VM `{vm}`"))
            .caused_by(&error)
            .with_hint(format!("see `banger vm logs {vm}`"))
    })?;
    let (answer, upgrading) = upgrade(request)?;
    carry(upgrading, opened, using);
    Ok(answer)
}

/// The link to the guest of a running VM, which is in use from now on. Its absence is told
/// before the connection becomes a stream.
async fn reach(api: &Api, vm: &str, id: &RequestId) -> Result<(Guest, Use), Failure> {
    let handle = api.fleet.find(vm)?;
    let using = handle.hold();
    let guest = handle.guest().await;
    let guest = guest.map_err(|error| refused(&handle, Request::Attach, &error))?;
    Ok((guest.for_request(id), using))
}

fn carry(upgrading: Upgrading, guest: GuestStream, using: Use) {
    let carried = async move {
        let client = upgrading.client().await?;
        let gone = hangup(&client.stream)?;
        tokio::select! {
            copied = copy(client, guest) => copied,
            // Dropping the guest's stream hangs up what it leads to.
            () = gone => Ok(()),
        }
    };
    tokio::spawn(
        async move {
            if let Err(error) = carried.await {
                tracing::debug!(%error, "a stream broke off");
            }
            drop(using);
        }
        .in_current_span(),
    );
}

/// A connection that is about to become a stream.
struct Upgrading(OnUpgrade);

/// The client's end of a stream.
struct Client {
    stream: UnixStream,
    /// What came together with the request.
    early: Bytes,
}

impl Upgrading {
    async fn client(self) -> io::Result<Client> {
        let upgraded = self.0.await.map_err(io::Error::other)?;
        let parts = upgrade::downcast::<TokioIo<UnixStream>>(upgraded)
            .map_err(|_| io::Error::other("the connection is no Unix socket"))?;
        Ok(Client {
            stream: parts.io.into_inner(),
            early: parts.read_buf,
        })
    }
}

fn upgrade(mut request: HttpRequest) -> Result<(Response, Upgrading), Failure> {
    let says = |headers: &HeaderMap, name, word: &str| {
        let value = headers
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok());
        value.is_some_and(|value| value.to_ascii_lowercase().contains(word))
    };
    let headers = request.headers();
    let wanted = says(headers, header::UPGRADE, UPGRADE_TOKEN)
        && says(headers, header::CONNECTION, "upgrade");
    let upgrading = request.extensions_mut().remove::<OnUpgrade>();
    let Some(upgrading) = upgrading.filter(|_| wanted) else {
        let message = format!("this needs `Upgrade: {UPGRADE_TOKEN}`");
        return Err(ApiError::new(ErrorKind::Invalid, message).into());
    };
    let answer = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, UPGRADE_TOKEN)
        .body(Body::empty())
        .expect("constants make a valid head");
    Ok((answer, Upgrading(upgrading)))
}

/// Copies both ways until the guest's side has ended. The client's end of input is passed on
/// and does not end the other direction.
async fn copy(client: Client, guest: GuestStream) -> io::Result<()> {
    let (from_client, to_client) = client.stream.into_split();
    // Locked only while it is polled, by this one task.
    let guest = Mutex::new(guest);
    let upwards = async {
        let copied = copy_up(client.early, from_client, &guest).await;
        // A guest that takes no more input may still have output: that direction decides.
        if let Err(error) = copied {
            tracing::debug!(%error, "the guest takes no more input");
        }
        std::future::pending().await
    };
    tokio::select! {
        copied = copy_down(&guest, to_client) => copied,
        () = upwards => Ok(()),
    }
}

async fn copy_up(
    early: Bytes,
    mut client: OwnedReadHalf,
    guest: &Mutex<GuestStream>,
) -> io::Result<()> {
    let mut chunk = BytesMut::from(early);
    loop {
        let mut rest = &chunk[..];
        while !rest.is_empty() {
            let written = poll_fn(|cx| Pin::new(&mut *lock(guest)).poll_write(cx, rest)).await?;
            rest = &rest[written..];
        }
        chunk.clear();
        chunk.reserve(CHUNK);
        if client.read_buf(&mut chunk).await? == 0 {
            return poll_fn(|cx| Pin::new(&mut *lock(guest)).poll_shutdown(cx)).await;
        }
    }
}

async fn copy_down(guest: &Mutex<GuestStream>, mut client: OwnedWriteHalf) -> io::Result<()> {
    while let Some(piece) = poll_fn(|cx| Pin::new(&mut *lock(guest)).poll_next(cx)).await {
        client.write_all(&piece?).await?;
    }
    client.shutdown().await
}

fn lock(guest: &Mutex<GuestStream>) -> std::sync::MutexGuard<'_, GuestStream> {
    guest.lock().expect("no holder of this lock panics")
}

/// Resolves when the other end of the socket is gone, as opposed to having ended its input.
///
/// epoll(7) reports that as `EPOLLHUP`, which needs not be asked for; asking for priority
/// data, which Unix sockets do not have, leaves just that.
fn hangup(stream: &UnixStream) -> io::Result<impl Future<Output = ()> + use<>> {
    let watch = watched(stream.as_fd().try_clone_to_owned()?, Interest::PRIORITY)?;
    Ok(async move {
        if watch.ready(Interest::PRIORITY).await.is_err() {
            // The reactor ends, and the daemon with it.
            std::future::pending().await
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn a_client_that_is_gone_is_told_from_one_that_has_ended_its_input() {
        let (mut client, daemon) = UnixStream::pair().unwrap();
        let mut gone = Box::pin(hangup(&daemon).unwrap());
        client.write_all(b"x").await.unwrap();
        client.shutdown().await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(50), &mut gone).await;
        assert!(early.is_err(), "its output is still open");
        drop(client);
        tokio::time::timeout(Duration::from_secs(5), gone)
            .await
            .expect("a hang-up is seen");
    }
}

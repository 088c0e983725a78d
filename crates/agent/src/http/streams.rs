//! Requests whose bodies are bytes both ways: SSH, TCP connections, file trees.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use banger_proto::agent::FILE_KIND_HEADER;
use bytes::{Buf, Bytes};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper::header::HeaderValue;
use hyper::{Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio_util::sync::PollSender;
use tracing::{Instrument, warn};

use super::{Answer, Body, Failure, empty, query};
use crate::agent::Agent;
use crate::{files, ssh, tcp, udp};

/// Pieces that wait for a slow reader; each is at most 64 KiB.
const QUEUE: usize = 4;

/// `POST /v1/ssh`.
pub(super) fn ssh(agent: &Arc<Agent>, request: Request<Incoming>) -> Answer {
    let keys = agent.settings().keys.clone();
    if keys.host.is_none() {
        return Err(Failure {
            status: StatusCode::CONFLICT,
            message: "no SSH host key has been configured".to_owned(),
        });
    }
    let (sender, receiver) = mpsc::channel(QUEUE);
    let stream = Stream {
        body: request.into_body(),
        piece: Bytes::new(),
        output: PollSender::new(sender),
    };
    tokio::spawn(ssh::serve(agent.clone(), keys, stream).in_current_span());
    Ok(Response::new(Body::Bytes(receiver)))
}

/// `POST /v1/tcp?addr=A`.
pub(super) async fn tcp(request: Request<Incoming>) -> Answer {
    let address = query(&request, "addr")?;
    let connection = tcp::connect(&address).await.map_err(not_connected)?;
    Ok(carry(request, connection))
}

/// `POST /v1/udp?addr=A`.
pub(super) async fn udp(request: Request<Incoming>) -> Answer {
    let address = query(&request, "addr")?;
    let connection = udp::connect(&address).await.map_err(not_connected)?;
    Ok(carry(request, connection))
}

fn not_connected(error: tcp::ConnectError) -> Failure {
    Failure {
        status: match error {
            tcp::ConnectError::Connect { .. } => StatusCode::BAD_GATEWAY,
            _ => StatusCode::BAD_REQUEST,
        },
        message: error.to_string(),
    }
}

/// The request's body goes to the connection, and what comes from it is the answer's.
fn carry(request: Request<Incoming>, connection: tcp::Connection) -> Response<Body> {
    let mut body = request.into_body();
    tokio::spawn(async move {
        while let Some(piece) = next(&mut body).await {
            let Ok(bytes) = piece else {
                // A connection that has ended already needs no breaking off.
                let _ = connection.abort.send(());
                return;
            };
            if connection.input.send(bytes).await.is_err() {
                return;
            }
        }
    });
    Response::new(Body::Bytes(connection.output))
}

/// `GET /v1/files?path=P`.
pub(super) fn get_files(request: &Request<Incoming>) -> Answer {
    let path = absolute(query(request, "path")?)?;
    if let Err(error) = path.symlink_metadata() {
        let status = status_of(error.kind());
        let message = format!("could not read {}: {error}", path.display());
        return Err(Failure { status, message });
    }
    let kind = kind_of(&path);
    let mut response = packed(move |pieces| files::pack(&path, pieces));
    let headers = response.headers_mut();
    headers.insert(FILE_KIND_HEADER, HeaderValue::from_static(kind));
    Ok(response)
}

/// `GET /v1/system`.
pub(super) fn get_system() -> Answer {
    Ok(packed(files::pack_system))
}

/// Answers with an archive while `pack` makes it.
fn packed(
    pack: impl FnOnce(mpsc::Sender<io::Result<Bytes>>) -> Result<(), files::FilesError> + Send + 'static,
) -> Response<Body> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let span = tracing::Span::current();
    spawn_blocking(move || {
        let _entered = span.entered();
        if let Err(error) = pack(sender.clone()) {
            warn!(%error, "the archive is incomplete");
            // Resets the stream, unless nobody reads it any more.
            let _ = sender.blocking_send(Err(io::Error::other(error)));
        }
    });
    Response::new(Body::Bytes(receiver))
}

/// `PUT /v1/files?path=P`.
pub(super) async fn put_files(request: Request<Incoming>) -> Answer {
    let path = absolute(query(&request, "path")?)?;
    let mut body = request.into_body();
    let (sender, receiver) = mpsc::channel(QUEUE);
    let work = spawn_blocking(move || files::unpack(&path, receiver));
    while let Some(piece) = next(&mut body).await {
        if sender.send(piece).await.is_err() {
            // The work has ended: at the archive's own end, or because of an error.
            break;
        }
    }
    drop(sender);
    match work.await {
        Ok(Ok(())) => Ok(empty(StatusCode::NO_CONTENT)),
        Ok(Err(error @ (files::FilesError::Escape(_) | files::FilesError::Archive(_)))) => {
            Err(Failure::bad_request(error.to_string()))
        }
        Ok(Err(error)) => Err(Failure {
            status: error
                .kind()
                .map_or(StatusCode::INTERNAL_SERVER_ERROR, status_of),
            message: error.to_string(),
        }),
        Err(error) => Err(Failure::internal(error.to_string())),
    }
}

/// What a path leads to, in the words of [`FILE_KIND_HEADER`].
fn kind_of(path: &Path) -> &'static str {
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => "directory",
        Ok(metadata) if metadata.is_file() => "file",
        _ => "other",
    }
}

/// The status of what the system said about a file.
fn status_of(kind: io::ErrorKind) -> StatusCode {
    use io::ErrorKind;
    match kind {
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => StatusCode::FORBIDDEN,
        ErrorKind::NotADirectory
        | ErrorKind::IsADirectory
        | ErrorKind::AlreadyExists
        | ErrorKind::DirectoryNotEmpty => StatusCode::CONFLICT,
        // Not the system's words but the library's: an entry makes no sense, or is cut short.
        ErrorKind::Other | ErrorKind::InvalidData | ErrorKind::UnexpectedEof => {
            StatusCode::BAD_REQUEST
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StatusCode::INSUFFICIENT_STORAGE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn absolute(path: String) -> Result<PathBuf, Failure> {
    if Path::new(&path).is_absolute() {
        return Ok(PathBuf::from(path));
    }
    Err(Failure::bad_request(format!(
        "`{path}` is not an absolute path"
    )))
}

/// The next bytes of a request; `None` at its end.
async fn next(body: &mut Incoming) -> Option<io::Result<Bytes>> {
    loop {
        match body.frame().await? {
            Ok(frame) => {
                if let Ok(data) = frame.into_data() {
                    return Some(Ok(data));
                }
            }
            Err(error) => return Some(Err(io::Error::other(error))),
        }
    }
}

/// A request and its response as one stream.
struct Stream {
    body: Incoming,
    piece: Bytes,
    output: PollSender<io::Result<Bytes>>,
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.piece.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(Ok(frame)) => self.piece = frame.into_data().unwrap_or_default(),
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
            }
        }
        let length = self.piece.len().min(buffer.remaining());
        buffer.put_slice(&self.piece[..length]);
        self.piece.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.output.poll_reserve(cx)).map_err(gone)?;
        let length = bytes.len().min(64 * 1024);
        self.output
            .send_item(Ok(Bytes::copy_from_slice(&bytes[..length])))
            .map_err(gone)?;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.output.close();
        Poll::Ready(Ok(()))
    }
}

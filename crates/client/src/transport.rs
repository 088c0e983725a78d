//! How one request gets its answer: a connection of its own, HTTP/1.1, bounded in time.

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_proto::agent::REQUEST_ID_HEADER;
use banger_proto::api::{IDEMPOTENCY_HEADER, LAST_EVENT_HEADER, UPGRADE_TOKEN};
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::id::RequestId;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::error::ClientError;
use crate::stream::ByteStream;
use crate::upload::{Upload, Waiting};

/// How long connecting to the socket may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long the daemon may take to answer. Long work is an operation and answers at once; an
/// upgrade waits for the guest agent. Also how long it may take nothing of an upload.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Longest JSON body that is read.
const BODY_MAX: usize = 64 << 20;

/// What a request carries: nothing, a whole JSON object, or an upload that comes by and by.
type Body = UnsyncBoxBody<Bytes, io::Error>;

/// One request, before it is sent.
#[derive(Debug)]
pub(crate) struct Call {
    method: Method,
    path: String,
    body: Option<Bytes>,
    idempotency_key: Option<String>,
    last_event: Option<String>,
}

impl Call {
    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    pub(crate) fn post(path: impl Into<String>) -> Self {
        Self::new(Method::POST, path)
    }

    pub(crate) fn put(path: impl Into<String>) -> Self {
        Self::new(Method::PUT, path)
    }

    pub(crate) fn patch(path: impl Into<String>) -> Self {
        Self::new(Method::PATCH, path)
    }

    pub(crate) fn delete(path: impl Into<String>) -> Self {
        Self::new(Method::DELETE, path)
    }

    fn new(method: Method, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            body: None,
            idempotency_key: None,
            last_event: None,
        }
    }

    pub(crate) fn json(mut self, body: &impl Serialize) -> Self {
        let json = serde_json::to_vec(body).expect("API objects have only string keys");
        self.body = Some(json.into());
        self
    }

    pub(crate) fn idempotency_key(mut self, key: Option<&str>) -> Self {
        self.idempotency_key = key.map(str::to_owned);
        self
    }

    pub(crate) fn last_event(mut self, id: Option<&str>) -> Self {
        self.last_event = id.map(str::to_owned);
        self
    }

    /// Method and path, for messages.
    pub(crate) fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    fn into_request(self, kind: Kind) -> Request<Body> {
        let mut request = Request::builder()
            .method(self.method)
            .uri(self.path)
            .header(header::HOST, "banger")
            .header(REQUEST_ID_HEADER, RequestId::new().as_str());
        if self.body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(key) = self.idempotency_key {
            request = request.header(IDEMPOTENCY_HEADER, key);
        }
        if let Some(id) = self.last_event {
            request = request.header(LAST_EVENT_HEADER, id);
        }
        let body = match kind {
            Kind::Plain => whole_body(self.body),
            Kind::Upgrade => {
                request = request
                    .header(header::CONNECTION, "upgrade")
                    .header(header::UPGRADE, UPGRADE_TOKEN);
                whole_body(self.body)
            }
            Kind::Upload(upload) => {
                request = request.header(header::CONTENT_TYPE, "application/x-tar");
                upload.boxed_unsync()
            }
        };
        request
            .body(body)
            .expect("paths are percent-encoded and headers are ASCII")
    }
}

fn whole_body(bytes: Option<Bytes>) -> Body {
    Full::new(bytes.unwrap_or_default())
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

/// How a request is sent.
#[derive(Debug)]
enum Kind {
    /// With its JSON, or nothing.
    Plain,
    /// Asking for a stream of bytes.
    Upgrade,
    /// With a body that comes by and by.
    Upload(Upload),
}

/// Where requests go.
#[derive(Clone, Debug)]
pub(crate) struct Transport {
    socket: PathBuf,
}

impl Transport {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Sends the call and reads the answer's JSON.
    pub(crate) async fn json<T: DeserializeOwned>(&self, call: Call) -> Result<T, ClientError> {
        let request = call.name();
        let body = self.whole(call).await?;
        serde_json::from_slice(&body).map_err(|source| ClientError::Shape { request, source })
    }

    /// Sends the call; whatever the answer's body says does not matter.
    pub(crate) async fn done(&self, call: Call) -> Result<(), ClientError> {
        self.whole(call).await.map(drop)
    }

    /// Sends the call and gives the answer's text.
    pub(crate) async fn text(&self, call: Call) -> Result<String, ClientError> {
        let body = self.whole(call).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// Sends the call with a body that comes by and by. It may take as long as it likes, as
    /// long as the daemon goes on taking it.
    pub(crate) async fn upload(&self, call: Call, upload: Upload) -> Result<(), ClientError> {
        self.upload_whole(call, upload).await.map(drop)
    }

    /// As [`Transport::upload`], for an answer with a JSON body.
    pub(crate) async fn upload_for<T: DeserializeOwned>(
        &self,
        call: Call,
        upload: Upload,
    ) -> Result<T, ClientError> {
        let request = call.name();
        let body = self.upload_whole(call, upload).await?;
        serde_json::from_slice(&body).map_err(|source| ClientError::Shape { request, source })
    }

    async fn upload_whole(&self, call: Call, upload: Upload) -> Result<Bytes, ClientError> {
        let request = call.name();
        let waiting = upload.waiting();
        let sending = async {
            let answer = self.send(call, Kind::Upload(upload)).await?;
            read_body(&request, answer.into_body()).await
        };
        tokio::select! {
            result = sending => result,
            () = stalled(&waiting) => Err(ClientError::Timeout {
                request: request.clone(),
                limit: ANSWER_LIMIT,
            }),
        }
    }

    /// Sends the call and gives the answer's body, which may go on for as long as it likes.
    pub(crate) async fn body(&self, call: Call) -> Result<Incoming, ClientError> {
        let request = call.name();
        let answer = within(ANSWER_LIMIT, &request, self.send(call, Kind::Plain)).await?;
        Ok(answer.into_body())
    }

    /// Sends the call and turns the connection into a stream of bytes.
    pub(crate) async fn upgrade(&self, call: Call) -> Result<ByteStream, ClientError> {
        let request = call.name();
        within(ANSWER_LIMIT, &request, async {
            let answer = self.send(call, Kind::Upgrade).await?;
            if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
                return Err(ClientError::Status {
                    request: request.clone(),
                    status: answer.status().as_u16(),
                });
            }
            let upgraded =
                hyper::upgrade::on(answer)
                    .await
                    .map_err(|source| ClientError::Transport {
                        request: request.clone(),
                        source,
                    })?;
            let parts = upgraded
                .downcast::<TokioIo<UnixStream>>()
                .expect("every connection is made by `send`, over a Unix socket");
            Ok(ByteStream::new(parts.io.into_inner(), parts.read_buf))
        })
        .await
    }

    async fn whole(&self, call: Call) -> Result<Bytes, ClientError> {
        let request = call.name();
        within(ANSWER_LIMIT, &request, async {
            let answer = self.send(call, Kind::Plain).await?;
            read_body(&request, answer.into_body()).await
        })
        .await
    }

    /// Gives the answer's head if it is no error.
    async fn send(&self, call: Call, kind: Kind) -> Result<Response<Incoming>, ClientError> {
        let request = call.name();
        let stream = self.connect().await?;
        let transport = |source| ClientError::Transport {
            request: request.clone(),
            source,
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(transport)?;
        // It ends when the answer's body, or the stream that it becomes, is dropped. What goes
        // wrong with it is seen by whoever reads that.
        tokio::spawn(connection.with_upgrades());
        let answer = sender
            .send_request(call.into_request(kind))
            .await
            .map_err(transport)?;
        let status = answer.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(answer);
        }
        let body = read_body(&request, answer.into_body()).await?;
        Err(match serde_json::from_slice::<ApiError>(&body) {
            Ok(error) => ClientError::Api(error),
            Err(_) => ClientError::Status {
                request,
                status: status.as_u16(),
            },
        })
    }

    async fn connect(&self) -> Result<UnixStream, ClientError> {
        let connecting = async {
            UnixStream::connect(&self.socket)
                .await
                .map_err(|source| ClientError::Connect {
                    socket: self.socket.clone(),
                    source,
                })
        };
        let stream = within(CONNECT_LIMIT, "connect", connecting).await?;
        self.refuse_strangers(&stream)?;
        Ok(stream)
    }

    /// Another user may have been first to make a socket in a shared place such as `/tmp`, to
    /// be told what is meant for the daemon.
    fn refuse_strangers(&self, stream: &UnixStream) -> Result<(), ClientError> {
        let peer = stream.peer_cred().map_err(|source| ClientError::Connect {
            socket: self.socket.clone(),
            source,
        })?;
        // SAFETY: geteuid has no arguments and cannot fail.
        let own = unsafe { libc::geteuid() };
        match peer.uid() == own || peer.uid() == 0 {
            true => Ok(()),
            false => Err(ClientError::Stranger {
                socket: self.socket.clone(),
                uid: peer.uid(),
            }),
        }
    }
}

/// Waits until the daemon has taken nothing of an upload for [`ANSWER_LIMIT`], although there
/// was something to take.
async fn stalled(waiting: &Waiting) {
    loop {
        let before = waiting.taken();
        tokio::time::sleep(ANSWER_LIMIT).await;
        if waiting.taken() == before && !waiting.for_source() {
            return;
        }
    }
}

async fn read_body(request: &str, body: Incoming) -> Result<Bytes, ClientError> {
    let whole = Limited::new(body, BODY_MAX).collect().await;
    whole
        .map(|body| body.to_bytes())
        .map_err(|error| match error.downcast::<hyper::Error>() {
            Ok(source) => ClientError::Transport {
                request: request.to_owned(),
                source: *source,
            },
            Err(too_long) => ClientError::Api(
                ApiError::new(
                    ErrorKind::Unavailable,
                    format!("could not read the daemon's answer to `{request}`"),
                )
                .caused_by(&*too_long),
            ),
        })
}

async fn within<T>(
    limit: Duration,
    request: &str,
    work: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    match timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(ClientError::Timeout {
            request: request.to_owned(),
            limit,
        }),
    }
}

/// A path of the API with `segment` in it, whatever characters that has (RFC 3986, 2.1).
pub(crate) fn path(before: &str, segment: &str, after: &str) -> String {
    let mut path = before.to_owned();
    for byte in segment.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' => {
                path.push(char::from(byte));
            }
            // A segment of dots only would be taken for a directory.
            b'.' if segment.bytes().any(|byte| byte != b'.') => path.push('.'),
            byte => path.push_str(&format!("%{byte:02X}")),
        }
    }
    path.push_str(after);
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ordinary_names_stay_as_they_are() {
        assert_eq!(
            path("/v1/vms/", "calm-otter", "/exec"),
            "/v1/vms/calm-otter/exec"
        );
        assert_eq!(
            path("/v1/images/", "generic-6.12", ""),
            "/v1/images/generic-6.12"
        );
    }

    proptest! {
        #[test]
        fn no_name_leaves_its_segment(name in "\\PC{0,40}") {
            let path = path("/v1/vms/", &name, "");
            prop_assert!(path.parse::<http::Uri>().is_ok());
            let segment = path.strip_prefix("/v1/vms/").unwrap();
            prop_assert!(!segment.contains(['/', '?', '#', ' ']));
            prop_assert!(segment != "." && segment != "..");
        }
    }
}

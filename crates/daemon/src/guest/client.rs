//! Typed requests to a guest agent: the table of [`banger_proto::agent`].

use std::io;
use std::sync::Arc;
use std::time::Duration;

use banger_proto::agent::{
    AgentError, Clock, Configure, FILE_KIND_HEADER, Grow, Health, Listener, REQUEST_ID_HEADER,
    Shutdown, Stats,
};
use banger_proto::id::RequestId;
use bytes::Bytes;
use futures_util::stream::{BoxStream, Stream, StreamExt, TryStreamExt};
use http::{HeaderValue, Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, BodyStream, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::TokioExecutor;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::sync::watch;
use tokio::time::timeout;

use super::{GuestStream, RequestError, WatchedPorts};

/// How long the agent may take to answer a request that is not work in itself.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long the agent may take to grow a file system. Most of it goes by without hardware
/// virtualisation, in the emulated guest.
const GROW_LIMIT: Duration = Duration::from_secs(120);
/// Longest JSON answer that is read.
const JSON_LIMIT: usize = 4 * 1024 * 1024;

/// The body of a request.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A tree of files as a tar stream.
pub type FileStream = BoxStream<'static, io::Result<Bytes>>;

/// A link to a guest agent. Clones share it; it ends with the last of them and of their
/// streams.
#[derive(Clone, Debug)]
pub struct Guest {
    requests: http2::SendRequest<Body>,
    closed: watch::Receiver<Option<Arc<str>>>,
    version: u32,
    request_id: Option<HeaderValue>,
}

impl Guest {
    /// Starts to serve the connection.
    pub(super) fn start<T>(
        requests: http2::SendRequest<Body>,
        connection: http2::Connection<hyper_util::rt::TokioIo<BufReader<T>>, Body, TokioExecutor>,
        version: u32,
    ) -> Self
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (tell, closed) = watch::channel(None);
        tokio::spawn(async move {
            let why: Arc<str> = match connection.await {
                Ok(()) => "the agent closed the link".into(),
                Err(error) => error.to_string().into(),
            };
            tell.send_replace(Some(why));
        });
        Self {
            requests,
            closed,
            version,
            request_id: None,
        }
    }

    /// The protocol version that both ends speak.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The same link for requests that serve the request `id`; the agent logs it.
    #[must_use]
    pub fn for_request(&self, id: &RequestId) -> Self {
        Self {
            request_id: HeaderValue::from_str(id.as_str()).ok(),
            ..self.clone()
        }
    }

    /// The same for work that a request may have begun.
    #[must_use]
    pub fn for_work_of(&self, id: Option<&RequestId>) -> Self {
        id.map_or_else(|| self.clone(), |id| self.for_request(id))
    }

    /// Resolves when the link is broken, with the reason in words. Cancel-safe.
    pub async fn closed(&self) -> Arc<str> {
        let mut closed = self.closed.clone();
        match closed.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_else(|| "no reason".into()),
            Err(_) => "the daemon is shutting down".into(),
        }
    }

    /// Whether the link is broken.
    pub fn is_closed(&self) -> bool {
        self.closed.borrow().is_some()
    }

    /// What the agent tells of itself.
    ///
    /// # Errors
    /// The agent does not answer as it should.
    pub async fn health(&self) -> Result<Health, RequestError> {
        self.ask(Method::GET, "/healthz", empty()).await
    }

    /// Tells the guest who it is.
    ///
    /// # Errors
    /// The agent does not answer as it should, or refuses.
    pub async fn configure(&self, configure: &Configure) -> Result<(), RequestError> {
        self.tell("/v1/configure", configure).await
    }

    /// Sets the guest's clock.
    ///
    /// # Errors
    /// The agent does not answer as it should, or refuses.
    pub async fn set_clock(&self, clock: Clock) -> Result<(), RequestError> {
        self.tell("/v1/clock", &clock).await
    }

    /// Asks the guest to go down; its machine ends some time after the answer.
    ///
    /// # Errors
    /// The agent does not answer as it should, or refuses.
    pub async fn shutdown(&self, shutdown: Shutdown) -> Result<(), RequestError> {
        self.tell("/v1/shutdown", &shutdown).await
    }

    /// What the guest uses at the moment.
    ///
    /// # Errors
    /// The agent does not answer as it should.
    pub async fn stats(&self) -> Result<Stats, RequestError> {
        self.ask(Method::GET, "/v1/stats", empty()).await
    }

    /// Opens a stream of [`banger_proto::frame`] frames for one command. Whatever the agent
    /// says against it comes as an error of the first read.
    pub fn exec(&self) -> GuestStream {
        let (sender, body) = GuestStream::request_body();
        let request = self.request(Method::POST, "/v1/exec", body);
        // The agent answers when it has read the first frame, which the caller has yet to
        // write.
        GuestStream::pending(sender, send(self.requests.clone(), request))
    }

    /// Opens a connection to the agent's SSH server.
    ///
    /// # Errors
    /// The agent does not answer as it should, or refuses.
    pub async fn ssh(&self) -> Result<GuestStream, RequestError> {
        self.open("/v1/ssh").await
    }

    /// Opens a TCP connection from inside the guest to `address`, such as `127.0.0.1:80`.
    ///
    /// # Errors
    /// The agent does not answer as it should, or nothing listens there.
    pub async fn tcp(&self, address: &str) -> Result<GuestStream, RequestError> {
        self.open(&format!("/v1/tcp?addr={}", encoded(address)))
            .await
    }

    /// Opens an exchange of datagrams, framed as [`banger_proto::datagram`] says, between a
    /// socket of its own in the guest and `address`, such as `127.0.0.1:53`.
    ///
    /// # Errors
    /// The agent does not answer as it should, or nothing can be sent there.
    pub async fn udp(&self, address: &str) -> Result<GuestStream, RequestError> {
        self.open(&format!("/v1/udp?addr={}", encoded(address)))
            .await
    }

    /// The guest's listening sockets, with the processes that have them.
    ///
    /// # Errors
    /// The agent does not answer as it should; one of an older version does not know of this.
    pub async fn ports(&self) -> Result<Vec<Listener>, RequestError> {
        self.ask(Method::GET, "/v1/ports", empty()).await
    }

    /// The guest's listening TCP sockets, now and whenever they change.
    ///
    /// # Errors
    /// As [`Self::ports`].
    pub async fn watch_ports(&self) -> Result<WatchedPorts, RequestError> {
        let request = self.request(Method::GET, "/v1/ports/watch", empty());
        let response = self.answered(request).await?;
        Ok(WatchedPorts::new(data(response.into_body()).boxed()))
    }

    /// Has the guest use all of a disk that has become larger.
    ///
    /// # Errors
    /// The agent does not answer as it should, or the disk's room is not to be had.
    pub async fn grow(&self, grow: Grow) -> Result<(), RequestError> {
        let json = serde_json::to_vec(&grow).expect("protocol types have only string keys");
        let request = self.request(Method::POST, "/v1/grow", full(json));
        within(GROW_LIMIT, send(self.requests.clone(), request))
            .await
            .map(|_| ())
    }

    /// The newest part of the agent's own log.
    ///
    /// # Errors
    /// The agent does not answer as it should; one of an older version does not know of this.
    pub async fn log(&self) -> Result<Bytes, RequestError> {
        let request = self.request(Method::GET, "/v1/log", empty());
        let response = self.answered(request).await?;
        within(ANSWER_LIMIT, collected(response)).await
    }

    /// Reads a file or a tree in the guest; returns with it what is there, in the words of
    /// [`banger_proto::agent::FILE_KIND_HEADER`].
    ///
    /// # Errors
    /// The agent does not answer as it should, or there is nothing at `path`.
    pub async fn read_files(
        &self,
        path: &str,
    ) -> Result<(Option<String>, FileStream), RequestError> {
        let uri = format!("/v1/files?path={}", encoded(path));
        let response = self
            .answered(self.request(Method::GET, &uri, empty()))
            .await?;
        let kind = response.headers().get(FILE_KIND_HEADER);
        let kind = kind.and_then(|kind| kind.to_str().ok()).map(str::to_owned);
        Ok((kind, data(response.into_body()).boxed()))
    }

    /// Reads the guest's whole system.
    ///
    /// # Errors
    /// The agent does not answer as it should; one of an older version does not know of this.
    pub async fn read_system(&self) -> Result<FileStream, RequestError> {
        let request = self.request(Method::GET, "/v1/system", empty());
        let response = self.answered(request).await?;
        Ok(data(response.into_body()).boxed())
    }

    /// Unpacks a tar stream below `path` in the guest; returns when all is there. An error
    /// in `files` calls it off.
    ///
    /// # Errors
    /// The agent does not answer as it should, or cannot write the files.
    pub async fn write_files(
        &self,
        path: &str,
        files: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<(), RequestError> {
        let uri = format!("/v1/files?path={}", encoded(path));
        let body = StreamBody::new(files.map_ok(Frame::data)).boxed_unsync();
        // As long as it takes: the caller's stream sets the pace.
        send(self.requests.clone(), self.request(Method::PUT, &uri, body))
            .await
            .map(|_| ())
    }

    async fn open(&self, uri: &str) -> Result<GuestStream, RequestError> {
        let (sender, body) = GuestStream::request_body();
        let response = self.answered(self.request(Method::POST, uri, body)).await?;
        Ok(GuestStream::open(sender, response.into_body()))
    }

    async fn tell(&self, uri: &str, value: &impl Serialize) -> Result<(), RequestError> {
        let json = serde_json::to_vec(value).expect("protocol types have only string keys");
        let request = self.request(Method::POST, uri, full(json));
        self.answered(request).await.map(|_| ())
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        uri: &str,
        body: Body,
    ) -> Result<T, RequestError> {
        let response = self.answered(self.request(method, uri, body)).await?;
        let bytes = within(ANSWER_LIMIT, collected(response)).await?;
        serde_json::from_slice(&bytes).map_err(|error| RequestError::Malformed(error.into()))
    }

    async fn answered(&self, request: Request<Body>) -> Result<Response<Incoming>, RequestError> {
        within(ANSWER_LIMIT, send(self.requests.clone(), request)).await
    }

    fn request(&self, method: Method, uri: &str, body: Body) -> Request<Body> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = format!("http://agent{uri}")
            .parse()
            .expect("paths are our own and values are percent-encoded");
        if let Some(id) = &self.request_id {
            request.headers_mut().insert(REQUEST_ID_HEADER, id.clone());
        }
        request
    }
}

/// Sends a request at once; what is returned awaits the answer. One that is not a success is
/// an error.
fn send(
    mut requests: http2::SendRequest<Body>,
    request: Request<Body>,
) -> impl Future<Output = Result<Response<Incoming>, RequestError>> + Send + 'static {
    let response = requests.send_request(request);
    async move { successful(response.await.map_err(RequestError::Broken)?).await }
}

async fn successful(response: Response<Incoming>) -> Result<Response<Incoming>, RequestError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let bytes = within(ANSWER_LIMIT, collected(response)).await?;
    let message = match serde_json::from_slice::<AgentError>(&bytes) {
        Ok(error) => error.message,
        Err(_) => status.to_string(),
    };
    Err(RequestError::Refused {
        status: status.as_u16(),
        message,
    })
}

async fn collected(response: Response<Incoming>) -> Result<Bytes, RequestError> {
    match Limited::new(response.into_body(), JSON_LIMIT)
        .collect()
        .await
    {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => Err(match error.downcast::<hyper::Error>() {
            Ok(error) => RequestError::Broken(*error),
            Err(error) => RequestError::Malformed(error),
        }),
    }
}

async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, RequestError>>,
) -> Result<T, RequestError> {
    timeout(limit, answer).await.unwrap_or_else(|_| {
        Err(RequestError::Timeout {
            seconds: limit.as_secs(),
        })
    })
}

/// The bytes of a response.
pub(super) fn data(
    body: Incoming,
) -> impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static {
    BodyStream::new(body).filter_map(|frame| {
        std::future::ready(match frame {
            Ok(frame) => frame.into_data().ok().map(Ok),
            Err(error) => Some(Err(RequestError::Broken(error).into())),
        })
    })
}

fn empty() -> Body {
    full(Vec::new())
}

fn full(bytes: Vec<u8>) -> Body {
    Full::new(Bytes::from(bytes))
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A value in a query: all but RFC 3986's unreserved characters are percent-encoded.
fn encoded(value: &str) -> String {
    let mut encoded = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_path_fits_into_a_query() {
        assert_eq!(encoded("/root/a b&c=ä%"), "%2Froot%2Fa%20b%26c%3D%C3%A4%25");
    }
}

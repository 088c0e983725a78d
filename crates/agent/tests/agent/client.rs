//! A small daemon's end of the agent link.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use banger_proto::agent::{Configure, ExecRefused, ExecRequest, Health};
use banger_proto::exit::ExitStatus;
use banger_proto::frame::Frame;
use banger_proto::hello::{self, Kind, MAX_FRAME_SIZE, Message, RESYNC_LEN, Scanner};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Everything that a test awaits ends within this.
pub const LIMIT: Duration = Duration::from_secs(30);

/// A connection after the handshake.
#[derive(Clone)]
pub struct Client {
    requests: SendRequest<Body>,
    _connection: Arc<JoinHandle<()>>,
    pub version: u32,
}

/// A request body that may be fed bit by bit.
pub type Body = http_body_util::combinators::BoxBody<Bytes, std::convert::Infallible>;

impl Client {
    pub async fn connect(path: &Path) -> Self {
        Self::handshake(UnixStream::connect(path).await.unwrap()).await
    }

    pub async fn handshake<S>(mut stream: S) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let nonce = hello::nonce();
        send_hello(&mut stream, nonce).await;
        let version = await_ack(&mut stream, nonce).await;
        Self::speak_http(stream, version).await
    }

    pub async fn speak_http<S>(stream: S, version: u32) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (requests, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(4 * 1024 * 1024)
            .initial_connection_window_size(16 * 1024 * 1024)
            .max_frame_size(MAX_FRAME_SIZE)
            .handshake(TokioIo::new(stream))
            .await
            .unwrap();
        let connection = tokio::spawn(async move {
            if let Err(error) = connection.await {
                eprintln!("client connection: {error}");
            }
        });
        Self {
            requests,
            _connection: Arc::new(connection),
            version,
        }
    }

    pub async fn send(&mut self, method: &str, path: &str, body: Body) -> Response<Incoming> {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://agent{path}"))
            .header("x-request-id", "test")
            .body(body)
            .unwrap();
        self.requests.ready().await.unwrap();
        tokio::time::timeout(LIMIT, self.requests.send_request(request))
            .await
            .expect("no answer in time")
            .unwrap()
    }

    pub async fn call(
        &mut self,
        method: &str,
        path: &str,
        body: impl Into<Bytes>,
    ) -> (StatusCode, Bytes) {
        let response = self.send(method, path, full(body)).await;
        let status = response.status();
        (
            status,
            response.into_body().collect().await.unwrap().to_bytes(),
        )
    }

    pub async fn health(&mut self) -> Health {
        let (status, body) = self.call("GET", "/healthz", "").await;
        assert_eq!(status, StatusCode::OK);
        serde_json::from_slice(&body).unwrap()
    }

    pub async fn configure(&mut self, configure: &Configure) {
        let body = serde_json::to_vec(configure).unwrap();
        let (status, body) = self.call("POST", "/v1/configure", body).await;
        assert_eq!(status, StatusCode::NO_CONTENT, "{body:?}");
    }

    /// A request whose body is fed bit by bit, and its response.
    pub async fn stream(&mut self, path: &str) -> (mpsc::Sender<Bytes>, Response<Incoming>) {
        let (input, mut pieces) = mpsc::channel::<Bytes>(4);
        let body = polled(move |cx| pieces.poll_recv(cx));
        (input, self.send("POST", path, body).await)
    }

    pub async fn exec(&mut self, request: ExecRequest) -> Exec {
        let (input, mut pieces) = mpsc::channel::<Bytes>(4);
        input
            .send(Frame::Start(Box::new(request)).to_bytes())
            .await
            .unwrap();
        let stream = polled(move |cx| pieces.poll_recv(cx));
        let response = self.send("POST", "/v1/exec", stream).await;
        assert_eq!(response.status(), StatusCode::OK);
        Exec {
            input: Some(input),
            body: response.into_body(),
            buffer: BytesMut::new(),
        }
    }

    /// Runs a command with this input to its end.
    pub async fn run(&mut self, request: ExecRequest, input: &[u8]) -> Output {
        self.exec(request).await.finish(input).await
    }

    pub async fn sh(&mut self, script: &str) -> Output {
        self.run(command(&["sh", "-c", script]), b"").await
    }
}

/// A body out of a poll function: all that these tests need of a stream.
fn polled(
    poll: impl FnMut(&mut std::task::Context<'_>) -> std::task::Poll<Option<Bytes>> + Send + 'static,
) -> Body {
    struct Polled<F>(std::sync::Mutex<F>);
    impl<F> hyper::body::Body for Polled<F>
    where
        F: FnMut(&mut std::task::Context<'_>) -> std::task::Poll<Option<Bytes>> + Unpin,
    {
        type Data = Bytes;
        type Error = std::convert::Infallible;
        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
            let poll = self.get_mut().0.get_mut().unwrap();
            poll(cx).map(|bytes| bytes.map(|bytes| Ok(hyper::body::Frame::data(bytes))))
        }
    }
    Polled(std::sync::Mutex::new(Box::new(poll))).boxed()
}

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed()
}

pub async fn send_hello(stream: &mut (impl AsyncWrite + Unpin), nonce: hello::Nonce) {
    let message = Message {
        kind: Kind::Hello,
        nonce,
        version: hello::PROTOCOL_VERSION,
    };
    stream.write_all(&vec![0; RESYNC_LEN]).await.unwrap();
    stream.write_all(&message.encode()).await.unwrap();
}

/// Skips what is left of earlier connections, up to the answer to this nonce.
pub async fn await_ack(stream: &mut (impl AsyncRead + Unpin), nonce: hello::Nonce) -> u32 {
    let mut scanner = Scanner::default();
    let scan = async {
        loop {
            if let Some(message) = scanner.push(stream.read_u8().await.unwrap())
                && message.kind == Kind::Ack
                && message.nonce == nonce
            {
                return message.version;
            }
        }
    };
    tokio::time::timeout(LIMIT, scan)
        .await
        .expect("no acknowledgement in time")
}

/// A running command.
pub struct Exec {
    pub input: Option<mpsc::Sender<Bytes>>,
    pub body: Incoming,
    buffer: BytesMut,
}

/// What a command left behind.
#[derive(Debug, Default)]
pub struct Output {
    pub pid: u32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub status: Option<ExitStatus>,
    pub refused: Option<ExecRefused>,
}

impl Output {
    #[track_caller]
    pub fn text(&self) -> &str {
        assert_eq!(self.status, Some(ExitStatus::Code(0)), "{self:?}");
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

impl Exec {
    pub async fn send(&self, frame: Frame) {
        self.input
            .as_ref()
            .unwrap()
            .send(frame.to_bytes())
            .await
            .unwrap();
    }

    /// The agent's next frame; `None` when the stream has ended or was reset.
    pub async fn next(&mut self) -> Option<Frame> {
        let next = async {
            loop {
                if let Some(frame) = Frame::decode(&mut self.buffer).unwrap() {
                    return Some(frame);
                }
                let data = self.body.frame().await?.ok()?.into_data().unwrap();
                self.buffer.extend_from_slice(&data);
            }
        };
        tokio::time::timeout(LIMIT, next)
            .await
            .expect("no frame in time")
    }

    /// Reads output until it contains `text`.
    pub async fn until(&mut self, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            match self.next().await {
                Some(Frame::Stdout(bytes)) => seen += &String::from_utf8_lossy(&bytes),
                Some(Frame::Started(_) | Frame::Taken(_)) => {}
                other => panic!("{other:?} instead of `{text}` after {seen:?}"),
            }
        }
        seen
    }

    pub async fn finish(mut self, input: &[u8]) -> Output {
        let mut output = Output::default();
        let sender = self.input.take().unwrap();
        let bytes = Bytes::copy_from_slice(input);
        let feed = tokio::spawn(async move {
            for piece in bytes.chunks(60_000) {
                let piece = Frame::Stdin(Bytes::copy_from_slice(piece)).to_bytes();
                if sender.send(piece).await.is_err() {
                    return;
                }
            }
        });
        while let Some(frame) = self.next().await {
            match frame {
                Frame::Started(started) => output.pid = started.pid,
                Frame::Stdout(bytes) => output.stdout.extend_from_slice(&bytes),
                Frame::Stderr(bytes) => output.stderr.extend_from_slice(&bytes),
                Frame::Exit(status) => output.status = Some(status),
                Frame::Refused(refused) => output.refused = Some(refused),
                other => panic!("the agent sent {other:?}"),
            }
        }
        feed.abort();
        output
    }
}

pub fn command(arguments: &[&str]) -> ExecRequest {
    ExecRequest {
        command: arguments
            .iter()
            .map(|&argument| argument.to_owned())
            .collect(),
        stdin: true,
        ..ExecRequest::default()
    }
}

//! The client against an HTTP server on a real Unix socket.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use banger_client::{Client, ClientError};
use banger_proto::api::{
    CreateVm, LogKind, Operation, OperationEvent, OperationKind, OperationState, StageTime,
};
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::id::OperationId;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(10);

/// What the server was asked: method, path and query, the headers of interest, the body.
#[derive(Clone, Debug)]
struct Seen {
    line: String,
    request_id: Option<String>,
    idempotency_key: Option<String>,
    body: Bytes,
}

struct Server {
    _directory: tempfile::TempDir,
    socket: PathBuf,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// Gets the name of each upgraded stream that ended.
    ended: mpsc::UnboundedReceiver<String>,
}

impl Server {
    /// Answers each request with what `answer` says; 101 makes an echoing stream.
    fn start(answer: fn(&str) -> (u16, String)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("d.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (ends, ended) = mpsc::unbounded_channel();
        let log = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let log = Arc::clone(&log);
                let ends = ends.clone();
                let service = service_fn(move |request| {
                    serve(request, answer, Arc::clone(&log), ends.clone())
                });
                tokio::spawn(
                    http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades(),
                );
            }
        });
        Self {
            _directory: directory,
            socket,
            seen,
            ended,
        }
    }

    fn last(&self) -> Seen {
        self.seen.lock().unwrap().last().unwrap().clone()
    }
}

async fn serve(
    mut request: Request<Incoming>,
    answer: fn(&str) -> (u16, String),
    log: Arc<Mutex<Vec<Seen>>>,
    ends: mpsc::UnboundedSender<String>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let line = format!("{} {}", request.method(), request.uri());
    let header = |name: &str| {
        request
            .headers()
            .get(name)
            .map(|value| value.to_str().unwrap().to_owned())
    };
    let (request_id, idempotency_key) = (header("x-request-id"), header("idempotency-key"));
    let (status, text) = match line.as_str() {
        "GET /v1/version" => (200, r#"{"version":"0.0.1","api":1}"#.to_owned()),
        line => answer(line),
    };
    let mut response = Response::builder().status(status);
    if status == 101 {
        response = response
            .header("connection", "upgrade")
            .header("upgrade", "banger-stream");
        let upgrade = hyper::upgrade::on(&mut request);
        let line = line.clone();
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgrade.await.unwrap());
            stream.write_all(text.as_bytes()).await.unwrap();
            let (mut reader, mut writer) = tokio::io::split(stream);
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
            let _ = writer.shutdown().await;
            let _ = ends.send(line);
        });
        log.lock().unwrap().push(Seen {
            line: String::new(),
            request_id,
            idempotency_key,
            body: Bytes::new(),
        });
        return Ok(response.body(Full::default()).unwrap());
    }
    let body = request.into_body().collect().await.unwrap().to_bytes();
    log.lock().unwrap().push(Seen {
        line,
        request_id,
        idempotency_key,
        body,
    });
    Ok(response.body(Full::from(text)).unwrap())
}

fn operation(state: OperationState) -> Operation {
    Operation {
        id: "0123456789abcdef0123456789abcdef".parse().unwrap(),
        kind: OperationKind::CreateVm,
        state,
        node: "here".into(),
        vm: None,
        vm_name: Some("calm-otter".parse().unwrap()),
        error: None,
        created_at: "2026-01-01T00:00:00Z".into(),
        stages: Vec::new(),
    }
}

#[tokio::test]
async fn a_create_carries_its_body_key_and_request_id() {
    let server = Server::start(|_| {
        (
            202,
            serde_json::to_string(&operation(OperationState::Running)).unwrap(),
        )
    });
    let client = Client::connect(&server.socket).await.unwrap();
    assert!(client.version_notice().unwrap().contains("0.0.1"));
    let create = CreateVm {
        name: Some("calm-otter".parse().unwrap()),
        ..CreateVm::default()
    };
    let answer = client.create_vm(&create, Some("once")).await.unwrap();
    assert_eq!(answer, operation(OperationState::Running));
    let seen = server.last();
    assert_eq!(seen.line, "POST /v1/vms");
    assert_eq!(seen.idempotency_key.as_deref(), Some("once"));
    assert_eq!(seen.request_id.unwrap().len(), 32);
    assert_eq!(
        serde_json::from_slice::<CreateVm>(&seen.body).unwrap(),
        create
    );
}

#[tokio::test]
async fn an_error_body_passes_through() {
    let server = Server::start(|_| {
        let error = ApiError::new(ErrorKind::NotFound, "no VM `a/b`").with_hint("`banger vm list`");
        (404, serde_json::to_string(&error).unwrap())
    });
    let client = Client::connect(&server.socket).await.unwrap();
    let error = client.vm("a/b").await.unwrap_err();
    let ClientError::Api(error) = error else {
        panic!("{error:?}");
    };
    assert_eq!(error.hint.as_deref(), Some("`banger vm list`"));
    assert_eq!(server.last().line, "GET /v1/vms/a%2Fb");
}

#[tokio::test]
async fn an_answer_that_is_not_ours_is_an_error_and_not_a_panic() {
    let server = Server::start(|line| match line {
        "GET /v1/vms" => (200, "<html>".into()),
        _ => (503, "busy".into()),
    });
    let client = Client::connect(&server.socket).await.unwrap();
    assert!(matches!(client.vms().await, Err(ClientError::Shape { .. })));
    assert!(matches!(
        client.images().await,
        Err(ClientError::Status { status: 503, .. })
    ));
    assert!(matches!(
        client.exec("a").await,
        Err(ClientError::Status { status: 503, .. })
    ));
}

#[tokio::test]
async fn an_upgrade_streams_both_ways_and_ends_half_by_half() {
    let server = Server::start(|_| (101, "early ".into()));
    let client = Client::connect(&server.socket).await.unwrap();
    let (mut reader, mut writer) = client.exec("a").await.unwrap().into_split();
    let sent = vec![7u8; 3 << 20];
    let expected = sent.len() + "early ".len();
    let sending = tokio::spawn(async move {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    let mut read = Vec::new();
    timeout(LIMIT, reader.read_to_end(&mut read))
        .await
        .unwrap()
        .unwrap();
    sending.await.unwrap();
    assert_eq!(read.len(), expected);
    assert!(read.starts_with(b"early \x07"));
}

#[tokio::test]
async fn a_dropped_lease_is_seen_by_the_daemon() {
    let mut server = Server::start(|_| {
        (
            101,
            "{\"lease\":\"00000000000000000000000000000001\"}\n".into(),
        )
    });
    let client = Client::connect(&server.socket).await.unwrap();
    let lease = client.lease().await.unwrap();
    assert_eq!(lease.id().as_str(), "00000000000000000000000000000001");
    drop(lease);
    let ended = timeout(LIMIT, server.ended.recv()).await.unwrap();
    assert_eq!(ended.as_deref(), Some("POST /v1/leases"));
}

#[tokio::test]
async fn events_come_in_order_and_a_cut_stream_is_an_error() {
    fn events(with_end: bool) -> String {
        let mut events = vec![
            OperationEvent::Stage {
                stage: "disks".into(),
            },
            OperationEvent::StageDone(StageTime {
                stage: "disks".into(),
                begin_ms: 0.0,
                took_ms: 2.5,
            }),
        ];
        if with_end {
            events.push(OperationEvent::Done(Box::new(operation(
                OperationState::Succeeded,
            ))));
        }
        let data = |event| {
            format!(
                ": alive\n\ndata: {}\n\n",
                serde_json::to_string(event).unwrap()
            )
        };
        events.iter().map(data).collect()
    }
    let server = Server::start(|line| match line {
        "GET /v1/operations/0123456789abcdef0123456789abcdef/events" => (200, events(true)),
        _ => (200, events(false)),
    });
    let client = Client::connect(&server.socket).await.unwrap();
    let mut whole = client
        .events(&operation(OperationState::Running).id)
        .await
        .unwrap();
    assert!(
        matches!(whole.next().await.unwrap(), OperationEvent::Stage { stage } if stage == "disks")
    );
    assert_eq!(whole.end().await.unwrap().state, OperationState::Succeeded);
    let mut cut = client.events(&OperationId::new()).await.unwrap();
    assert!(matches!(cut.end().await, Err(ClientError::Ended { .. })));
}

#[tokio::test]
async fn a_log_is_read_to_its_end() {
    let server = Server::start(|_| (200, "booting\n".into()));
    let client = Client::connect(&server.socket).await.unwrap();
    let mut log = client.logs("a", LogKind::Console, true).await.unwrap();
    assert_eq!(log.next().await.unwrap().unwrap(), "booting\n");
    assert!(log.next().await.unwrap().is_none());
    assert_eq!(
        server.last().line,
        "GET /v1/vms/a/logs?log=console&follow=true"
    );
}

#[tokio::test]
async fn a_daemon_of_another_api_can_only_be_looked_at_and_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("d.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer =
                "HTTP/1.1 200 OK\r\ncontent-length: 29\r\n\r\n{\"version\":\"9.0.0\",\"api\":7  }";
            stream.write_all(answer.as_bytes()).await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
        }
    });
    let error = Client::connect(&socket).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "bangerd 9.0.0 speaks version 7 of the API, and this client version 1"
    );
    let client = Client::connect_to_any(&socket).await.unwrap();
    client.stop_daemon().await.unwrap();
}

#[tokio::test]
async fn a_socket_that_nobody_listens_on_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("d.sock");
    assert!(Client::connect(&socket).await.unwrap_err().nobody_listens());
    drop(UnixListener::bind(&socket).unwrap());
    assert!(Client::connect(&socket).await.unwrap_err().nobody_listens());
}

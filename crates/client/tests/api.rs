//! The client against an HTTP server on a real Unix socket.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use banger_client::{Client, ClientError};
use banger_proto::api::{
    CreateVm, Event, Happened, KillVm, LogKind, Operation, OperationEvent, OperationKind,
    OperationState, SetVm, StageTime,
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
    last_event: Option<String>,
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
    let last_event = header("last-event-id");
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
            last_event,
            body: Bytes::new(),
        });
        return Ok(response.body(Full::default()).unwrap());
    }
    let body = match request.into_body().collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => Bytes::from_static(b"cut short"),
    };
    log.lock().unwrap().push(Seen {
        line,
        request_id,
        idempotency_key,
        last_event,
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
        reason: None,
        error: None,
        created_at: "2026-01-01T00:00:00Z".into(),
        stages: Vec::new(),
        warnings: Vec::new(),
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
                failed: false,
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
async fn the_end_of_a_log_is_asked_for_by_its_lines() {
    let server = Server::start(|_| (200, "last\n".into()));
    let client = Client::connect(&server.socket).await.unwrap();
    let log = client.logs_tail("a", LogKind::Engine, false, 3);
    assert_eq!(log.await.unwrap().next().await.unwrap().unwrap(), "last\n");
    assert_eq!(
        server.last().line,
        "GET /v1/vms/a/logs?log=engine&follow=false&tail=3"
    );
}

#[tokio::test]
async fn every_order_to_a_vm_has_its_path_and_body() {
    let server = Server::start(|_| {
        (
            202,
            serde_json::to_string(&operation(OperationState::Running)).unwrap(),
        )
    });
    let client = Client::connect(&server.socket).await.unwrap();
    client.start_vm("a").await.unwrap();
    assert_eq!(server.last().line, "POST /v1/vms/a/start");
    client.stop_vm("a").await.unwrap();
    assert_eq!(server.last().line, "POST /v1/vms/a/stop");
    client.restart_vm("a").await.unwrap();
    assert_eq!(server.last().line, "POST /v1/vms/a/restart");
    client.pause_vm("a").await.unwrap();
    assert_eq!(server.last().line, "POST /v1/vms/a/pause");
    client.resume_vm("a").await.unwrap();
    assert_eq!(server.last().line, "POST /v1/vms/a/resume");
    client.delete_vm("a").await.unwrap();
    assert_eq!(server.last().line, "DELETE /v1/vms/a");
    let kill = KillVm { signal: Some(15) };
    client.kill_vm("a", &kill).await.unwrap();
    let seen = server.last();
    assert_eq!(
        (seen.line.as_str(), &seen.body[..]),
        ("POST /v1/vms/a/kill", &br#"{"signal":15}"#[..])
    );
    let change = SetVm {
        labels: [("team".to_owned(), None)].into(),
        ttl_s: Some(0),
        ..SetVm::default()
    };
    client.set_vm("a", &change).await.unwrap();
    let seen = server.last();
    assert_eq!(
        (seen.line.as_str(), &seen.body[..]),
        (
            "PATCH /v1/vms/a",
            &br#"{"labels":{"team":null},"ttl_s":0}"#[..]
        )
    );
}

#[tokio::test]
async fn stats_health_and_metrics_are_read() {
    const STATS: &str = r#"{"vm":"0123456789abcdef0123456789abcdef","vm_name":"a","node":"here",
        "state":"running","at_us":5,"host":{"pid":7,"cpu_us":9,"memory":4096},"guest":null,
        "disk_used":8192}"#;
    let server = Server::start(|line| match line {
        "GET /v1/vms/a/stats" => (200, STATS.into()),
        "GET /v1/stats" => (200, format!("[{STATS}]")),
        "GET /v1/vms/a/health" => (
            200,
            r#"{"vm":"0123456789abcdef0123456789abcdef","vm_name":"a","state":"running",
                "healthy":true,"round_trip_ms":0.4}"#
                .into(),
        ),
        "GET /metrics" => (200, "banger_up 1\n".into()),
        "GET /v1/operations" => (
            200,
            serde_json::to_string(&[operation(OperationState::Succeeded)]).unwrap(),
        ),
        _ => (404, String::new()),
    });
    let client = Client::connect(&server.socket).await.unwrap();
    let one = client.vm_stats("a").await.unwrap();
    assert_eq!(one.host.as_ref().unwrap().cpu_us, 9);
    assert_eq!(client.stats().await.unwrap(), [one]);
    let health = client.vm_health("a").await.unwrap();
    assert_eq!((health.healthy, health.round_trip_ms), (true, Some(0.4)));
    assert_eq!(client.metrics().await.unwrap(), "banger_up 1\n");
    let operations = client.operations().await.unwrap();
    assert_eq!(operations, [operation(OperationState::Succeeded)]);
}

#[tokio::test]
async fn files_go_both_ways_as_they_come() {
    let server = Server::start(|line| match line.starts_with("GET") {
        true => (200, "a tar stream".into()),
        false => (204, String::new()),
    });
    let client = Client::connect(&server.socket).await.unwrap();
    let mut files = client.files("a", "/etc/my file").await.unwrap();
    assert_eq!(files.next().await.unwrap().unwrap(), "a tar stream");
    assert_eq!(
        server.last().line,
        "GET /v1/vms/a/files?path=%2Fetc%2Fmy%20file"
    );
    let pieces = ["one ", "two"].map(|piece| Ok(Bytes::from(piece)));
    let pieces = futures_util::stream::iter(pieces);
    client.put_files("a", "/srv", pieces).await.unwrap();
    let seen = server.last();
    assert_eq!(
        (seen.line.as_str(), &seen.body[..]),
        ("PUT /v1/vms/a/files?path=%2Fsrv", &b"one two"[..])
    );
}

#[tokio::test]
async fn an_upload_whose_source_fails_is_no_whole_upload() {
    let server = Server::start(|_| (204, String::new()));
    let client = Client::connect(&server.socket).await.unwrap();
    let pieces = [
        Ok(Bytes::from("half")),
        Err(std::io::Error::other("the disk is gone")),
    ];
    let put = client.put_files("a", "/srv", futures_util::stream::iter(pieces));
    let error = timeout(LIMIT, put).await.unwrap().unwrap_err();
    assert!(matches!(error, ClientError::Transport { .. }), "{error:?}");
}

#[tokio::test]
async fn whoever_comes_back_to_the_events_says_what_it_has_seen() {
    let server = Server::start(|line| {
        match line {
        "GET /v1/events?follow=true" => (
            200,
            "id: 7-2\ndata: {\"id\":\"7-2\",\"at\":\"2026-01-01T00:00:00Z\",\"node\":\"here\",\"event\":\"missed\"}\n\n"
                .into(),
        ),
        _ => (200, String::new()),
    }
    });
    let client = Client::connect(&server.socket).await.unwrap();
    let mut events = client.daemon_events(true, Some("7-1")).await.unwrap();
    let missed = Event {
        id: "7-2".into(),
        at: "2026-01-01T00:00:00Z".into(),
        node: "here".into(),
        what: Happened::Missed,
    };
    assert_eq!(events.next().await.unwrap(), Some(missed));
    assert_eq!(events.next().await.unwrap(), None);
    assert_eq!(server.last().last_event.as_deref(), Some("7-1"));
    let mut none = client.daemon_events(false, None).await.unwrap();
    assert_eq!(none.next().await.unwrap(), None);
    assert_eq!(server.last().last_event, None);
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

//! Claims about the link.

use banger_proto::agent::Shutdown;
use banger_proto::hello;
use std::os::unix::fs::PermissionsExt;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use crate::client::{Client, await_ack, command, send_hello};
use crate::process::TestAgent;

#[tokio::test]
async fn the_agent_tells_who_it_is() {
    let agent = TestAgent::start().await;
    let mut client = agent.connect().await;
    let health = client.health().await;
    assert_eq!(health.version, banger_proto::VERSION);
    assert_eq!(health.protocol, hello::PROTOCOL_VERSION);
    assert_eq!(client.version, hello::PROTOCOL_VERSION);
    assert!(health.uptime_us > 0 && !health.kernel.is_empty());
}

#[tokio::test]
async fn a_frame_sent_by_halves_and_rubbish_do_not_keep_the_next_daemon_out() {
    let agent = TestAgent::start().await;
    let mut stream = UnixStream::connect(agent.socket()).await.unwrap();
    let nonce = hello::nonce();
    send_hello(&mut stream, nonce).await;
    await_ack(&mut stream, nonce).await;
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    // A DATA frame of 64 KiB of which half has come when the daemon dies; the next one
    // begins on the same stream of bytes, as on a virtio-serial port.
    stream
        .write_all(&[1, 0, 0, 0, 0, 0, 0, 0, 1])
        .await
        .unwrap();
    stream.write_all(&vec![b'x'; 32 * 1024]).await.unwrap();
    let mut client = Client::handshake(stream).await;
    client.health().await;
}

#[tokio::test]
async fn a_hello_that_is_repeated_is_answered_once() {
    let agent = TestAgent::start().await;
    let mut stream = UnixStream::connect(agent.socket()).await.unwrap();
    let nonce = hello::nonce();
    send_hello(&mut stream, nonce).await;
    send_hello(&mut stream, nonce).await;
    let version = await_ack(&mut stream, nonce).await;
    // A second answer would break the client's HTTP/2.
    let mut client = Client::speak_http(stream, version).await;
    client.health().await;
    assert_eq!(client.sh("echo on").await.text(), "on\n");
}

#[tokio::test]
async fn the_agent_tells_what_is_used() {
    let agent = TestAgent::start().await;
    let mut client = agent.connect().await;
    let (status, body) = client.call("GET", "/v1/stats", "").await;
    assert_eq!(status, hyper::StatusCode::OK);
    let stats: banger_proto::agent::Stats = serde_json::from_slice(&body).unwrap();
    assert!(stats.processes > 0 && stats.memory_total.is_some() && !stats.disks.is_empty());
}

#[tokio::test]
async fn the_next_daemon_takes_over() {
    let agent = TestAgent::start().await;
    let mut first = agent.connect().await;
    let mut exec = first
        .exec(command(&["sh", "-c", "echo ready; sleep 100"]))
        .await;
    exec.until("ready").await;
    let mut second = agent.connect().await;
    second.health().await;
    assert_eq!(
        exec.next().await,
        None,
        "the first connection's command goes on"
    );
}

#[tokio::test]
async fn a_shutdown_request_ends_the_process_and_what_it_started() {
    let mut agent = TestAgent::start().await;
    let mode = std::fs::metadata(agent.socket())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut client = agent.connect().await;
    let mut exec = client
        .exec(command(&["sh", "-c", "echo ready; exec sleep 100"]))
        .await;
    exec.until("ready").await;
    let body = serde_json::to_vec(&Shutdown { grace_ms: 1000 }).unwrap();
    let (status, _) = client.call("POST", "/v1/shutdown", body).await;
    assert_eq!(status, hyper::StatusCode::ACCEPTED);
    let ended = tokio::time::timeout(crate::client::LIMIT, agent.process.wait()).await;
    assert!(ended.expect("the agent goes on").unwrap().success());
    assert!(!agent.socket().exists());
}

#[tokio::test]
async fn nonsense_is_refused_and_the_connection_goes_on() {
    let agent = TestAgent::start().await;
    let mut client = agent.connect().await;
    for (method, path, body, status) in [
        ("GET", "/nope", "", 404),
        ("GET", "/v1/configure", "", 404),
        ("POST", "/v1/configure", "{", 400),
        (
            "POST",
            "/v1/configure",
            r#"{"ssh_host_key":"nonsense"}"#,
            400,
        ),
        ("POST", "/v1/ssh", "", 409),
        ("POST", "/v1/tcp?addr=nope", "", 400),
        ("POST", "/v1/tcp?addr=no.such.host:1", "", 400),
        ("GET", "/v1/files", "", 400),
        ("GET", "/v1/files?path=relative", "", 400),
        ("GET", "/v1/files?path=/no/such/file", "", 404),
        ("PUT", "/v1/files?path=/proc/nope", "", 404),
        ("POST", "/v1/exec", "", 400),
        ("POST", "/v1/exec", "\x7f nonsense", 400),
    ] {
        let (got, body) = client.call(method, path, body).await;
        assert_eq!(got, status, "{method} {path}: {body:?}");
        let error: banger_proto::agent::AgentError = serde_json::from_slice(&body).unwrap();
        assert!(!error.message.is_empty());
    }
    client.health().await;
}

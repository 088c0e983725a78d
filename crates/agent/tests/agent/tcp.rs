//! Claims about connections to ports in the guest.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::process::TestAgent;

/// Something that listens in the guest, and its port.
async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[tokio::test]
async fn bytes_go_to_a_port_and_back_until_either_side_ends() {
    let agent = TestAgent::start().await;
    let mut client = agent.connect().await;
    let (listener, port) = listener().await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut input = Vec::new();
        stream.read_to_end(&mut input).await.unwrap();
        stream.write_all(&input).await.unwrap();
        stream.write_all(b" and back").await.unwrap();
    });
    let (input, response) = client
        .stream(&format!("/v1/tcp?addr=localhost:{port}"))
        .await;
    assert_eq!(response.status(), StatusCode::OK);
    input.send(Bytes::from_static(b"there")).await.unwrap();
    drop(input);
    let output = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(output, "there and back");
    server.await.unwrap();
}

#[tokio::test]
async fn a_port_that_nobody_listens_on_is_a_bad_gateway() {
    let agent = TestAgent::start().await;
    let mut client = agent.connect().await;
    let (listener, port) = listener().await;
    drop(listener);
    let (status, body) = client
        .call("POST", &format!("/v1/tcp?addr=127.0.0.1:{port}"), "")
        .await;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    assert!(
        String::from_utf8_lossy(&body).contains("refused"),
        "{body:?}"
    );
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    let agent = TestAgent::start().await;
    let mut client = agent.connect().await;
    let (listener, port) = listener().await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"all I say").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut input = Vec::new();
        stream.read_to_end(&mut input).await.unwrap();
        input
    });
    let (input, response) = client
        .stream(&format!("/v1/tcp?addr=127.0.0.1:{port}"))
        .await;
    let output = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(output, "all I say");
    for _ in 0..100 {
        input.send(Bytes::from(vec![b'x'; 10_000])).await.unwrap();
    }
    drop(input);
    assert_eq!(server.await.unwrap().len(), 1_000_000);
}

#[tokio::test]
async fn a_connection_that_is_reset_is_no_end_of_output() {
    let agent = TestAgent::start().await;
    let mut client = agent.connect().await;
    let (listener, port) = listener().await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"half").await.unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).await.unwrap();
        stream.set_zero_linger().unwrap();
    });
    let (input, response) = client
        .stream(&format!("/v1/tcp?addr=127.0.0.1:{port}"))
        .await;
    input.send(Bytes::from_static(b"x")).await.unwrap();
    assert!(response.into_body().collect().await.is_err());
}

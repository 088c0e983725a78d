//! A conversation with Firecracker's API: HTTP/1.1 on a Unix socket, one request a connection.
//!
//! A dozen requests with small bodies need no HTTP library. What is written and read is what
//! `firecracker.yaml`, its published API description, says; errors carry a `fault_message`.

use std::io;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::socket::SocketOf;
use crate::{Activity, ControlError};

/// Largest answer that is read: the description of a machine has a few KiB.
const ANSWER_MAX: usize = 256 * 1024;
/// How much of an answer that makes no sense is told.
const EXCERPT: usize = 80;

/// The words of `InstanceInfo.state`. There is a third one, for a machine that was not started.
pub(super) const ACTIVITY: [(&str, Activity); 2] =
    [("Running", Activity::Running), ("Paused", Activity::Paused)];

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Request {
    /// What errors call it.
    pub name: &'static str,
    pub method: &'static str,
    pub path: String,
    pub body: Option<Value>,
}

/// A request that is always the same.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order {
    name: &'static str,
    method: &'static str,
    path: &'static str,
    /// The only field of the body, and its value.
    field: Option<(&'static str, &'static str)>,
}

impl Order {
    pub(super) const DESCRIBE: Self = Self {
        name: "describe",
        method: "GET",
        path: "/",
        field: None,
    };
    pub(super) const DESCRIBE_CONFIG: Self = Self {
        name: "describe",
        method: "GET",
        path: "/vm/config",
        field: None,
    };
    pub(super) const PAUSE: Self = Self {
        name: "pause",
        method: "PATCH",
        path: "/vm",
        field: Some(("state", "Paused")),
    };
    pub(super) const RESUME: Self = Self {
        name: "resume",
        method: "PATCH",
        path: "/vm",
        field: Some(("state", "Resumed")),
    };
    pub(super) const FLUSH_METRICS: Self = Self {
        name: "flush metrics",
        method: "PUT",
        path: "/actions",
        field: Some(("action_type", "FlushMetrics")),
    };
    pub(super) const CTRL_ALT_DEL: Self = Self {
        name: "Ctrl-Alt-Del",
        method: "PUT",
        path: "/actions",
        field: Some(("action_type", "SendCtrlAltDel")),
    };
}

impl From<Order> for Request {
    fn from(order: Order) -> Self {
        Self {
            name: order.name,
            method: order.method,
            path: order.path.to_owned(),
            body: order.field.map(|(name, value)| json!({ name: value })),
        }
    }
}

/// Sends a request and returns the answer's body, `null` where there is none.
///
/// # Errors
/// The engine gives no answer within `limit`, or refuses.
pub(super) async fn ask(
    socket: &SocketOf,
    request: impl Into<Request>,
    limit: Duration,
) -> Result<Value, ControlError> {
    let request = request.into();
    let name = request.name;
    let exchange = async {
        let mut stream = socket.connect().await?;
        stream.write_all(render(&request).as_bytes()).await?;
        read_answer(&mut stream).await
    };
    let answered = tokio::time::timeout(limit, exchange).await;
    let answer = answered.map_err(|_| ControlError::Timeout {
        order: name,
        seconds: limit.as_secs(),
    })?;
    let answer = answer.map_err(|source| ControlError::Io {
        order: name,
        source,
    })?;
    judge(name, &answer)
}

/// What came back: a status line with headers, and a body.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    head: String,
    body: Vec<u8>,
}

fn render(request: &Request) -> String {
    let Request { method, path, .. } = request;
    let body = request
        .body
        .as_ref()
        .map(Value::to_string)
        .unwrap_or_default();
    let mut head =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n");
    if !body.is_empty() {
        head.push_str("Content-Type: application/json\r\n");
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head + "\r\n" + &body
}

/// Reads one answer; the connection stays open behind it.
async fn read_answer(stream: &mut UnixStream) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    loop {
        if let Some(answer) = whole(&bytes)? {
            return Ok(answer);
        }
        if bytes.len() > ANSWER_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "its answer has no end",
            ));
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// The answer that the bytes are, once they are one as a whole.
fn whole(bytes: &[u8]) -> io::Result<Option<Answer>> {
    const END: &[u8] = b"\r\n\r\n";
    let Some(end) = bytes.windows(END.len()).position(|window| window == END) else {
        return Ok(None);
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let body = &bytes[end + END.len()..];
    let length = length(&head)?;
    Ok((body.len() >= length).then(|| Answer {
        head,
        body: body[..length].to_vec(),
    }))
}

/// RFC 9112, section 6.3: an answer without a length has no body here.
fn length(head: &str) -> io::Result<usize> {
    let field = head.lines().skip(1).find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then_some(value)
    });
    let Some(text) = field else {
        return Ok(0);
    };
    match text.trim().parse() {
        Ok(length) if length <= ANSWER_MAX => Ok(length),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("its answer has the length `{}`", text.trim()),
        )),
    }
}

fn judge(name: &'static str, answer: &Answer) -> Result<Value, ControlError> {
    let malformed = || ControlError::Malformed {
        order: name,
        answer: answer.head.chars().take(EXCERPT).collect(),
    };
    let status = answer.head.split(' ').nth(1).ok_or_else(malformed)?;
    let status: u16 = status.parse().map_err(|_| malformed())?;
    let body = match answer.body.is_empty() {
        true => Value::Null,
        false => serde_json::from_slice(&answer.body).map_err(|_| malformed())?,
    };
    if (200..300).contains(&status) {
        return Ok(body);
    }
    let fault = body.get("fault_message").and_then(Value::as_str);
    Err(ControlError::Refused {
        order: name,
        reason: match fault {
            Some(fault) => fault.trim().to_owned(),
            None => format!("it answered with the status {status}"),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::net::UnixListener;

    const LIMIT: Duration = Duration::from_secs(20);

    /// A server that gives one answer, in pieces of one byte.
    async fn answered(answer: &'static str) -> Result<Value, ControlError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api");
        let listener = UnixListener::bind(&path).unwrap();
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let count = stream.read(&mut request).await.unwrap();
            for byte in answer.as_bytes() {
                stream.write_all(&[*byte]).await.unwrap();
            }
            (
                String::from_utf8_lossy(&request[..count]).into_owned(),
                stream,
            )
        };
        let socket = SocketOf::new(path, std::process::id());
        let (result, (request, _open)) = tokio::join!(ask(&socket, Order::PAUSE, LIMIT), server);
        assert_eq!(
            request,
            "PATCH /vm HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\
             Content-Type: application/json\r\nContent-Length: 18\r\n\r\n{\"state\":\"Paused\"}"
        );
        result
    }

    #[tokio::test]
    async fn an_answer_ends_where_its_length_says_and_the_connection_stays() {
        let none = "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n";
        assert_eq!(answered(none).await.unwrap(), Value::Null);
        let some = "HTTP/1.1 200 OK\r\ncontent-length: 19\r\n\r\n{\"state\":\"Running\"}rest";
        assert_eq!(answered(some).await.unwrap()["state"], "Running");
    }

    #[tokio::test]
    async fn a_refusal_is_in_firecrackers_own_words() {
        let refusal =
            "HTTP/1.1 400 \r\nContent-Length: 34\r\n\r\n{\"fault_message\":\"no such state.\"}";
        let refused = answered(refusal).await.unwrap_err();
        insta::assert_snapshot!(refused, @"the engine refused `pause`: no such state.");
        let wordless = answered("HTTP/1.1 500 \r\n\r\n").await.unwrap_err();
        insta::assert_snapshot!(wordless, @"the engine refused `pause`: it answered with the status 500");
    }

    #[tokio::test]
    async fn nonsense_is_told_as_such() {
        for nonsense in [
            "SSH-2.0-x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nno!",
        ] {
            let error = answered(nonsense).await.unwrap_err();
            assert!(matches!(error, ControlError::Malformed { .. }), "{error}");
        }
        let endless = answered("HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n").await;
        assert!(matches!(endless, Err(ControlError::Io { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(Some(answer)) = whole(&bytes) {
                let _ = judge("describe", &answer);
            }
        }
    }
}

//! A server on the loopback that answers as a test tells it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What the server does with one connection.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// The whole file.
    Whole,
    /// From where the request's range begins.
    Range,
    /// The announced length, but only so many bytes of it.
    Cut(usize),
    /// A status without content.
    Status(&'static str),
    /// A range that was not asked for.
    WrongRange,
    /// The announced length, but only so many bytes of it; then nothing, for as long as the
    /// server lives.
    Hold(usize),
    /// Of the range that was asked for only so many bytes; then the connection breaks.
    Bite(usize),
    /// A byte at a time, with pauses, for as long as anybody listens.
    Dribble(Duration),
}

pub(crate) struct Server {
    pub(crate) url: String,
    ranges: Arc<Mutex<Vec<Option<usize>>>>,
    _task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self._task.abort();
    }
}

impl Server {
    /// Serves `content`, one answer for each connection and then none.
    pub(crate) async fn start(content: Vec<u8>, answers: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/file", listener.local_addr().unwrap());
        let ranges = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&ranges);
        let task = tokio::spawn(async move {
            for answer in answers {
                let (stream, _) = listener.accept().await.unwrap();
                let mut stream = tokio::io::BufReader::new(stream);
                let mut range = None;
                let mut line = String::new();
                while stream.read_line(&mut line).await.unwrap() > 2 {
                    if let Some(value) = line.to_lowercase().strip_prefix("range: bytes=") {
                        range = value
                            .trim()
                            .strip_suffix('-')
                            .and_then(|start| start.parse().ok());
                    }
                    line.clear();
                }
                seen.lock().unwrap().push(range);
                let (head, body) = reply(&content, &answer, range);
                let head = format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n");
                stream.write_all(head.as_bytes()).await.unwrap();
                if let Answer::Dribble(pause) = answer {
                    for byte in body {
                        if stream.write_all(&[byte]).await.is_err() || stream.flush().await.is_err()
                        {
                            break;
                        }
                        tokio::time::sleep(pause).await;
                    }
                    continue;
                }
                // The client may have gone: that is its business.
                let _ = stream.write_all(&body).await;
                let _ = stream.flush().await;
                if let Answer::Hold(_) = answer {
                    std::future::pending::<()>().await;
                }
                let _ = stream.shutdown().await;
            }
        });
        Self {
            url,
            ranges,
            _task: task,
        }
    }

    /// The beginnings of the ranges that were asked for so far.
    pub(crate) fn ranges(&self) -> Vec<Option<usize>> {
        self.ranges.lock().unwrap().clone()
    }
}

fn reply(content: &[u8], answer: &Answer, range: Option<usize>) -> (String, Vec<u8>) {
    let length = content.len();
    let partial = |start: usize| {
        let body = content[start..].to_vec();
        let head = format!(
            "206 Partial Content\r\nContent-Range: bytes {start}-{}/{length}\r\nContent-Length: {}",
            length - 1,
            body.len()
        );
        (head, body)
    };
    match (answer, range) {
        (Answer::Range, Some(start)) => partial(start),
        (Answer::WrongRange, Some(start)) => partial(start - 1),
        (Answer::Bite(count), start) => {
            let (head, mut body) = partial(start.unwrap_or(0));
            body.truncate(*count);
            (head, body)
        }
        (Answer::Cut(count) | Answer::Hold(count), _) => (
            format!("200 OK\r\nContent-Length: {length}"),
            content[..*count].to_vec(),
        ),
        (Answer::Status(status), _) => (format!("{status}\r\nContent-Length: 0"), Vec::new()),
        _ => (
            format!("200 OK\r\nContent-Length: {length}"),
            content.to_vec(),
        ),
    }
}

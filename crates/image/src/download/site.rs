//! A site on the loopback: files by their paths, which a test puts there, changes and takes away
//! while it is up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub(crate) struct Site {
    base: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    files: Mutex<HashMap<String, Vec<u8>>>,
    /// What was asked for, with the beginning of the range.
    asked: Mutex<Vec<(String, usize)>>,
    /// How much of a file is sent before the rest is held back.
    held: watch::Sender<Option<usize>>,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Site {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            files: Mutex::default(),
            asked: Mutex::default(),
            held: watch::Sender::new(None),
        });
        let serving = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&serving);
                // A client that goes is no failure of the site.
                connections.spawn(async move {
                    let _ = shared.answer(stream).await;
                });
            }
        });
        Self { base, shared, task }
    }

    /// The address of `path`, which begins with a slash.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    pub(crate) fn put(&self, path: &str, content: impl Into<Vec<u8>>) {
        let mut files = self.shared.files.lock().unwrap();
        files.insert(path.to_owned(), content.into());
    }

    pub(crate) fn remove(&self, path: &str) {
        self.shared.files.lock().unwrap().remove(path);
    }

    /// Sends of each file only so many bytes from now on, and holds the rest back.
    pub(crate) fn hold_after(&self, bytes: usize) {
        self.shared.held.send_replace(Some(bytes));
    }

    /// Sends all that was held back.
    pub(crate) fn let_go(&self) {
        self.shared.held.send_replace(None);
    }

    /// What was asked for so far, with the beginning of the range.
    pub(crate) fn asked(&self) -> Vec<(String, usize)> {
        self.shared.asked.lock().unwrap().clone()
    }
}

impl Shared {
    async fn answer(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        let (mut path, mut from, mut line) = (String::new(), None, String::new());
        while stream.read_line(&mut line).await? > 2 {
            if path.is_empty() {
                path = line.split(' ').nth(1).unwrap_or_default().to_owned();
            }
            let lower = line.to_lowercase();
            if let Some(range) = lower.strip_prefix("range: bytes=") {
                from = range.trim().trim_end_matches('-').parse::<usize>().ok();
            }
            line.clear();
        }
        let asked = (path.clone(), from.unwrap_or(0));
        self.asked.lock().unwrap().push(asked);
        let content = self.files.lock().unwrap().get(&path).cloned();
        let Some(content) = content else {
            let nothing =
                "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            return stream.write_all(nothing.as_bytes()).await;
        };
        let length = content.len();
        let start = from.unwrap_or(0).min(length);
        let status = match from {
            Some(_) => format!(
                "206 Partial Content\r\nContent-Range: bytes {start}-{}/{length}",
                length - 1
            ),
            None => "200 OK".to_owned(),
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            length - start
        );
        stream.write_all(head.as_bytes()).await?;
        let mut held = self.held.subscribe();
        let first = held.borrow().unwrap_or(length).clamp(start, length);
        stream.write_all(&content[start..first]).await?;
        stream.flush().await?;
        let _ = held.wait_for(Option::is_none).await;
        stream.write_all(&content[first..]).await?;
        stream.shutdown().await
    }
}

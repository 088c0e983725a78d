//! A registry on the loopback that does what a test tells it, over plain HTTP.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use banger_proto::api::RegistryAuth;
use banger_proto::error::ErrorKind;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::image::{Image, MANIFEST, digest};
use crate::download::Patience;
use crate::image::ImageError;
use crate::oci::{PullRequest, Shape};
use crate::progress::Reporter;
use crate::store::{self, Store, StoreConfig};

/// A request as it came.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: String,
}

impl Asked {
    pub(super) fn range(&self) -> usize {
        let range = self.headers.get("range").map(String::as_str);
        range
            .and_then(|range| {
                range
                    .strip_prefix("bytes=")?
                    .strip_suffix('-')?
                    .parse()
                    .ok()
            })
            .unwrap_or(0)
    }
}

/// What is answered.
#[derive(Clone)]
pub(super) struct Reply {
    pub(super) status: &'static str,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    pub(super) sent: Sent,
}

/// How the body is sent.
#[derive(Clone)]
pub(super) enum Sent {
    /// As it should be.
    Whole,
    /// The connection breaks after so many bytes.
    Cut(usize),
    /// Again and again, without a length and without an end.
    Endlessly,
    /// A byte at a time, with pauses.
    Slowly(Duration),
    /// First so many bytes, and the rest when this is so.
    HeldUntil(usize, Arc<dyn Fn() -> bool + Send + Sync>),
}

impl Reply {
    pub(super) fn new(status: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            sent: Sent::Whole,
        }
    }

    pub(super) fn sent(self, sent: Sent) -> Self {
        Self { sent, ..self }
    }

    pub(super) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

type Script = dyn Fn(&Asked) -> Reply + Send + Sync;

/// A running server.
pub(super) struct Server {
    pub(super) address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub(super) async fn start(script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (seen, script): (_, Arc<Script>) = (Arc::clone(&asked), Arc::new(script));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (seen, script) = (Arc::clone(&seen), Arc::clone(&script));
                connections.spawn(async move {
                    // A client may go at any time.
                    let _ = answer(stream, &seen, &*script).await;
                });
            }
        });
        Self {
            address,
            asked,
            task,
        }
    }

    /// Serves `image` as `app:1` as a registry should, except for what `instead` answers.
    pub(super) async fn serve(
        image: Image,
        instead: impl Fn(&Asked) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        Self::start(move |asked| instead(asked).unwrap_or_else(|| ordinary(&image, asked))).await
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

/// What a registry with `image` as `app:1` answers.
pub(super) fn ordinary(image: &Image, asked: &Asked) -> Reply {
    let manifest = image.manifest_bytes();
    let by_digest = format!("/v2/app/manifests/{}", digest(&manifest));
    match asked.path.as_str() {
        "/v2/" => Reply::new("200 OK", "{}"),
        path if path == "/v2/app/manifests/1" || path == by_digest => {
            Reply::new("200 OK", manifest).header("content-type", MANIFEST)
        }
        path => {
            let blob = path
                .strip_prefix("/v2/app/blobs/")
                .and_then(|digest| image.blobs.get(&digest.parse().ok()?));
            match (blob, asked.range()) {
                (Some(blob), 0) => Reply::new("200 OK", blob.clone()),
                (Some(blob), from) => {
                    let range = format!("bytes {from}-{}/{}", blob.len() - 1, blob.len());
                    Reply::new("206 Partial Content", &blob[from..]).header("content-range", range)
                }
                (None, _) => Reply::new("404 Not Found", "{}"),
            }
        }
    }
}

async fn answer(
    stream: TcpStream,
    seen: &Mutex<Vec<Asked>>,
    script: &Script,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let Some((method, path)) = words.next().zip(words.next()) else {
            // Such as the beginning of TLS.
            return Ok(());
        };
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            match line.trim_end().split_once(": ") {
                Some((name, value)) => headers.insert(name.to_lowercase(), value.to_owned()),
                None => break,
            };
        }
        let length = headers.get("content-length").and_then(|it| it.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        stream.read_exact(&mut body).await?;
        let asked = Asked {
            method,
            path,
            headers,
            body: String::from_utf8_lossy(&body).into_owned(),
        };
        let reply = script(&asked);
        seen.lock().unwrap().push(asked);
        let mut head = match reply.sent {
            Sent::Endlessly => format!(
                "HTTP/1.1 {}\r\ntransfer-encoding: chunked\r\n",
                reply.status
            ),
            _ => format!(
                "HTTP/1.1 {}\r\ncontent-length: {}\r\n",
                reply.status,
                reply.body.len()
            ),
        };
        for (name, value) in &reply.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).await?;
        match reply.sent {
            Sent::Whole => stream.write_all(&reply.body).await?,
            Sent::Cut(count) => {
                stream.write_all(&reply.body[..count]).await?;
                return stream.shutdown().await;
            }
            Sent::Endlessly => {
                let chunk = format!("{:x}\r\n", reply.body.len());
                let chunk = [chunk.as_bytes(), &reply.body, b"\r\n"].concat();
                loop {
                    stream.write_all(&chunk).await?;
                }
            }
            Sent::HeldUntil(count, so) => {
                stream.write_all(&reply.body[..count]).await?;
                stream.flush().await?;
                while !so() {
                    tokio::task::yield_now().await;
                }
                stream.write_all(&reply.body[count..]).await?;
            }
            Sent::Slowly(pause) => {
                for byte in &reply.body {
                    stream.write_all(&[*byte]).await?;
                    stream.flush().await?;
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }
}

/// A store of a test's own.
pub(super) struct Home {
    directory: tempfile::TempDir,
    pub(super) store: Store,
}

impl Home {
    pub(super) fn new() -> Self {
        Self::with_patience(Patience {
            backoff: Duration::from_millis(1),
            ..Patience::default()
        })
    }

    /// One that gives servers a second: enough for what they do well on a busy machine.
    pub(super) fn impatient() -> Self {
        let time = Duration::from_secs(1);
        Self::with_patience(Patience {
            idle: time,
            pace: time,
            document: time,
            backoff: Duration::from_millis(1),
        })
    }

    fn with_patience(patience: Patience) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = StoreConfig {
            state_dir: directory.path().join("state"),
            cache_dir: directory.path().join("cache"),
            agent: directory.path().join("agent"),
            debian_mirror: None,
            ubuntu_mirror: None,
            catalog: None,
        };
        let store = Store::open_with(config, patience);
        Self {
            store: store.unwrap(),
            directory,
        }
    }

    pub(super) async fn pull(&self, request: &PullRequest) -> Result<store::Image, ImageError> {
        self.store.pull(request, &Reporter::silent()).await
    }

    /// Pulls what a hostile server has, and checks that nothing is left of it but blobs that
    /// are what they say. Returns what is said of it.
    pub(super) async fn refuses(&self, request: &PullRequest) -> (ErrorKind, String) {
        let error = self.pull(request).await.expect_err("it must be refused");
        self.require_clean();
        (error.kind(), in_words(&error))
    }

    /// No image, no draft of one, and no blob that lies.
    pub(super) fn require_clean(&self) {
        let images = self.directory.path().join("state/images");
        let left: Vec<_> = std::fs::read_dir(images).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        for file in std::fs::read_dir(self.cache()).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if !name.ends_with(".part") {
                assert_eq!(digest(&std::fs::read(&path).unwrap()).hex(), name);
            }
        }
    }

    /// Everything in it.
    pub(super) fn files(&self) -> Vec<std::path::PathBuf> {
        let mut found = Vec::new();
        let mut open = vec![self.directory.path().to_owned()];
        while let Some(directory) = open.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() && !path.is_symlink() {
                    open.push(path.clone());
                }
                found.push(path);
            }
        }
        found
    }

    pub(super) fn cache(&self) -> std::path::PathBuf {
        self.directory.path().join("cache/oci")
    }
}

/// An error with its causes, one a line.
pub(super) fn in_words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        words.push_str(&format!("\n- {error}"));
        source = error.source();
    }
    words
}

/// A request for `app:1` at `address`.
pub(super) fn request(address: &str) -> PullRequest {
    request_for(&format!("{address}/app:1"), None)
}

pub(super) fn request_for(reference: &str, auth: Option<RegistryAuth>) -> PullRequest {
    PullRequest {
        reference: reference.parse().unwrap(),
        shape: Shape {
            name: "app".parse().unwrap(),
            kernel: "generic-6.12".parse().unwrap(),
            limit: None,
        },
        insecure: false,
        auth,
    }
}

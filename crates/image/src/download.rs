//! Downloads: resumed where they broke off, checked against their hash, published by rename.
//!
//! A file is kept under its hash, so what is there is what was asked for. What was fetched
//! of it so far lies beside it as `<hash>.part` and is locked while someone adds to it. A file that
//! is whole is locked, for all who use it together, while anybody does: whoever tidies up removes
//! only what they can lock for themselves.

mod arrival;

use std::io::{self, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;

use reqwest::header::{CONTENT_RANGE, RANGE};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

use crate::disk::{self, DiskError};
use crate::hash::{Expected, show_sha256};
use crate::progress::Reporter;

pub(crate) use arrival::{Arrival, BrokenOff, StartedAnew};

/// Longest time to wait for a connection.
const CONNECT: Duration = Duration::from_secs(15);
/// Attempts that may fail in a row without any progress.
const ATTEMPTS: u32 = 4;
/// A server that sends less than this in its time, or before it breaks off, is as good as gone.
const PACE: u64 = 64 << 10;

/// How long servers are waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Longest time without a single byte.
    pub(crate) idle: Duration,
    /// Time in which [`PACE`] bytes must come.
    pub(crate) pace: Duration,
    /// Longest time for a small document, however it dribbles in.
    pub(crate) document: Duration,
    /// Wait before the second attempt; doubled for each further one.
    pub(crate) backoff: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(30),
            pace: Duration::from_secs(60),
            document: Duration::from_secs(60),
            backoff: Duration::from_millis(250),
        }
    }
}

/// Why a download failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DownloadError {
    /// The client could not be set up.
    #[error("could not set up the HTTP client")]
    Client(#[source] reqwest::Error),
    /// No connection, or it broke off too often.
    #[error("could not download {url}")]
    Transfer {
        /// From where.
        url: String,
        /// Why not.
        #[source]
        source: reqwest::Error,
    },
    /// The server said no.
    #[error("could not download {url}: the server answers {status}")]
    Status {
        /// From where.
        url: String,
        /// What it said.
        status: StatusCode,
    },
    /// It ended before it was whole, each time.
    #[error("the download of {url} ends early: {got} of {wanted} bytes")]
    Truncated {
        /// From where.
        url: String,
        /// Bytes that came.
        got: u64,
        /// Bytes there should be.
        wanted: u64,
    },
    /// It comes at a rate at which it would never be whole.
    #[error("{url} sends less than {} KiB in {time:?}", PACE >> 10)]
    Slow {
        /// From where.
        url: String,
        /// The time that it was given.
        time: Duration,
    },
    /// It is longer than it should be.
    #[error("what {url} sends is longer than the {limit} bytes that it should be")]
    TooLong {
        /// From where.
        url: String,
        /// Most bytes expected.
        limit: u64,
    },
    /// The server does not say how long it is.
    #[error("{url} does not tell its length")]
    NoLength {
        /// From where.
        url: String,
    },
    /// It is not what was asked for.
    #[error("what {url} sends does not have the hash that it should have")]
    WrongHash {
        /// From where.
        url: String,
    },
    /// It is not text.
    #[error("what {url} sends is not text")]
    NotText {
        /// From where.
        url: String,
    },
    /// Whoever asks for it may not have it, or could not find out.
    #[error(transparent)]
    Access(Box<dyn std::error::Error + Send + Sync>),
    /// There is no room for it.
    #[error(transparent)]
    Room(#[from] DiskError),
    /// A file operation failed.
    #[error("could not {action} `{path}`")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl DownloadError {
    /// Whether another attempt may go better.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Transfer { .. } | Self::Truncated { .. } | Self::Slow { .. } => true,
            Self::Status { status, .. } => {
                status.is_server_error()
                    || matches!(
                        *status,
                        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
                    )
            }
            _ => false,
        }
    }
}

/// Asks a server for a file, from a byte on.
#[async_trait]
pub(crate) trait Origin: Send + Sync {
    /// The answer, if it is a success or says that there is no such range.
    async fn get(&self, url: &str, from: u64) -> Result<Response, DownloadError>;
}

/// A client with this crate's limits. It follows redirections as `redirects` says.
pub(crate) fn client(
    redirects: reqwest::redirect::Policy,
    patience: Patience,
) -> Result<Client, DownloadError> {
    // Another part of the process may have chosen a provider already: any will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .user_agent(concat!("banger/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT)
        .read_timeout(patience.idle)
        .redirect(redirects)
        .build()
        .map_err(DownloadError::Client)
}

/// A server that everybody may ask.
struct Open(Client);

#[async_trait]
impl Origin for Open {
    async fn get(&self, url: &str, from: u64) -> Result<Response, DownloadError> {
        let response = ranged(self.0.get(url), from)
            .send()
            .await
            .map_err(|source| transfer(url, source))?;
        accept(response, url, from)
    }
}

/// A request for what follows the first `from` bytes.
pub(crate) fn ranged(request: RequestBuilder, from: u64) -> RequestBuilder {
    match from {
        0 => request,
        from => request.header(RANGE, format!("bytes={from}-")),
    }
}

/// Refuses an answer that is neither a success nor one about the range that was asked for.
pub(crate) fn accept(response: Response, url: &str, from: u64) -> Result<Response, DownloadError> {
    let status = response.status();
    match status.is_success() || (from > 0 && status == StatusCode::RANGE_NOT_SATISFIABLE) {
        true => Ok(response),
        false => Err(DownloadError::Status {
            url: url.to_owned(),
            status,
        }),
    }
}

/// Fetches files into one directory.
#[derive(Clone)]
pub(crate) struct Downloads {
    origin: Arc<dyn Origin>,
    directory: PathBuf,
    patience: Patience,
}

/// Whether a server sends at a rate at which the file will be there some day.
struct Pace<'a> {
    url: &'a str,
    time: Duration,
    since: Instant,
    bytes: u64,
}

impl<'a> Pace<'a> {
    fn new(url: &'a str, time: Duration) -> Self {
        Self {
            url,
            time,
            since: Instant::now(),
            bytes: 0,
        }
    }

    /// Counts what came, and refuses to go on for so little.
    fn came(&mut self, bytes: usize) -> Result<(), DownloadError> {
        self.bytes += bytes as u64;
        if self.since.elapsed() > self.time {
            if self.bytes < PACE {
                return Err(DownloadError::Slow {
                    url: self.url.to_owned(),
                    time: self.time,
                });
            }
            *self = Self::new(self.url, self.time);
        }
        Ok(())
    }
}

impl Downloads {
    /// Downloads into `directory`, which is there.
    pub(crate) fn new(directory: PathBuf) -> Result<Self, DownloadError> {
        let patience = Patience::default();
        let client = client(reqwest::redirect::Policy::default(), patience)?;
        Ok(Self::from_origin(
            Arc::new(Open(client)),
            directory,
            patience,
        ))
    }

    /// Downloads from `origin` into `directory`, which is there.
    pub(crate) fn from_origin(
        origin: Arc<dyn Origin>,
        directory: PathBuf,
        patience: Patience,
    ) -> Self {
        Self {
            origin,
            directory,
            patience,
        }
    }

    /// The text at `url`, of at most `limit` bytes.
    pub(crate) async fn text(&self, url: &str, limit: u64) -> Result<String, DownloadError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.text_once(url, limit).await {
                Err(error) if error.is_passing() && attempt < ATTEMPTS => {
                    self.back_off(attempt, &error).await
                }
                outcome => return outcome,
            }
        }
    }

    async fn text_once(&self, url: &str, limit: u64) -> Result<String, DownloadError> {
        let mut response = self.origin.get(url, 0).await?;
        let mut bytes = Vec::new();
        let mut pace = Pace::new(url, self.patience.pace);
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|source| transfer(url, source))?
        {
            pace.came(chunk.len())?;
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > limit {
                return Err(DownloadError::TooLong {
                    url: url.to_owned(),
                    limit,
                });
            }
        }
        String::from_utf8(bytes).map_err(|_| DownloadError::NotText {
            url: url.to_owned(),
        })
    }

    /// The length of the file at `url`, which may be at most `limit` bytes.
    pub(crate) async fn length(&self, url: &str, limit: u64) -> Result<u64, DownloadError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.length_once(url, limit).await {
                Err(error) if error.is_passing() && attempt < ATTEMPTS => {
                    self.back_off(attempt, &error).await
                }
                outcome => return outcome,
            }
        }
    }

    async fn length_once(&self, url: &str, limit: u64) -> Result<u64, DownloadError> {
        // Not every server answers HEAD. The content is not read, and goes with the connection.
        let length = self.origin.get(url, 0).await?.content_length();
        match length {
            None => Err(DownloadError::NoLength {
                url: url.to_owned(),
            }),
            Some(length) if length > limit => Err(DownloadError::TooLong {
                url: url.to_owned(),
                limit,
            }),
            Some(length) => Ok(length),
        }
    }

    /// The file at `url`, whole and with the expected hash. Progress is told under `what`.
    ///
    /// Cancel-safe: what was fetched when the future is dropped is used the next time.
    pub(crate) async fn file(
        &self,
        url: &str,
        expected: &Expected,
        what: &str,
        progress: &Reporter,
    ) -> Result<Downloaded, DownloadError> {
        self.arriving_file(url, expected, what, progress, &Arrival::default())
            .await
    }

    /// As [`Downloads::file`]; what is there of it can be read from `arrival` meanwhile.
    pub(crate) async fn arriving_file(
        &self,
        url: &str,
        expected: &Expected,
        what: &str,
        progress: &Reporter,
        arrival: &Arrival,
    ) -> Result<Downloaded, DownloadError> {
        let name = show_sha256(&expected.sha256);
        let path = self.directory.join(&name);
        if let Some(file) = whole(&path, expected, arrival).await {
            arrival.whole();
            progress.bytes(what, expected.size, Some(expected.size));
            return Ok(Downloaded::new(path, file));
        }
        // What is wrong is of no use to anybody; that it is not there, to nobody a surprise.
        let _ = tokio::fs::remove_file(&path).await;
        disk::require_room(&path, expected.size)?;
        let part = self.directory.join(format!("{name}.part"));
        let mut part = Part::open(&part, expected, arrival).await?;
        self.fill(&mut part, url, expected, what, progress).await?;
        part.file
            .sync_all()
            .await
            .map_err(io_error("write", &part.path))?;
        let Part {
            path: from, file, ..
        } = part;
        // Others may use it as soon as it has its name.
        let downloaded = Downloaded::new(path.clone(), file.into_std().await);
        tokio::fs::rename(&from, &path)
            .await
            .map_err(io_error("publish", &path))?;
        arrival.whole();
        Ok(downloaded)
    }

    async fn fill(
        &self,
        part: &mut Part<'_>,
        url: &str,
        expected: &Expected,
        what: &str,
        progress: &Reporter,
    ) -> Result<(), DownloadError> {
        let mut failures = 0;
        loop {
            let before = part.length;
            let resumed = before > 0;
            let outcome = match part.length < expected.size {
                true => self.append(part, url, expected, what, progress).await,
                false => Ok(()),
            };
            let error = match outcome {
                Ok(()) if part.hash() == expected.sha256 => return Ok(()),
                // What was there before may have been another file's.
                Ok(()) if resumed => {
                    part.restart().await?;
                    continue;
                }
                Ok(()) => DownloadError::WrongHash {
                    url: url.to_owned(),
                },
                Err(error) => error,
            };
            let is_slow = matches!(error, DownloadError::Slow { .. });
            // A server that breaks off after a byte each time would never be given up.
            failures = match part.length >= before + PACE && !is_slow {
                true => 1,
                false => failures + 1,
            };
            if !error.is_passing() {
                // Whoever is let in later goes on with what is there; else it is of no use.
                let is_of_use = part.length > 0 && matches!(error, DownloadError::Access(_));
                if !is_of_use {
                    let _ = tokio::fs::remove_file(&part.path).await;
                }
                return Err(error);
            }
            if failures >= ATTEMPTS {
                return Err(error);
            }
            self.back_off(failures, &error).await;
        }
    }

    /// Adds what the server sends to the part.
    async fn append(
        &self,
        part: &mut Part<'_>,
        url: &str,
        expected: &Expected,
        what: &str,
        progress: &Reporter,
    ) -> Result<(), DownloadError> {
        let mut response = self.origin.get(url, part.length).await?;
        if !continues_at(&response, part.length) {
            part.restart().await?;
            if response.status() != StatusCode::OK {
                response = self.origin.get(url, 0).await?;
            }
        }
        let mut pace = Pace::new(url, self.patience.pace);
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|source| transfer(url, source))?
        {
            pace.came(chunk.len())?;
            if part.length + chunk.len() as u64 > expected.size {
                return Err(DownloadError::TooLong {
                    url: url.to_owned(),
                    limit: expected.size,
                });
            }
            part.write(&chunk).await?;
            progress.bytes(what, part.length, Some(expected.size));
        }
        match part.length == expected.size {
            true => Ok(()),
            false => Err(DownloadError::Truncated {
                url: url.to_owned(),
                got: part.length,
                wanted: expected.size,
            }),
        }
    }

    async fn back_off(&self, attempt: u32, error: &DownloadError) {
        tracing::debug!(
            error = error as &dyn std::error::Error,
            attempt,
            "download failed, trying again"
        );
        tokio::time::sleep(self.patience.backoff * 2u32.pow(attempt.min(8) - 1)).await;
    }
}

/// Whether the response's body is what follows the first `from` bytes.
fn continues_at(response: &Response, from: u64) -> bool {
    if from == 0 {
        return response.status() == StatusCode::OK;
    }
    let start = response.headers().get(CONTENT_RANGE).and_then(|value| {
        value
            .to_str()
            .ok()?
            .strip_prefix("bytes ")?
            .split('-')
            .next()?
            .parse()
            .ok()
    });
    response.status() == StatusCode::PARTIAL_CONTENT && start == Some(from)
}

/// A file that is here, whole. Nobody tidies it away while this is held.
#[derive(Debug)]
pub(crate) struct Downloaded {
    path: PathBuf,
    /// Locked.
    _file: std::fs::File,
}

impl Downloaded {
    /// The file that is at `path`, or is about to be.
    pub(crate) fn new(path: PathBuf, file: std::fs::File) -> Self {
        let shared = FlockOperation::NonBlockingLockShared;
        if let Err(error) = flock(&file, shared) {
            // Where nothing can be locked, whoever tidies up cannot lock it either.
            tracing::debug!(%error, path = %path.display(), "could not lock a download");
        }
        Self { path, _file: file }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// What was fetched so far.
struct Part<'a> {
    arrival: &'a Arrival,
    path: PathBuf,
    file: File,
    length: u64,
    hasher: Sha256,
}

impl<'a> Part<'a> {
    /// Opens or makes the part and hashes what is there. A part that someone else is filling
    /// is left to them, and another one made.
    async fn open(
        path: &Path,
        expected: &Expected,
        arrival: &'a Arrival,
    ) -> Result<Self, DownloadError> {
        let (mut path, mut file) = (path.to_owned(), open_part(path).await?);
        let lock = FlockOperation::NonBlockingLockExclusive;
        // It may also have been tidied away just before it was locked.
        if flock(&file, lock).is_err() || is_gone(&file) {
            path.as_mut_os_string()
                .push(format!(".{}", std::process::id()));
            file = open_part(&path).await?;
            // Where that fails, two fetch into one file and both find it wrong.
            let _ = flock(&file, lock);
        }
        let mut part = Self {
            arrival,
            path,
            file,
            length: 0,
            hasher: Sha256::new(),
        };
        let length = part
            .file
            .metadata()
            .await
            .map_err(io_error("read", &part.path))?
            .len();
        if length > expected.size {
            part.restart().await?;
            return Ok(part);
        }
        part.begin().await?;
        let mut buffer = vec![0; 1 << 18];
        loop {
            let count = part
                .file
                .read(&mut buffer)
                .await
                .map_err(io_error("read", &part.path))?;
            if count == 0 {
                return Ok(part);
            }
            part.hasher.update(&buffer[..count]);
            part.length += count as u64;
            arrival.grown(part.length);
        }
    }

    /// Shows the file to those who read it while it comes.
    async fn begin(&self) -> Result<(), DownloadError> {
        let shown = self
            .file
            .try_clone()
            .await
            .map_err(io_error("open", &self.path))?;
        self.arrival.begin(Arc::new(shown.into_std().await));
        Ok(())
    }

    async fn restart(&mut self) -> Result<(), DownloadError> {
        self.file
            .set_len(0)
            .await
            .map_err(io_error("write", &self.path))?;
        self.file
            .seek(SeekFrom::Start(0))
            .await
            .map_err(io_error("write", &self.path))?;
        self.length = 0;
        self.hasher = Sha256::new();
        self.begin().await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), DownloadError> {
        self.file
            .write_all(bytes)
            .await
            .map_err(io_error("write", &self.path))?;
        // So that an error of the disk shows here and the length is what is in the file.
        self.file
            .flush()
            .await
            .map_err(io_error("write", &self.path))?;
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        self.arrival.grown(self.length);
        Ok(())
    }

    fn hash(&self) -> [u8; 32] {
        self.hasher.clone().finalize().into()
    }
}

async fn open_part(path: &Path) -> Result<File, DownloadError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .await
        .map_err(io_error("create", path))
}

/// Whether a file has no name any more.
fn is_gone(file: &File) -> bool {
    rustix::fs::fstat(file).is_ok_and(|found| found.st_nlink == 0)
}

/// The file, locked, if it is there with the right content: what lies in a cache is not believed.
async fn whole(path: &Path, expected: &Expected, arrival: &Arrival) -> Option<std::fs::File> {
    let mut file = File::open(path).await.ok()?;
    flock(&file, FlockOperation::NonBlockingLockShared).ok()?;
    if is_gone(&file) {
        return None;
    }
    // What has another length need not be read.
    let (metadata, shown) = (file.metadata().await, file.try_clone().await);
    match (metadata, shown) {
        (Ok(metadata), Ok(shown)) if metadata.len() == expected.size => {
            arrival.begin(Arc::new(shown.into_std().await));
        }
        _ => return None,
    }
    let mut length = 0;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer).await {
            Ok(0) if <[u8; 32]>::from(hasher.finalize_reset()) == expected.sha256 => {
                return Some(file.into_std().await);
            }
            Ok(0) => return None,
            Ok(count) => {
                hasher.update(&buffer[..count]);
                length += count as u64;
                arrival.grown(length);
            }
            Err(_) => return None,
        }
    }
}

pub(crate) fn transfer(url: &str, source: reqwest::Error) -> DownloadError {
    // The address stands in our own text already.
    DownloadError::Transfer {
        url: url.to_owned(),
        source: source.without_url(),
    }
}

fn io_error<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> DownloadError + 'a {
    move |source| DownloadError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
pub(crate) mod server;
#[cfg(test)]
pub(crate) mod site;
#[cfg(test)]
mod tests;

//! Logs of a VM: as they are, or as they grow.

mod boot;

use std::fs::File;
use std::io::{self, ErrorKind as IoErrorKind, Read as _, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path as FilePath, PathBuf};

use axum::Extension;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use banger_proto::api::LogKind;
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::id::RequestId;
use bytes::Bytes;
use futures_util::stream::unfold;
use rustix::fs::inotify;
use serde::Deserialize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::Api;
use super::exchange::{Failure, text};
use crate::descriptor::{take_events, watched};
use crate::fleet::refused;
use crate::usage::unanswered;
use crate::vm::lifecycle::Request;
use crate::vm::task::Handle;

/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;

#[derive(Debug, Deserialize)]
pub struct Wanted {
    #[serde(default = "console")]
    log: LogKind,
    #[serde(default)]
    follow: bool,
    /// How many of the last lines to begin with; all of them if absent.
    tail: Option<u64>,
}

fn console() -> LogKind {
    LogKind::Console
}

pub async fn logs(
    State(api): State<Api>,
    Path(vm): Path<String>,
    Extension(id): Extension<RequestId>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(wanted) = wanted.map_err(|error| {
        ApiError::new(ErrorKind::Invalid, "could not read the log").caused_by(&error)
    })?;
    let vm = api.fleet.find(&vm)?;
    let status = vm.status();
    let place = api
        .fleet
        .host()
        .layout(&status.row.id, status.row.slot)
        .place;
    let path = match wanted.log {
        LogKind::Boot if wanted.follow => return Ok(boot::follow(&api, vm, wanted.tail)),
        LogKind::Boot => {
            let log = boot::lines(&status.row.stages);
            return Ok(text(last_lines(log.into(), wanted.tail).into()));
        }
        LogKind::Agent if wanted.follow => {
            let name = &status.row.name;
            let message = format!("the log of the agent of VM `{name}` cannot be followed");
            return Err(ApiError::new(ErrorKind::Invalid, message)
                .with_hint("the guest gives what there is of it: ask again without `--follow`")
                .into());
        }
        LogKind::Agent => {
            let log = agent_log(&vm, &id).await?;
            return Ok(text(last_lines(log, wanted.tail).into()));
        }
        LogKind::Console => place.console_log(),
        LogKind::Engine => place.engine_log(),
    };
    let opened = crate::blocking(move || {
        let mut log = Growing::open(path, wanted.follow)?;
        if let (Some(log), Some(lines)) = (&mut log, wanted.tail) {
            log.skip_to_last(lines)?;
        }
        Ok(log)
    });
    let opened: io::Result<Option<Growing>> = opened.await;
    let log = opened.map_err(|error| {
        let message = format!("could not read the log of VM `{}`", status.row.name);
        ApiError::new(ErrorKind::Failed, message).caused_by(&error)
    })?;
    let Some(log) = log else {
        // A VM that was never started has no logs yet.
        return Ok(text(Body::empty()));
    };
    let pieces = unfold((log, vm), |(mut log, vm)| async {
        tokio::select! {
            piece = log.next() => Some((piece.transpose()?, (log, vm))),
            () = vm.gone() => None,
        }
    });
    Ok(text(Body::from_stream(pieces)))
}

async fn agent_log(vm: &Handle, id: &RequestId) -> Result<Bytes, ApiError> {
    let guest = vm.guest().await;
    let guest = guest.map_err(|error| refused(vm, Request::Attach, &error))?;
    let log = guest.for_request(id).log().await;
    log.map_err(|error| unanswered(vm, &error))
}

/// The last `lines` of a text; all of it without a number.
fn last_lines(text: Bytes, lines: Option<u64>) -> Bytes {
    match lines {
        None => text,
        Some(lines) => {
            let mut counted = BackwardLines::new(lines);
            let begin = counted.look(&text).unwrap_or_default();
            text.slice(begin..)
        }
    }
}

/// Finds where the last lines of a text begin, from its end backwards, piece by piece.
struct BackwardLines {
    wanted: u64,
    found: u64,
    at_end: bool,
}

impl BackwardLines {
    fn new(wanted: u64) -> Self {
        Self {
            wanted,
            found: 0,
            at_end: true,
        }
    }

    /// Looks at the piece before those that were looked at. `Some`: the lines begin there in
    /// it; `None`: they begin before it.
    fn look(&mut self, piece: &[u8]) -> Option<usize> {
        if self.wanted == 0 {
            return Some(piece.len());
        }
        for (index, byte) in piece.iter().enumerate().rev() {
            // The last line's own end begins no other line.
            if *byte == b'\n' && !std::mem::take(&mut self.at_end) {
                self.found += 1;
                if self.found == self.wanted {
                    return Some(index + 1);
                }
            }
            self.at_end = false;
        }
        None
    }
}

/// A file that is read to its end, and then on as it grows, also in a new file of its name.
struct Growing {
    path: PathBuf,
    file: File,
    changes: Option<AsyncFd<OwnedFd>>,
}

impl Growing {
    /// `None` if there is no such file.
    fn open(path: PathBuf, follow: bool) -> io::Result<Option<Self>> {
        // The watch comes first, so that no change falls between the two.
        let changes = follow.then(|| watch(&path)).transpose();
        match (File::open(&path), changes) {
            (Err(error), _) | (_, Err(error)) if error.kind() == IoErrorKind::NotFound => Ok(None),
            (Err(error), _) | (_, Err(error)) => Err(error),
            (Ok(file), Ok(changes)) => Ok(Some(Self {
                path,
                file,
                changes,
            })),
        }
    }

    /// Goes on from the last `lines` lines of what there is now.
    fn skip_to_last(&mut self, lines: u64) -> io::Result<()> {
        let mut counted = BackwardLines::new(lines);
        let mut piece = vec![0; CHUNK];
        let mut end = self.file.metadata()?.len();
        while end > 0 {
            let length = CHUNK.min(usize::try_from(end).unwrap_or(CHUNK));
            let begin = end - length as u64;
            match self.file.read_exact_at(&mut piece[..length], begin) {
                // It has become shorter meanwhile: all that it holds is new.
                Err(error) if error.kind() == IoErrorKind::UnexpectedEof => break,
                read => read?,
            }
            if let Some(index) = counted.look(&piece[..length]) {
                self.file.seek(SeekFrom::Start(begin + index as u64))?;
                return Ok(());
            }
            end = begin;
        }
        self.file.rewind()
    }

    /// The next piece; `None` at the end. Cancel-safe.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            // Looked at before the read: who has a new file writes no more to the old one.
            let place = self.place()?;
            let piece = self.read()?;
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
            let Some(changes) = &self.changes else {
                return Ok(None);
            };
            match place {
                Place::Removed => return Ok(None),
                Place::Replaced => {
                    match File::open(&self.path) {
                        Ok(file) => self.file = file,
                        Err(error) if error.kind() == IoErrorKind::NotFound => {}
                        Err(error) => return Err(error),
                    }
                    continue;
                }
                Place::Here | Place::Renamed => {}
            }
            let mut ready = changes.readable().await?;
            // Whatever changed, the next turn sees it.
            let _ = ready.try_io(|changes| take_events(changes.get_ref()));
        }
    }

    /// Where the open file is. A start renames the log and begins a new one.
    fn place(&self) -> io::Result<Place> {
        let open = self.file.metadata()?;
        match std::fs::metadata(&self.path) {
            Ok(named) if (named.dev(), named.ino()) == (open.dev(), open.ino()) => Ok(Place::Here),
            Ok(_) => Ok(Place::Replaced),
            Err(error) if error.kind() != IoErrorKind::NotFound => Err(error),
            Err(_) if open.nlink() == 0 => Ok(Place::Removed),
            Err(_) => Ok(Place::Renamed),
        }
    }

    /// What there is, at most one chunk. A file that has become shorter was begun anew.
    fn read(&mut self) -> io::Result<Bytes> {
        let mut piece = vec![0; CHUNK];
        let mut length = self.file.read(&mut piece)?;
        if length == 0 && self.file.stream_position()? > self.file.metadata()?.len() {
            self.file.seek(SeekFrom::Start(0))?;
            length = self.file.read(&mut piece)?;
        }
        piece.truncate(length);
        Ok(piece.into())
    }
}

/// Where an open file is.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// Under its name.
    Here,
    /// Under another name, and nothing has its own yet.
    Renamed,
    /// Another file has its name.
    Replaced,
    /// It has no name any more.
    Removed,
}

/// Watches a file by its directory, which sees new files of its name too (inotify(7)).
fn watch(path: &FilePath) -> io::Result<AsyncFd<OwnedFd>> {
    let changes = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    let wanted = inotify::WatchFlags::MODIFY
        | inotify::WatchFlags::CREATE
        | inotify::WatchFlags::MOVE
        | inotify::WatchFlags::DELETE
        | inotify::WatchFlags::DELETE_SELF;
    let directory = path.parent().expect("a log is in a directory");
    inotify::add_watch(&changes, directory, wanted)?;
    watched(changes, Interest::READABLE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[tokio::test]
    async fn a_followed_file_is_read_as_it_grows_and_ends_when_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut writer = File::create(&path).unwrap();
        writer.write_all(b"one").unwrap();
        let mut log = Growing::open(path.clone(), true).unwrap().unwrap();
        assert_eq!(log.next().await.unwrap().unwrap(), "one");
        let (more, ()) = tokio::join!(log.next(), async { writer.write_all(b"two").unwrap() });
        assert_eq!(more.unwrap().unwrap(), "two");
        writer.set_len(0).unwrap();
        writer.rewind().unwrap();
        writer.write_all(b"3").unwrap();
        assert_eq!(log.next().await.unwrap().unwrap(), "3");
        let (end, ()) = tokio::join!(log.next(), async { std::fs::remove_file(&path).unwrap() });
        assert_eq!(end.unwrap(), None);
    }

    #[tokio::test]
    async fn a_followed_log_goes_on_in_the_file_of_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        std::fs::write(&path, "one").unwrap();
        let mut log = Growing::open(path.clone(), true).unwrap().unwrap();
        assert_eq!(log.next().await.unwrap().unwrap(), "one");
        for (last, first) in [("two", "three"), ("", "four")] {
            let mut old = File::options().append(true).open(&path).unwrap();
            let (piece, ()) = tokio::join!(log.next(), async {
                old.write_all(last.as_bytes()).unwrap();
                std::fs::rename(&path, path.with_extension("log.1")).unwrap();
                tokio::task::yield_now().await;
                std::fs::write(&path, first).unwrap();
            });
            let mut seen = piece.unwrap().unwrap();
            if !last.is_empty() {
                assert_eq!(seen, last);
                seen = log.next().await.unwrap().unwrap();
            }
            assert_eq!(seen, first);
        }
        let (end, ()) = tokio::join!(log.next(), async { std::fs::remove_file(&path).unwrap() });
        assert_eq!(end.unwrap(), None);
    }

    #[test]
    fn the_last_lines_are_found_however_the_text_ends_and_is_cut() {
        for text in [
            "",
            "\n",
            "one",
            "one\n",
            "one\n\nthree\nfour",
            "\n\n\n",
            "a\nb\nc\nd\n",
        ] {
            for lines in 0..6 {
                let all: Vec<&str> = text.split_inclusive('\n').collect();
                let expected = all[all.len().saturating_sub(lines)..].concat();
                let lines = lines as u64;
                let found = last_lines(Bytes::from(text.to_owned()), Some(lines));
                assert_eq!(found, expected, "the last {lines} of {text:?}");
                // Byte by byte.
                let mut counted = BackwardLines::new(lines);
                let begin = (0..text.len())
                    .rev()
                    .find_map(|at| Some(at + counted.look(&text.as_bytes()[at..=at])?));
                assert_eq!(
                    &text[begin.unwrap_or_default()..],
                    expected,
                    "{lines} of {text:?}"
                );
            }
        }
    }

    #[tokio::test]
    async fn a_long_log_is_followed_from_its_last_lines_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let line = format!("{}\n", "x".repeat(CHUNK / 2));
        std::fs::write(&path, line.repeat(10)).unwrap();
        let mut log = Growing::open(path.clone(), true).unwrap().unwrap();
        log.skip_to_last(3).unwrap();
        let mut seen = 0;
        while seen < 3 * line.len() {
            seen += log.next().await.unwrap().unwrap().len();
        }
        assert_eq!(seen, 3 * line.len());
        let mut writer = File::options().append(true).open(&path).unwrap();
        writer.write_all(b"more").unwrap();
        assert_eq!(log.next().await.unwrap().unwrap(), "more");
    }

    #[tokio::test]
    async fn a_file_that_is_not_followed_ends_and_a_missing_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert!(Growing::open(path.clone(), true).unwrap().is_none());
        std::fs::write(&path, vec![b'x'; CHUNK + 1]).unwrap();
        let mut log = Growing::open(path, false).unwrap().unwrap();
        assert_eq!(log.next().await.unwrap().unwrap().len(), CHUNK);
        assert_eq!(log.next().await.unwrap().unwrap().len(), 1);
        assert_eq!(log.next().await.unwrap(), None);
    }
}

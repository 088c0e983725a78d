//! `banger vm cp`: files and trees between this host and VMs.
//!
//! Where a copy lands follows `cp -r` and `docker cp`: in a directory that is there, the copy
//! has its own name; where nothing is, it becomes what was named; `tree/.` stands for what is
//! in `tree`. What is at the guest's end is found out by asking for it and reading the first
//! header of what comes.

use std::ffi::OsString;
use std::io::{self, Cursor, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_client::{Client, ClientError, Download};
use banger_proto::api::VmState;
use banger_proto::error::{ApiError, ErrorKind};
use bytes::BytesMut;
use clap::Args;
use clap_complete::ArgValueCompleter;
use futures_util::StreamExt;
use indicatif::{ProgressBar, ProgressDrawTarget};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::sleep;
use tokio_util::io::ReaderStream;
use tokio_util::task::TaskTracker;

use crate::archive::{self, ArchiveError, Kind, Owners, Packing, Pieces, PiecesWriter};
use crate::args::Quiet;
use crate::complete;
use crate::failure::{Failure, Outcome};
use crate::near;
use crate::output;
use crate::progress::{KeySilence, bytes_bar, expect_bytes};
use crate::settings::Settings;
use crate::signals::Signals;

/// How long a copy goes on before its progress is shown.
const SHORT: Duration = Duration::from_secs(1);
/// Where a guest's relative paths begin: root's home, which is the work disk.
const GUEST_HOME: &str = "/root";
/// Length of a tar archive's records (POSIX.1-2017, pax, ustar interchange format).
const RECORD: usize = 512;

const EXAMPLES: &str = "\
Examples:
  banger vm cp notes.txt calm-otter:/srv/
  banger vm cp calm-otter:/etc/apt .
  banger vm cp ./src/. calm-otter:src
  banger vm cp calm-otter:/srv devbox:/srv
  banger vm cp calm-otter:/srv - | tar t

A path in a VM is VM:PATH; a relative one begins at /root. Into a directory that is there the
copy goes under its own name; DIR/. stands for what is in DIR. Modes, times and links are kept;
owners only if you are root here, else files in a VM are root's. `-` is a tar stream. A file that
is interrupted half-way is not there at all, or as it was before.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Cp {
    /// What to copy: PATH, VM:PATH, or - for a tar stream from standard input
    #[arg(value_name = "SRC", add = ArgValueCompleter::new(complete::places))]
    from: String,
    /// Where to: PATH, VM:PATH, or - for a tar stream to standard output
    #[arg(value_name = "DST", add = ArgValueCompleter::new(complete::places))]
    to: String,
    #[command(flatten)]
    quiet: Quiet,
}

/// One end of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// Standard input or output.
    Stream,
    /// On this host.
    Here(PathBuf),
    /// In a VM.
    Guest { vm: String, path: String },
}

impl Place {
    fn parse(text: &str) -> Self {
        if text == "-" {
            return Self::Stream;
        }
        match text.split_once(':') {
            // A slash before the colon makes it a path of this host, as scp has it.
            Some((vm, path)) if !vm.is_empty() && !vm.contains('/') => Self::Guest {
                vm: vm.to_owned(),
                path: match (path.is_empty(), path.starts_with('/')) {
                    (true, _) => GUEST_HOME.to_owned(),
                    (_, true) => path.to_owned(),
                    (_, false) => format!("{GUEST_HOME}/{path}"),
                },
            },
            _ => Self::Here(PathBuf::from(text)),
        }
    }
}

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Directory,
    /// Anything else.
    File,
    Nothing,
}

impl From<Kind> for Found {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Directory => Self::Directory,
            Kind::File => Self::File,
        }
    }
}

/// What is copied.
#[derive(Debug)]
struct Source {
    /// Its own name; `None` if only what is in it is meant.
    name: Option<OsString>,
    is_directory: bool,
}

impl Source {
    fn new(path: &Path, found: Found) -> Self {
        let only_contents = is_dot(path);
        Self {
            name: path
                .file_name()
                .filter(|_| !only_contents)
                .map(ToOwned::to_owned),
            is_directory: found == Found::Directory,
        }
    }
}

/// Where a copy lands.
#[derive(Debug, PartialEq, Eq)]
struct Landing {
    /// A directory that is there.
    directory: PathBuf,
    /// What the copy is called in it; `None`: its contents go right into it.
    name: Option<OsString>,
}

impl Landing {
    /// Finds the place, knowing what is at the destination and, if that is nothing, at the
    /// directory that it would be in.
    fn find(
        source: &Source,
        to: &Path,
        at_to: Found,
        at_parent: Found,
    ) -> Result<Self, ArchiveError> {
        let refuse = |words: String| Err(ArchiveError::Place(words));
        let parent = parent(to);
        let ends_as_directory = ends_with_slash(to) || is_dot(to);
        match at_to {
            Found::Directory => Ok(Self {
                directory: to.to_owned(),
                name: source.name.clone(),
            }),
            Found::File if source.is_directory => refuse(format!(
                "`{}` is a file, and a directory cannot take its place",
                to.display()
            )),
            Found::File if ends_as_directory => {
                refuse(format!("`{}` is no directory", to.display()))
            }
            Found::Nothing if ends_as_directory && !source.is_directory => {
                refuse(format!("there is no directory `{}`", to.display()))
            }
            Found::Nothing if at_parent != Found::Directory => {
                refuse(format!("there is no directory `{}`", parent.display()))
            }
            Found::File | Found::Nothing => match to.file_name() {
                Some(name) => Ok(Self {
                    directory: parent,
                    name: Some(name.to_owned()),
                }),
                None => refuse(format!("there is no `{}`", to.display())),
            },
        }
    }
}

/// The directory that a path is in.
fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        Some(_) => PathBuf::from("."),
        None => PathBuf::from("/"),
    }
}

fn ends_with_slash(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"/")
}

/// Whether a path ends with `.`, which stands for what is in a directory.
fn is_dot(path: &Path) -> bool {
    let bytes = path.as_os_str().as_encoded_bytes();
    bytes == b"." || bytes.ends_with(b"/.")
}

impl Cp {
    pub(crate) async fn run(self, settings: &Settings) -> Outcome {
        let (from, to) = (Place::parse(&self.from), Place::parse(&self.to));
        if !matches!(from, Place::Guest { .. }) && !matches!(to, Place::Guest { .. }) {
            let error = ApiError::new(ErrorKind::Invalid, "neither of the two is in a VM");
            return Err(error
                .with_hint("write a path in a VM as VM:PATH, such as `calm-otter:/srv`")
                .into());
        }
        if to == Place::Stream && io::stdout().is_terminal() {
            let error = ApiError::new(ErrorKind::Invalid, "a tar stream is nothing for a terminal");
            return Err(error.with_hint("pipe it into `tar`, or into a file").into());
        }
        let mut signals = Signals::listen()?;
        let client = signals.or(settings.connect()).await?;
        let meter = Meter::new(settings.ui.live && !self.quiet.quiet, &self.from);
        let copying = Copying {
            client: &client,
            meter: &meter,
            words: format!("could not copy `{}` to `{}`", self.from, self.to),
            threads: TaskTracker::new(),
        };
        let copied = tokio::select! {
            copied = copying.copy(from, to) => copied,
            never = meter.show_if_long() => match never {},
            signal = signals.next() => Err(Failure::silent(signal.status())),
        };
        meter.clear();
        // The file that an interrupted copy was at is removed, unless that takes too long for
        // whoever interrupts it again.
        copying.threads.close();
        tokio::select! {
            () = copying.threads.wait() => {}
            _ = signals.next() => {}
        }
        for path in copied? {
            let text = format!("`{}` is left out: it is no file", path.display());
            settings.ui.warn(&text);
        }
        Ok(0)
    }
}

/// A copy that goes on.
struct Copying<'a> {
    client: &'a Client,
    meter: &'a Meter,
    /// What an error begins with.
    words: String,
    /// What reads or writes this host's files.
    threads: TaskTracker,
}

impl Copying<'_> {
    /// Copies, and gives what was left out.
    async fn copy(&self, from: Place, to: Place) -> Result<Vec<PathBuf>, Failure> {
        match (from, to) {
            (Place::Here(from), Place::Guest { vm, path }) => {
                let vm = self.running(&vm).await?;
                self.copy_in(&from, &vm, &path).await
            }
            (Place::Guest { vm, path }, Place::Here(to)) => {
                let vm = self.running(&vm).await?;
                self.copy_out(&vm, &path, to).await
            }
            (Place::Stream, Place::Guest { vm, path }) => {
                let vm = self.running(&vm).await?;
                self.stream_in(&vm, &path).await
            }
            (Place::Guest { vm, path }, Place::Stream) => {
                let vm = self.running(&vm).await?;
                self.stream_out(&vm, &path).await
            }
            (
                Place::Guest { vm, path },
                Place::Guest {
                    vm: vm_to,
                    path: to,
                },
            ) => {
                let (vm, vm_to) = (self.running(&vm).await?, self.running(&vm_to).await?);
                self.between(&vm, &path, &vm_to, &to).await
            }
            (Place::Here(_) | Place::Stream, Place::Here(_) | Place::Stream) => {
                unreachable!("one of the two is in a VM")
            }
        }
    }

    async fn copy_in(&self, from: &Path, vm: &str, to: &str) -> Result<Vec<PathBuf>, Failure> {
        let source = Source::new(from, here(from).map_err(|error| self.failed(&error))?);
        let landing = self.landing_in_guest(&source, vm, to).await?;
        let packing = Packing {
            from: from.to_owned(),
            root: landing.name.map(PathBuf::from),
            owners: match is_root() {
                true => Owners::Kept,
                false => Owners::Root,
            },
        };
        let (writer, reader) = archive::pieces();
        let meter = self.meter.clone();
        let packing = self.threads.spawn_blocking(move || {
            meter.expect(archive::size_of(&packing.from));
            archive::pack(&packing, writer, |bytes| meter.count(bytes))
        });
        let put = self.put(vm, &landing.directory, reader).await;
        self.both(put, packing.await.expect("packing does not panic"))
    }

    async fn copy_out(&self, vm: &str, from: &str, to: PathBuf) -> Result<Vec<PathBuf>, Failure> {
        let download = self.get(vm, from).await?;
        let (writer, reader) = archive::pieces();
        let name = PathBuf::from(from);
        let unpacking = self.threads.spawn_blocking(move || {
            let place = |kind: Kind| {
                let source = Source::new(&name, kind.into());
                place_here(&source, &to)
            };
            archive::unpack(reader, is_root(), place)
        });
        let fed = feed(download, writer, self.meter).await;
        let unpacked = unpacking.await.expect("unpacking does not panic");
        self.both(fed.map_err(Failure::from), unpacked)
    }

    async fn between(
        &self,
        vm: &str,
        from: &str,
        vm_to: &str,
        to: &str,
    ) -> Result<Vec<PathBuf>, Failure> {
        let found = self.look(vm, from).await?;
        if found == Found::Nothing {
            // Asked once more, the guest says it in its own words.
            self.get(vm, from).await?;
        }
        let source = Source::new(Path::new(from), found);
        let landing = self.landing_in_guest(&source, vm_to, to).await?;
        let download = self.get(vm, from).await?;
        let (first_writer, first) = archive::pieces();
        let (writer, second) = archive::pieces();
        let root = landing.name.map(PathBuf::from);
        let renaming = self
            .threads
            .spawn_blocking(move || archive::rename(first, writer, root.as_deref()));
        let (fed, put) = tokio::join!(
            feed(download, first_writer, self.meter),
            self.put(vm_to, &landing.directory, second)
        );
        let renamed = renaming.await.expect("renaming does not panic");
        // What the source's end says is nearer to the cause than that nothing more came.
        fed.map_err(Failure::from)?;
        self.both(put, renamed.map(|()| Vec::new()))
    }

    async fn stream_in(&self, vm: &str, to: &str) -> Result<Vec<PathBuf>, Failure> {
        if self.look_through(vm, to).await? != Found::Directory {
            let error = ArchiveError::Place(format!("there is no directory `{to}`"));
            return Err(self.failed(&error));
        }
        let mut stdin = tokio::io::stdin();
        let first = first_record(&mut stdin).await;
        let first = first.map_err(|error| {
            self.failed(&ArchiveError::Read {
                path: "-".into(),
                source: error,
            })
        })?;
        if !begins_archive(&first) {
            let mut error = ApiError::new(ErrorKind::Invalid, &self.words);
            error
                .causes
                .push("standard input is no tar stream".to_owned());
            return Err(error
                .with_hint(
                    "`tar c FILES | banger vm cp - VM:DIR` copies what `tar` packs, uncompressed; \
                     a file is copied by its name: `banger vm cp FILE VM:PATH`",
                )
                .into());
        }
        let meter = self.meter.clone();
        let input = ReaderStream::with_capacity(Cursor::new(first).chain(stdin), 128 << 10);
        let counted = input.inspect(move |piece| {
            meter.count(piece.as_ref().map_or(0, |bytes| bytes.len() as u64));
        });
        let put = self.client.put_files(vm, to, counted).await;
        put.map_err(|error| self.refused(error))?;
        Ok(Vec::new())
    }

    async fn stream_out(&self, vm: &str, from: &str) -> Result<Vec<PathBuf>, Failure> {
        let mut download = self.get(vm, from).await?;
        while let Some(piece) = download.next().await? {
            self.meter.count(piece.len() as u64);
            output::write(&piece)?;
        }
        Ok(Vec::new())
    }

    /// The id of a VM that runs.
    async fn running(&self, vm: &str) -> Result<String, Failure> {
        let vm = match self.client.vm(vm).await {
            Ok(vm) => vm,
            Err(error) => return Err(near::explain(self.client, vm, error).await),
        };
        if vm.state == VmState::Running {
            return Ok(vm.id.to_string());
        }
        let (name, state) = (&vm.name, vm.state);
        let order = match state {
            VmState::Paused => "resume",
            _ => "start",
        };
        let error = ApiError::new(
            ErrorKind::Conflict,
            format!("VM `{name}` is {state}, and its agent copies the files"),
        );
        Err(error
            .with_hint(format!("first: `banger vm {order} {name}`"))
            .into())
    }

    async fn landing_in_guest(
        &self,
        source: &Source,
        vm: &str,
        to: &str,
    ) -> Result<Landing, Failure> {
        let at_to = self.look_through(vm, to).await?;
        let to = Path::new(to);
        let at_parent = match at_to {
            Found::Nothing => {
                let parent = parent(to).display().to_string();
                self.look_through(vm, &parent).await?
            }
            Found::Directory | Found::File => Found::Directory,
        };
        Landing::find(source, to, at_to, at_parent).map_err(|error| self.failed(&error))
    }

    /// What is at a path of a guest, not behind a link.
    async fn look(&self, vm: &str, path: &str) -> Result<Found, Failure> {
        match self.client.files(vm, path).await {
            Ok(download) => Ok(first_kind(download).await?.into()),
            Err(ClientError::Api(error)) if error.kind == ErrorKind::NotFound => Ok(Found::Nothing),
            Err(error) => Err(self.refused(error)),
        }
    }

    /// What is at a path of a guest, also behind a link.
    async fn look_through(&self, vm: &str, path: &str) -> Result<Found, Failure> {
        match self.look(vm, path).await? {
            Found::File if !path.ends_with('/') => {
                // With a slash at its end a link is followed if it leads to a directory.
                let through = self.client.files(vm, &format!("{path}/")).await;
                match through {
                    Ok(download) => Ok(first_kind(download).await?.into()),
                    Err(_) => Ok(Found::File),
                }
            }
            found => Ok(found),
        }
    }

    async fn get(&self, vm: &str, path: &str) -> Result<Download, Failure> {
        let download = self.client.files(vm, path).await;
        download.map_err(|error| self.refused(error))
    }

    async fn put(&self, vm: &str, directory: &Path, archive: Pieces) -> Result<(), Failure> {
        let directory = directory.display().to_string();
        let put = self.client.put_files(vm, &directory, archive.into_stream());
        put.await.map_err(|error| self.refused(error))
    }

    /// The outcome of a copy by that of both its ends: the end that failed of itself says why.
    fn both(
        &self,
        guest: Result<(), Failure>,
        here: Result<Vec<PathBuf>, ArchiveError>,
    ) -> Result<Vec<PathBuf>, Failure> {
        match (guest, here) {
            (Ok(()), Ok(left_out)) => Ok(left_out),
            (Err(failure), Ok(_) | Err(ArchiveError::Gone | ArchiveError::Broken(_))) => {
                Err(failure)
            }
            (_, Err(error)) => Err(self.failed(&error)),
        }
    }

    fn failed(&self, error: &ArchiveError) -> Failure {
        ApiError::new(ErrorKind::Failed, &self.words)
            .caused_by(error)
            .into()
    }

    fn refused(&self, error: ClientError) -> Failure {
        let cause = ApiError::from(error);
        let mut error = ApiError::new(cause.kind, &self.words);
        error.causes.push(cause.message);
        error.causes.extend(cause.causes);
        (error.hint, error.request_id) = (cause.hint, cause.request_id);
        error.into()
    }
}

/// What is at a path of this host.
fn here(path: &Path) -> Result<Found, ArchiveError> {
    let metadata = match is_dot(path) || ends_with_slash(path) {
        true => std::fs::metadata(path),
        false => std::fs::symlink_metadata(path),
    };
    match metadata {
        Ok(metadata) if metadata.is_dir() => Ok(Found::Directory),
        Ok(_) => Ok(Found::File),
        Err(source) => Err(ArchiveError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// What is at a path of this host, also behind a link.
fn here_through(path: &Path) -> Found {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Found::Directory,
        Ok(_) => Found::File,
        Err(_) if path.is_symlink() => Found::File,
        Err(_) => Found::Nothing,
    }
}

/// The path on this host at which the copy's root is to be.
fn place_here(source: &Source, to: &Path) -> Result<PathBuf, ArchiveError> {
    let landing = Landing::find(source, to, here_through(to), here_through(&parent(to)))?;
    let directory = landing
        .directory
        .canonicalize()
        .map_err(|source| ArchiveError::Write {
            path: landing.directory.clone(),
            source,
        })?;
    Ok(match landing.name {
        Some(name) => directory.join(name),
        None => directory,
    })
}

/// Hands a download to a thread that reads it.
async fn feed(
    mut download: Download,
    into: PiecesWriter,
    meter: &Meter,
) -> Result<(), ClientError> {
    loop {
        match download.next().await {
            Ok(Some(piece)) => {
                meter.count(piece.len() as u64);
                if !into.send(Ok(piece)).await {
                    // The reader has what it wants, or has said why not.
                    return Ok(());
                }
            }
            Ok(None) => return Ok(()),
            Err(error) => {
                let broken = io::Error::new(io::ErrorKind::ConnectionAborted, error.to_string());
                into.send(Err(broken)).await;
                return Err(error);
            }
        }
    }
}

/// What the first entry of an archive is; the rest is not waited for.
async fn first_kind(mut download: Download) -> Result<Kind, Failure> {
    let mut bytes = BytesMut::new();
    loop {
        if let Some(kind) = kind_in(&bytes) {
            return Ok(kind);
        }
        match download.next().await? {
            Some(piece) => bytes.extend_from_slice(&piece),
            None => {
                let error = ApiError::new(ErrorKind::Unavailable, "the VM sent an empty archive");
                return Err(error.into());
            }
        }
    }
}

/// The first record of a stream, or less where the stream is shorter.
async fn first_record(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut record = Vec::with_capacity(RECORD);
    stream.take(RECORD as u64).read_to_end(&mut record).await?;
    Ok(record)
}

/// Whether a tar archive begins with this record: its checksum is right (POSIX.1-2017, ustar), or
/// it is the zeros that end an archive.
fn begins_archive(record: &[u8]) -> bool {
    if record.len() < RECORD {
        return false;
    }
    if record.iter().all(|byte| *byte == 0) {
        return true;
    }
    let mut header = tar::Header::new_old();
    header.as_mut_bytes().copy_from_slice(record);
    let sum: u32 = record
        .iter()
        .enumerate()
        .map(|(at, byte)| match at {
            148..156 => u32::from(b' '),
            _ => u32::from(*byte),
        })
        .sum();
    header.cksum().is_ok_and(|told| told == sum)
}

/// Reads the kind of the first entry; `None` if there are too few bytes yet. Records that say
/// long names and the like stand before it (POSIX.1-2017, pax; GNU tar's `L` and `K`).
fn kind_in(bytes: &[u8]) -> Option<Kind> {
    let mut at = 0;
    loop {
        let record = bytes.get(at..at + RECORD)?;
        match record[156] {
            b'x' | b'g' | b'L' | b'K' => {
                let mut header = tar::Header::new_old();
                header.as_mut_bytes().copy_from_slice(record);
                let size = usize::try_from(header.entry_size().unwrap_or(0)).ok()?;
                at = at.checked_add(RECORD + size.next_multiple_of(RECORD))?;
            }
            b'5' => return Some(Kind::Directory),
            _ => return Some(Kind::File),
        }
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Counts what is copied, and shows it once it is worth it.
#[derive(Clone, Debug)]
struct Meter {
    bar: ProgressBar,
    live: bool,
}

impl Meter {
    fn new(live: bool, what: &str) -> Self {
        Self {
            bar: bytes_bar(what),
            live,
        }
    }

    /// There will be so many bytes.
    fn expect(&self, total: u64) {
        expect_bytes(&self.bar, total);
    }

    fn count(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    async fn show_if_long(&self) -> std::convert::Infallible {
        sleep(SHORT).await;
        let _silence = self.live.then(KeySilence::begin);
        if self.live {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        std::future::pending().await
    }

    fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn guest(vm: &str, path: &str) -> Place {
        Place::Guest {
            vm: vm.into(),
            path: path.into(),
        }
    }

    #[test]
    fn a_colon_behind_a_name_is_a_vms() {
        for (text, place) in [
            ("a:/etc", guest("a", "/etc")),
            ("a:", guest("a", "/root")),
            ("a:x/y", guest("a", "/root/x/y")),
            ("a:b:c", guest("a", "/root/b:c")),
            ("./a:b", Place::Here("./a:b".into())),
            ("/a:b", Place::Here("/a:b".into())),
            (":x", Place::Here(":x".into())),
            ("x", Place::Here("x".into())),
            ("-", Place::Stream),
        ] {
            assert_eq!(Place::parse(text), place, "{text}");
        }
    }

    /// The table of `cp -r` and `docker cp`.
    #[test]
    fn a_copy_lands_where_cp_would_put_it() {
        use Found::{Directory, File, Nothing};
        let mut text = String::new();
        for (from, found) in [("x/f", File), ("x/d", Directory), ("x/d/.", Directory)] {
            let source = Source::new(Path::new(from), found);
            for to in ["/t", "/t/"] {
                for (at_to, at_parent) in [
                    (Directory, Directory),
                    (File, Directory),
                    (Nothing, Directory),
                    (Nothing, Nothing),
                ] {
                    let lands = match Landing::find(&source, Path::new(to), at_to, at_parent) {
                        Ok(Landing { directory, name }) => {
                            let name = name.map(|name| name.display().to_string());
                            let name = name.unwrap_or_else(|| "its contents".into());
                            format!("{} in {}", name, directory.display())
                        }
                        Err(error) => format!("refused: {error}"),
                    };
                    let at = match (at_to, at_parent) {
                        (Nothing, Directory) => "nothing".to_owned(),
                        (Nothing, _) => "nothing, not even its parent".to_owned(),
                        (found, _) => format!("{found:?}").to_lowercase(),
                    };
                    text.push_str(&format!("{from:6} to {to:3} which is {at}: {lands}\n"));
                }
            }
        }
        insta::assert_snapshot!(text);
    }

    #[test]
    fn the_first_entry_is_found_behind_what_says_its_long_name() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        let long = "n".repeat(700);
        builder
            .append_data(&mut header, &long, io::empty())
            .unwrap();
        let archive = builder.into_inner().unwrap();
        assert_eq!(kind_in(&archive), Some(Kind::Directory));
        assert_eq!(kind_in(&archive[..1600]), None);
        assert_eq!(kind_in(&[]), None);
    }

    #[test]
    fn only_a_tar_stream_is_taken_for_one() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        builder.append_data(&mut header, "file", &b"x"[..]).unwrap();
        let archive = builder.into_inner().unwrap();
        assert!(begins_archive(&archive[..RECORD]));
        assert!(begins_archive(&[0; RECORD]), "an empty archive");
        assert!(!begins_archive(&archive[..100]));
        assert!(!begins_archive(&[]));
        assert!(!begins_archive(&[b'x'; RECORD]));
        let mut gzip = vec![0x1f, 0x8b, 8];
        gzip.resize(RECORD, 7);
        assert!(!begins_archive(&gzip));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = kind_in(&bytes);
            let _ = begins_archive(&bytes[..bytes.len().min(RECORD)]);
        }

        #[test]
        fn no_place_panics(text in "\\PC{0,20}") {
            let _ = Place::parse(&text);
        }
    }
}

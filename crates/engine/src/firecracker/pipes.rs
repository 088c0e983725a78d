//! What Firecracker writes into named pipes: its log, and what it counts.
//!
//! It would write into files from where it stands, without looking at their ends, so that one
//! that is begun anew would get a hole as long as what it held before. A pipe holds 64 KiB: what
//! has no room while no daemon reads is left out and counted (`logger` in the metrics), and holds
//! up nothing.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FileType, Mode, OFlags};
use serde_json::Value;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::directory::{self, Owner};
use super::disk_errors::{self, Failure};
use crate::{Counters, Place, reactor};

/// How much a pipe holds (pipe(7)), and so how much is read at once.
const CHUNK: usize = 64 * 1024;
/// Longest line that is read. One of metrics has some KiB for each device.
const LINE_MAX: usize = 1 << 20;

/// Groups of metrics that are of use to whoever runs a VM. Those of devices are called
/// `<kind>_<id>`, beside one for all of the kind.
const GROUPS: [&str; 5] = ["entropy", "logger", "seccomp", "vcpu", "vsock"];
/// Kinds of devices of which each one's metrics are of use.
const DEVICES: [&str; 2] = ["block_", "net_"];

/// Both pipes of one machine.
#[derive(Debug)]
pub(super) struct Pipes {
    log: AsyncFd<OwnedFd>,
    logged: Mutex<Logged>,
    /// The log tells of failed requests.
    failed: Notify,
    metrics: AsyncFd<OwnedFd>,
    counted: Mutex<Counted>,
}

#[derive(Debug)]
struct Logged {
    file: File,
    lines: Lines,
    /// Of which nobody has been told yet.
    failures: BTreeSet<Failure>,
}

#[derive(Debug, Default)]
struct Counted {
    lines: Lines,
    counters: Counters,
}

/// Makes lines of what comes in pieces.
#[derive(Debug, Default)]
struct Lines {
    /// The beginning of one.
    begun: Vec<u8>,
}

impl Pipes {
    /// Makes both, and reads them from now on.
    pub(super) fn make(place: &Place, owner: &Owner) -> io::Result<Self> {
        for path in [place.log_pipe(), place.metrics_pipe()] {
            directory::make_pipe(&path, owner)?;
        }
        Self::read(place)
    }

    /// Those of a machine that runs. `None`: it has none.
    pub(super) fn open(place: &Place) -> io::Result<Option<Self>> {
        match Self::read(place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some),
        }
    }

    fn read(place: &Place) -> io::Result<Self> {
        Ok(Self {
            log: reactor::readable(open(&place.log_pipe())?)?,
            metrics: reactor::readable(open(&place.metrics_pipe())?)?,
            logged: Mutex::new(Logged {
                file: File::options().append(true).open(place.engine_log())?,
                lines: Lines::default(),
                failures: BTreeSet::new(),
            }),
            failed: Notify::new(),
            counted: Mutex::default(),
        })
    }

    /// Takes what comes, for as long as it is polled.
    pub(super) async fn follow(&self) {
        tokio::join!(
            follow(&self.log, || self.take_log()),
            follow(&self.metrics, || drop(self.take_metrics())),
        );
    }

    /// Takes what has come of the log.
    pub(super) fn take_log(&self) {
        let mut logged = held(&self.logged);
        let bytes = taken(&self.log);
        if let Err(error) = logged.file.write_all(&bytes) {
            tracing::debug!(%error, "could not write the engine's log");
        }
        logged.look_for_failures(&bytes);
        if !logged.failures.is_empty() {
            self.failed.notify_one();
        }
    }

    /// Returns the failed requests that the log has told of since the last call, once there are
    /// some. Cancel-safe, for one at a time.
    pub(super) async fn failures(&self) -> Vec<Failure> {
        loop {
            let failures = std::mem::take(&mut held(&self.logged).failures);
            if !failures.is_empty() {
                return failures.into_iter().collect();
            }
            self.failed.notified().await;
        }
    }

    /// Takes what has come of the metrics; returns what has been counted since this process has
    /// the pipe.
    pub(super) fn take_metrics(&self) -> Counters {
        let mut counted = held(&self.counted);
        counted.add(&taken(&self.metrics));
        counted.counters.clone()
    }
}

/// Calls `take` whenever there is something to be read.
async fn follow(pipe: &AsyncFd<OwnedFd>, take: impl Fn()) {
    // It fails with the runtime.
    while let Ok(mut ready) = pipe.readable().await {
        take();
        // What comes from now on makes it ready again.
        ready.clear_ready();
        // But there may be more than was taken.
        take();
        tokio::task::yield_now().await;
    }
}

/// Opens a pipe to be read. Open for writing as well, it has no end while nobody else has it open.
fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let pipe = rustix::fs::open(path, flags, Mode::empty())?;
    let found = FileType::from_raw_mode(rustix::fs::fstat(&pipe)?.st_mode);
    match found {
        FileType::Fifo => Ok(pipe),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("`{}` is no pipe", path.display()),
        )),
    }
}

/// What is in the pipe now.
fn taken(pipe: &AsyncFd<OwnedFd>) -> Vec<u8> {
    let mut chunk = vec![0; CHUNK];
    // Without an end there is nothing else to be told than that there is nothing.
    let count = rustix::io::read(pipe.get_ref().as_fd(), &mut chunk[..]).unwrap_or(0);
    chunk.truncate(count);
    chunk
}

/// What is held is whole at any time.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Logged {
    fn look_for_failures(&mut self, bytes: &[u8]) {
        for line in self.lines.whole(bytes) {
            let failure = disk_errors::failure(&String::from_utf8_lossy(&line));
            self.failures.extend(failure);
        }
    }
}

impl Lines {
    /// The lines that end in `bytes`. Those that are too long are left out.
    fn whole(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut whole = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.begun.len() + part.len() > LINE_MAX {
                self.begun.clear();
                continue;
            }
            self.begun.extend_from_slice(part);
            if part.ends_with(b"\n") {
                whole.push(std::mem::take(&mut self.begun));
            }
        }
        whole
    }
}

impl Counted {
    /// Adds what the lines count that end in `bytes`: each tells what came since the one before.
    fn add(&mut self, bytes: &[u8]) {
        for line in self.lines.whole(bytes) {
            match serde_json::from_slice(&line) {
                Ok(metrics) => self.add_all(&metrics),
                Err(error) => tracing::debug!(%error, "a line of metrics makes no sense"),
            }
        }
    }

    fn add_all(&mut self, metrics: &Value) {
        let groups = metrics.as_object().into_iter().flatten();
        for (group, counts) in groups.filter(|(group, _)| is_of_use(group)) {
            for (name, count) in counts.as_object().into_iter().flatten() {
                // What has parts of its own is a latency.
                if let Some(count) = count.as_u64() {
                    self.counters.add(group, name, count);
                }
            }
        }
    }
}

fn is_of_use(group: &str) -> bool {
    GROUPS.contains(&group) || DEVICES.iter().any(|kind| group.starts_with(kind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_proto::id::{InstanceId, VmId};
    use proptest::prelude::*;
    use std::fs::{self, OpenOptions};

    fn place(directory: &Path) -> Place {
        let place = Place {
            instance: InstanceId::new(),
            slot: 7,
            vm: VmId::new(),
            runtime_dir: directory.to_owned(),
            log_dir: directory.to_owned(),
        };
        directory::make(&place.machine_dir(), &Owner::This).unwrap();
        fs::write(place.engine_log(), "before\n").unwrap();
        place
    }

    #[tokio::test]
    async fn the_log_goes_on_in_the_file_however_often_that_is_begun_anew() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(directory.path());
        assert!(Pipes::open(&place).unwrap().is_none());
        let pipes = Pipes::make(&place, &Owner::This).unwrap();
        let mut engine = OpenOptions::new()
            .read(true)
            .write(true)
            .open(place.log_pipe())
            .unwrap();
        engine.write_all(b"one\n").unwrap();
        pipes.take_log();
        assert_eq!(
            fs::read_to_string(place.engine_log()).unwrap(),
            "before\none\n"
        );
        fs::write(place.engine_log(), "").unwrap();
        engine.write_all(b"two\n").unwrap();
        drop(pipes);
        // What was not read yet is there for the next daemon.
        let pipes = Pipes::open(&place).unwrap().unwrap();
        pipes.take_log();
        assert_eq!(fs::read_to_string(place.engine_log()).unwrap(), "two\n");
    }

    #[tokio::test]
    async fn failed_requests_are_told_of_once_whatever_the_pieces_are() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(directory.path());
        let pipes = Pipes::make(&place, &Owner::This).unwrap();
        let mut engine = OpenOptions::new()
            .write(true)
            .open(place.log_pipe())
            .unwrap();
        let line = "x [banger-1f2e-7:fc_vcpu 0] Failed to execute Out virtio block request: \
                    FileEngine(Sync(Transfer(IOError(Os { code: 5, kind: Uncategorized, message: \
                    \"Input/output error\" }))))\n";
        let (first, rest) = line.split_at(90);
        let mut writes = async || {
            engine.write_all(first.as_bytes()).unwrap();
            pipes.take_log();
            tokio::task::yield_now().await;
            engine.write_all(rest.as_bytes()).unwrap();
            engine.write_all(line.as_bytes()).unwrap();
            pipes.take_log();
        };
        let (failures, ()) = tokio::join!(pipes.failures(), writes());
        assert_eq!(failures, [disk_errors::failure(line).unwrap()]);
        let more = std::future::poll_fn(|context| {
            let failures = std::pin::pin!(pipes.failures());
            std::task::Poll::Ready(failures.poll(context).is_ready())
        });
        assert!(!more.await);
    }

    #[tokio::test]
    async fn what_is_counted_adds_up() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(directory.path());
        let pipes = Pipes::make(&place, &Owner::This).unwrap();
        let mut engine = OpenOptions::new()
            .write(true)
            .open(place.metrics_pipe())
            .unwrap();
        let line = |count: u64| {
            format!(
                "{{\"utc_timestamp_ms\":1,\"block\":{{\"read_count\":9}},\
                 \"block_work\":{{\"read_count\":{count},\"read_agg\":{{\"sum_us\":5}}}},\
                 \"vcpu\":{{\"failures\":0}}}}\n"
            )
        };
        let text = line(3) + "{ nonsense }\n" + &line(4);
        let (first, rest) = text.split_at(40);
        engine.write_all(first.as_bytes()).unwrap();
        assert_eq!(pipes.take_metrics(), Counters::default());
        engine.write_all(rest.as_bytes()).unwrap();
        let counted: Vec<_> = pipes
            .take_metrics()
            .iter()
            .map(|(group, name, count)| format!("{group}.{name} {count}"))
            .collect();
        assert_eq!(counted, ["block_work.read_count 7", "vcpu.failures 0"]);
    }

    #[test]
    fn a_line_without_end_is_not_kept() {
        let mut lines = Lines::default();
        for _ in 0..20 {
            assert!(lines.whole(&[b'x'; CHUNK]).is_empty());
        }
        assert!(lines.begun.len() <= LINE_MAX);
    }

    proptest! {
        #[test]
        fn whatever_a_pipe_brings_is_taken(pieces in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..100), 0..10))
        {
            let mut counted = Counted::default();
            for piece in pieces {
                counted.add(&piece);
            }
        }
    }
}

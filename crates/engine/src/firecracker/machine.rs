//! A running Firecracker: orders go over its API, its end is seen by its pidfd, and the end of
//! its guest by the console.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use banger_proto::api::EngineKind;
use banger_proto::size::ByteSize;
use rustix::process::Signal;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::api::{self, ACTIVITY, Order, Request};
use super::config::same_drive;
use super::console::{self, LastWords};
use super::disk_errors::{self, Tally};
use super::link::{self, Door};
use super::pipes::Pipes;
use crate::birth::Birth;
use crate::machine::refuse_to_shrink;
use crate::process::{Ended, Process, ProcessFailure};
use crate::socket::SocketOf;
use crate::{
    Activity, AgentStream, ControlError, Counters, Disk, Exit, ExitCause, LaunchError, Machine,
    MachineHandle, Place, Signs, tail,
};

/// How long Firecracker may take to answer an order.
const ORDER_LIMIT: Duration = Duration::from_secs(15);
/// How long Firecracker may take to end once it has hung up.
const LAST_WORD_LIMIT: Duration = Duration::from_secs(2);
/// How long a guest that says that it is off, and still answers, is left alone until it is asked
/// again.
const PROOFS: [Duration; 4] = [
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(20),
];
/// Number of lines of Firecracker's log that explain an end.
const LOG_LINES: usize = 6;
/// The versions whose guests nobody reaches any more once the API has resumed them: they wait for
/// the guest to acknowledge an event of its vsock that they have not sent. Firecracker has mended
/// it after 1.16.1 ("do not arm the TRANSPORT_RESET RX gate on bare resume"). Their processes are
/// stopped and continued instead.
const DEAF_AFTER_RESUME: [&str; 2] = ["1.16.0", "1.16.1"];
/// How Firecracker ends its log when it ends as it should.
const ORDERLY_END: &str = "exit_code=0";

#[derive(Debug)]
pub(super) struct FirecrackerMachine {
    handle: MachineHandle,
    place: Place,
    process: Process,
    api: SocketOf,
    link: SocketOf,
    door: Door,
    /// `None`: it was launched by a banger that made none.
    pipes: Option<Arc<Pipes>>,
    ending: Arc<Ending>,
    /// What its log tells of.
    signs: watch::Sender<Signs>,
    /// Look for the end of the guest, at what comes out of the pipes, and for disks that fail.
    watchers: [AbortHandle; 3],
}

/// Who has ended the process, when it was not itself.
#[derive(Debug, Default)]
struct Ending {
    /// This side: an adopted process's status is not told to us.
    killed: AtomicBool,
    /// This side, because the guest was off.
    guest_off: AtomicBool,
}

impl FirecrackerMachine {
    /// Takes hold of a process; `door` is where its agent knocks.
    pub(super) fn new(place: Place, process: Process, door: Door, pipes: Option<Pipes>) -> Self {
        let handle = MachineHandle {
            engine: EngineKind::Firecracker,
            process: process.id().clone(),
        };
        let socket = |path| SocketOf::new(path, process.id().pid);
        let (api, link) = (socket(place.api_socket()), socket(place.vsock()));
        let ending = Arc::new(Ending::default());
        let pipes = pipes.map(Arc::new);
        let end = EndWatch {
            place: place.clone(),
            process: process.clone(),
            api: api.clone(),
            link: link.clone(),
            ending: Arc::clone(&ending),
        };
        let signs = watch::Sender::new(Signs::default());
        let disks = DiskWatch {
            process: process.clone(),
            api: api.clone(),
            signs: signs.clone(),
        };
        let watchers = [
            tokio::spawn(end.end_with_guest()).abort_handle(),
            tokio::spawn(follow(pipes.clone())).abort_handle(),
            tokio::spawn(disks.tell_of_failures(pipes.clone())).abort_handle(),
        ];
        Self {
            handle,
            place,
            process,
            api,
            link,
            door,
            pipes,
            ending,
            signs,
            watchers,
        }
    }

    /// Makes and starts the machine; `birth` watches for the socket of the API.
    pub(super) async fn set_up(
        &self,
        birth: &Birth,
        requests: Vec<Request>,
        limit: Duration,
    ) -> Result<(), LaunchError> {
        let set_up = async {
            self.listening(birth)
                .await
                .map_err(|source| ControlError::Io {
                    order: "start",
                    source,
                })?;
            for request in requests {
                api::ask(&self.api, request, limit).await?;
            }
            Ok(())
        };
        let result = tokio::select! {
            biased;
            ended = self.process.wait() => return Err(self.refused(ended)),
            result = tokio::time::timeout(limit, set_up) => result,
        };
        match result {
            Ok(Ok(())) => Ok(()),
            // It hung up, mostly because it is about to end, which is the better thing to say.
            Ok(Err(error @ ControlError::Io { .. })) => {
                match tokio::time::timeout(LAST_WORD_LIMIT, self.process.wait()).await {
                    Ok(ended) => Err(self.refused(ended)),
                    Err(_) => Err(LaunchError::Control(error)),
                }
            }
            Ok(Err(error)) => Err(LaunchError::Control(error)),
            Err(_) => Err(LaunchError::Control(ControlError::Timeout {
                order: "start",
                seconds: limit.as_secs(),
            })),
        }
    }

    /// Returns when somebody listens at the API's socket.
    async fn listening(&self, birth: &Birth) -> io::Result<()> {
        birth.happened().await?;
        // Between the birth of a socket's file and its first moment of listening there are
        // microseconds, of which nothing tells.
        while let Err(error) = self.api.connect().await {
            if error.kind() != io::ErrorKind::ConnectionRefused {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    fn refused(&self, ended: Ended) -> LaunchError {
        LaunchError::Refused(self.failure(ended))
    }

    fn failure(&self, ended: Ended) -> ProcessFailure {
        ProcessFailure {
            command: "firecracker".to_owned(),
            status: ended.to_string(),
            stderr: telling(&self.log()),
        }
    }

    fn log(&self) -> Vec<String> {
        if let Some(pipes) = &self.pipes {
            pipes.take_log();
        }
        tail(&self.place.engine_log(), LOG_LINES)
    }

    async fn order(&self, request: impl Into<Request>) -> Result<Value, ControlError> {
        if self.process.ended().is_some() {
            return Err(ControlError::Ended);
        }
        let request = request.into();
        if is_held(&self.process) {
            return Err(ControlError::Refused {
                order: request.name,
                reason: "its process is stopped".to_owned(),
            });
        }
        api::ask(&self.api, request, ORDER_LIMIT).await
    }

    fn send(&self, order: &'static str, signal: Signal) -> Result<(), ControlError> {
        let sent = self.process.signal(signal);
        sent.map_err(|source| ControlError::Io { order, source })
    }

    /// Why it ended, from all that is known of it. `None`: it failed.
    fn cause(&self, ended: Ended) -> Option<ExitCause> {
        let killed = self.ending.killed.load(Ordering::Relaxed);
        let off = self.ending.guest_off.load(Ordering::Relaxed)
            || console::last_words(&self.place.console_log()) == LastWords::Off;
        let orderly = self
            .log()
            .last()
            .is_some_and(|line| line.ends_with(ORDERLY_END));
        cause(
            ended,
            &Clues {
                killed,
                off,
                orderly,
            },
        )
    }
}

impl Drop for FirecrackerMachine {
    fn drop(&mut self) {
        // The machine goes on, for whoever adopts it.
        for watcher in &self.watchers {
            watcher.abort();
        }
    }
}

async fn follow(pipes: Option<Arc<Pipes>>) {
    if let Some(pipes) = pipes {
        pipes.follow().await;
    }
}

/// Whether a signal holds it, so that it takes no orders.
fn is_held(process: &Process) -> bool {
    // One that has ended is not held by anything.
    process.is_stopped().unwrap_or(false)
}

/// Tells of disks that the host cannot read or write.
struct DiskWatch {
    process: Process,
    api: SocketOf,
    signs: watch::Sender<Signs>,
}

impl DiskWatch {
    async fn tell_of_failures(self, pipes: Option<Arc<Pipes>>) {
        let Some(pipes) = pipes else {
            return;
        };
        let mut tally = Tally::default();
        while self.process.ended().is_none() {
            let failures = pipes.failures().await;
            match api::ask(&self.api, Order::FLUSH_METRICS, ORDER_LIMIT).await {
                Ok(_) => tally.tell(&failures, &pipes.take_metrics(), &self.signs),
                Err(error) => tracing::warn!(%error, ?failures, "which disk fails is not known"),
            }
            tokio::time::sleep(disk_errors::PAUSE).await;
        }
    }
}

/// Ends the process of a guest that is off: it would stay for ever.
struct EndWatch {
    place: Place,
    process: Process,
    api: SocketOf,
    link: SocketOf,
    ending: Arc<Ending>,
}

impl EndWatch {
    async fn end_with_guest(self) {
        if let Err(error) = self.guest_is_off().await {
            tracing::warn!(%error, "whether the guest powers off is not seen");
            return;
        }
        if self.process.ended().is_none() {
            self.ending.guest_off.store(true, Ordering::Relaxed);
        }
        if let Err(error) = self.process.kill().await {
            tracing::warn!(%error, "could not end the engine of a guest that is off");
        }
    }

    /// Returns once the guest says that it is off, and is.
    async fn guest_is_off(&self) -> io::Result<()> {
        let console = console::Watch::begin(self.place.console_log())?;
        loop {
            console.says_off().await?;
            for pause in PROOFS {
                if link::is_silent(&self.link).await && !self.is_paused().await {
                    return Ok(());
                }
                // It may be about to stop. Or somebody has only printed these words.
                tokio::time::sleep(pause).await;
            }
            console.changed().await?;
        }
    }

    /// Whether the guest is silent for a reason that this side has made.
    async fn is_paused(&self) -> bool {
        if is_held(&self.process) {
            return true;
        }
        let described = api::ask(&self.api, Order::DESCRIBE, ORDER_LIMIT).await;
        described.is_ok_and(|described| activity_of(&described) == Some(Activity::Paused))
    }
}

#[async_trait]
impl Machine for FirecrackerMachine {
    fn handle(&self) -> &MachineHandle {
        &self.handle
    }

    fn place(&self) -> &Place {
        &self.place
    }

    async fn connect(&self) -> io::Result<Box<dyn AgentStream>> {
        tokio::select! {
            stream = self.door.reach_agent(&self.link) => Ok(Box::new(stream?)),
            _ = self.process.wait() => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }

    fn signs(&self) -> watch::Receiver<Signs> {
        self.signs.subscribe()
    }

    async fn exited(&self) -> Exit {
        let ended = self.process.wait().await;
        Exit {
            cause: match self.cause(ended) {
                Some(cause) => cause,
                None => ExitCause::Failed(self.failure(ended)),
            },
            engine_log: self.log(),
        }
    }

    async fn kill(&self) -> Result<(), ControlError> {
        if self.process.ended().is_none() {
            self.ending.killed.store(true, Ordering::Relaxed);
        }
        let killed = self.process.kill().await;
        killed.map(|_| ()).map_err(|source| ControlError::Io {
            order: "kill",
            source,
        })
    }

    fn signal(&self, signal: Signal) -> Result<(), ControlError> {
        self.send("signal", signal)
    }

    /// Firecracker has no power button. Ctrl-Alt-Del has a guest restart in an orderly way, and
    /// a machine does not outlive that.
    async fn power_button(&self) -> Result<(), ControlError> {
        self.order(Order::CTRL_ALT_DEL).await.map(|_| ())
    }

    async fn pause(&self) -> Result<(), ControlError> {
        if is_held(&self.process) {
            return Ok(());
        }
        let described = self.order(Order::DESCRIBE).await?;
        match is_deaf_after_resume(&described) {
            true => self.send("pause", Signal::STOP),
            false => self.order(Order::PAUSE).await.map(|_| ()),
        }
    }

    async fn resume(&self) -> Result<(), ControlError> {
        match is_held(&self.process) {
            true => self.send("resume", Signal::CONT),
            false => self.order(Order::RESUME).await.map(|_| ()),
        }
    }

    async fn grow_disk(&self, disk: &Disk, size: ByteSize) -> Result<(), ControlError> {
        // Which of its descriptors it is, only the machine knows.
        let config = self.order(Order::DESCRIBE_CONFIG).await?;
        let path = path_of_drive(&config, disk).ok_or_else(|| ControlError::Refused {
            order: "grow",
            reason: format!("it has no {} disk", disk.role.as_str()),
        })?;
        refuse_to_shrink(disk, size)?;
        crate::files::disk(&disk.path, disk.access)
            .and_then(|file| file.set_len(size.bytes()))
            .map_err(|source| ControlError::Io {
                order: "grow",
                source,
            })?;
        self.order(same_drive(disk.role, path)).await.map(|_| ())
    }

    async fn counters(&self) -> Result<Counters, ControlError> {
        let Some(pipes) = &self.pipes else {
            return Ok(Counters::default());
        };
        if is_held(&self.process) {
            return Ok(pipes.take_metrics());
        }
        // It has written them when it answers.
        self.order(Order::FLUSH_METRICS).await?;
        Ok(pipes.take_metrics())
    }

    async fn activity(&self) -> Result<Activity, ControlError> {
        if is_held(&self.process) {
            return Ok(Activity::Paused);
        }
        let answer = self.order(Order::DESCRIBE).await?;
        activity_of(&answer).ok_or_else(|| ControlError::Malformed {
            order: "describe",
            answer: answer.to_string().chars().take(80).collect(),
        })
    }
}

/// What a machine says that it does.
fn activity_of(described: &Value) -> Option<Activity> {
    let state = described.get("state").and_then(Value::as_str);
    let known = ACTIVITY.iter().find(|(word, _)| Some(*word) == state);
    known.map(|(_, activity)| *activity)
}

/// Whether the API of this machine must not resume it.
fn is_deaf_after_resume(described: &Value) -> bool {
    let version = described.get("vmm_version").and_then(Value::as_str);
    version.is_some_and(|version| DEAF_AFTER_RESUME.contains(&version))
}

/// By which path a machine, as it describes itself, has opened a disk.
fn path_of_drive<'a>(config: &'a Value, disk: &Disk) -> Option<&'a str> {
    let drives = config.get("drives")?.as_array()?;
    let is_it = |drive: &&Value| drive["drive_id"] == disk.role.as_str();
    drives.iter().find(is_it)?["path_on_host"].as_str()
}

/// The lines of its log that tell something, without the time and the thread in front:
/// `2026-01-02T03:04:05.678 [banger-1f2e-7:main] …`.
fn telling(log: &[String]) -> Vec<String> {
    let words = |line: &String| {
        let (_, words) = line.split_once(" [banger-")?.1.split_once("] ")?;
        Some(words.to_owned())
    };
    let own: Vec<String> = log.iter().filter_map(words).collect();
    match own.is_empty() {
        true => log.to_vec(),
        false => own,
    }
}

/// What is known of an end beside the status.
#[derive(Clone, Copy, Debug)]
struct Clues {
    /// This side has killed it.
    killed: bool,
    /// The guest was off, or was about to be ended for that.
    off: bool,
    /// Firecracker's log has an end.
    orderly: bool,
}

/// Why a Firecracker ended. `None`: it failed.
fn cause(ended: Ended, clues: &Clues) -> Option<ExitCause> {
    if let Ended::Status(status) = ended
        && !matches!(
            (status.code(), status.signal()),
            (Some(0), _)
                | (
                    _,
                    Some(libc::SIGKILL | libc::SIGTERM | libc::SIGINT | libc::SIGHUP)
                )
        )
    {
        return None;
    }
    if clues.off {
        return Some(ExitCause::PoweredOff);
    }
    match ended {
        Ended::Status(status) => Some(match status.signal() {
            Some(signal) => ExitCause::Killed {
                signal: Some(signal),
            },
            // It ends by itself only when the guest's CPUs were reset.
            None => ExitCause::Reset,
        }),
        Ended::Unseen if clues.orderly => Some(ExitCause::Reset),
        Ended::Unseen if clues.killed => Some(ExitCause::Killed {
            signal: Some(libc::SIGKILL),
        }),
        // Nobody was told of its status, but it was killed by another or crashed.
        Ended::Unseen => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Access;
    use banger_proto::agent::DiskRole;
    use serde_json::json;
    use std::process::ExitStatus;

    #[test]
    fn the_cause_of_an_end_is_what_is_known_best() {
        let code = |code: i32| Ended::Status(ExitStatus::from_raw(code << 8));
        let signal = |signal| Ended::Status(ExitStatus::from_raw(signal));
        let clues = |killed, off, orderly| Clues {
            killed,
            off,
            orderly,
        };
        let nothing = clues(false, false, false);
        let killed = |signal| ExitCause::Killed {
            signal: Some(signal),
        };
        for (ended, clues, expected) in [
            (code(0), nothing, Some(ExitCause::Reset)),
            (
                signal(9),
                clues(false, true, false),
                Some(ExitCause::PoweredOff),
            ),
            (
                Ended::Unseen,
                clues(false, true, false),
                Some(ExitCause::PoweredOff),
            ),
            (signal(9), clues(true, false, false), Some(killed(9))),
            (signal(15), nothing, Some(killed(15))),
            (code(1), nothing, None),
            (code(148), clues(false, true, false), None),
            (signal(11), nothing, None),
            (
                Ended::Unseen,
                clues(false, false, true),
                Some(ExitCause::Reset),
            ),
            (Ended::Unseen, clues(true, false, false), Some(killed(9))),
            (Ended::Unseen, nothing, None),
        ] {
            assert_eq!(cause(ended, &clues), expected, "{ended:?} {clues:?}");
        }
    }

    #[test]
    fn only_the_versions_that_cannot_do_it_are_kept_from_resuming() {
        for (version, is_deaf) in [
            ("1.10.1", false),
            ("1.15.1", false),
            ("1.16.0", true),
            ("1.16.1", true),
            ("1.16.2", false),
            ("1.17.0", false),
        ] {
            let described = json!({ "state": "Running", "vmm_version": version });
            assert_eq!(is_deaf_after_resume(&described), is_deaf, "{version}");
        }
        assert!(!is_deaf_after_resume(&json!({ "state": "Running" })));
    }

    #[test]
    fn an_explanation_has_firecrackers_words_and_not_its_clock() {
        let log = [
            "2026-11-23T17:50:40.123456789 [banger-1f2e-7:main] Running Firecracker v1.16.1",
            "2026-11-23T17:50:40.123456789 [banger-1f2e-7:main] Invalid memory size.",
            "r: RunWithApi(Whatever)",
        ]
        .map(str::to_owned);
        assert_eq!(
            telling(&log),
            ["Running Firecracker v1.16.1", "Invalid memory size."]
        );
        assert_eq!(telling(&log[2..]), ["r: RunWithApi(Whatever)"]);
    }

    #[test]
    fn a_disk_is_found_in_what_a_machine_says_of_itself() {
        let config = json!({ "drives": [
            { "drive_id": "base", "path_on_host": "/proc/self/fd/9" },
            { "drive_id": "work", "path_on_host": "/proc/self/fd/12" },
        ]});
        let disk = |role| Disk {
            role,
            path: "/w".into(),
            access: Access::ReadWrite,
        };
        let found = path_of_drive(&config, &disk(DiskRole::Work));
        assert_eq!(found, Some("/proc/self/fd/12"));
        assert_eq!(path_of_drive(&config, &disk(DiskRole::System)), None);
        assert_eq!(path_of_drive(&json!({}), &disk(DiskRole::Work)), None);
    }
}

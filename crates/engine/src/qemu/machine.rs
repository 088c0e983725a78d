//! A running QEMU: orders go over QMP, its end is seen by its pidfd.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use banger_proto::api::EngineKind;
use banger_proto::size::ByteSize;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::link::Link;
use super::qmp::{LastWord, Qmp, Shutdown};
use crate::machine::refuse_to_shrink;
use crate::process::{Ended, Process, ProcessFailure};
use crate::{
    Activity, AgentStream, ControlError, Disk, Exit, ExitCause, LaunchError, Machine,
    MachineHandle, Place, Signs, socket, tail,
};

/// How long QEMU may take to answer an order. Its main loop waits for the guest's CPUs.
const ORDER_LIMIT: Duration = Duration::from_secs(15);
/// How long QEMU's last words may take after its end; they are in the socket by then.
const LAST_WORD_LIMIT: Duration = Duration::from_secs(2);
/// Number of lines of QEMU's log that explain an end.
const LOG_LINES: usize = 6;

#[derive(Debug)]
pub(super) struct QemuMachine {
    handle: MachineHandle,
    place: Place,
    process: Process,
    /// Replaced when the conversation has broken off and QEMU still runs.
    qmp: watch::Sender<Option<Qmp>>,
    /// What QEMU tells unasked, in whichever conversation.
    signs: watch::Sender<Signs>,
    /// Whether this side has killed it: an adopted process's status is not told to us.
    killed: AtomicBool,
}

impl QemuMachine {
    /// Takes hold of a process and of its control socket.
    pub(super) async fn new(place: Place, process: Process) -> Self {
        let handle = MachineHandle {
            engine: EngineKind::Qemu,
            process: process.id().clone(),
        };
        // Without it the machine runs all the same; orders try again.
        let signs = watch::Sender::new(Signs::default());
        let qmp = Qmp::connect(&place.control_socket(), signs.clone())
            .await
            .ok();
        Self {
            handle,
            place,
            process,
            qmp: watch::channel(qmp).0,
            signs,
            killed: AtomicBool::new(false),
        }
    }

    /// Returns when QEMU has accepted its arguments, opened everything and runs the guest:
    /// it answers orders only then.
    pub(super) async fn await_launch(&self, limit: Duration) -> Result<(), LaunchError> {
        let answer = tokio::select! {
            biased;
            answer = self.order_within("query-status", None, limit) => answer,
            ended = self.process.wait() => return Err(self.refused(ended)),
        };
        match answer {
            Ok(_) => Ok(()),
            // It hung up, so it is about to end.
            Err(ControlError::Ended) => {
                match tokio::time::timeout(LAST_WORD_LIMIT, self.process.wait()).await {
                    Ok(ended) => Err(self.refused(ended)),
                    Err(_) => Err(LaunchError::Control(ControlError::Ended)),
                }
            }
            Err(error) => Err(LaunchError::Control(error)),
        }
    }

    fn refused(&self, ended: Ended) -> LaunchError {
        LaunchError::Refused(self.failure(ended))
    }

    fn failure(&self, ended: Ended) -> ProcessFailure {
        ProcessFailure {
            command: "qemu-system-x86_64".to_owned(),
            status: ended.to_string(),
            stderr: self
                .log()
                .iter()
                .map(|line| without_program(line))
                .collect(),
        }
    }

    fn log(&self) -> Vec<String> {
        tail(&self.place.engine_log(), LOG_LINES)
    }

    async fn order(&self, name: &'static str) -> Result<Value, ControlError> {
        self.order_within(name, None, ORDER_LIMIT).await
    }

    async fn order_within(
        &self,
        name: &'static str,
        arguments: Option<Value>,
        limit: Duration,
    ) -> Result<Value, ControlError> {
        if self.process.ended().is_some() {
            return Err(ControlError::Ended);
        }
        let current = self.qmp.borrow().clone();
        let qmp = match current.filter(|qmp| !qmp.is_over()) {
            Some(qmp) => qmp,
            None => {
                let qmp = Qmp::connect(&self.place.control_socket(), self.signs.clone())
                    .await
                    .map_err(|source| ControlError::Io {
                        order: name,
                        source,
                    })?;
                self.qmp.send_replace(Some(qmp.clone()));
                qmp
            }
        };
        qmp.order(name, arguments, limit).await
    }

    async fn last_word(&self) -> LastWord {
        let Some(qmp) = self.qmp.borrow().clone() else {
            return LastWord::Unheard;
        };
        tokio::time::timeout(LAST_WORD_LIMIT, qmp.last_word())
            .await
            .unwrap_or(LastWord::Unheard)
    }
}

#[async_trait]
impl Machine for QemuMachine {
    fn handle(&self) -> &MachineHandle {
        &self.handle
    }

    fn place(&self) -> &Place {
        &self.place
    }

    async fn connect(&self) -> io::Result<Box<dyn AgentStream>> {
        let signs = self.signs.subscribe();
        let stream = socket::connect(&self.place.agent_socket()).await?;
        Ok(Box::new(Link::new(stream, signs)))
    }

    fn signs(&self) -> watch::Receiver<Signs> {
        self.signs.subscribe()
    }

    async fn exited(&self) -> Exit {
        let ended = self.process.wait().await;
        let word = self.last_word().await;
        let killed = self.killed.load(Ordering::Relaxed);
        Exit {
            cause: match cause(ended, word, killed) {
                Some(cause) => cause,
                None => ExitCause::Failed(self.failure(ended)),
            },
            engine_log: self.log(),
        }
    }

    async fn kill(&self) -> Result<(), ControlError> {
        if self.process.ended().is_none() {
            self.killed.store(true, Ordering::Relaxed);
        }
        let killed = self.process.kill().await;
        killed.map(|_| ()).map_err(|source| ControlError::Io {
            order: "kill",
            source,
        })
    }

    fn signal(&self, signal: Signal) -> Result<(), ControlError> {
        self.process
            .signal(signal)
            .map_err(|source| ControlError::Io {
                order: "signal",
                source,
            })
    }

    async fn power_button(&self) -> Result<(), ControlError> {
        self.order("system_powerdown").await.map(|_| ())
    }

    async fn pause(&self) -> Result<(), ControlError> {
        self.order("stop").await.map(|_| ())
    }

    async fn resume(&self) -> Result<(), ControlError> {
        self.order("cont").await.map(|_| ())
    }

    async fn grow_disk(&self, disk: &Disk, size: ByteSize) -> Result<(), ControlError> {
        // Orders are carried out one after the other: when this is answered, an earlier one
        // whose answer was lost has made the file as long as it ever will.
        self.order("query-status").await?;
        refuse_to_shrink(disk, size)?;
        // QEMU's docs/interop/qmp-ref: block_resize. The nodes are named in `argv`.
        let arguments = json!({ "node-name": disk.role.as_str(), "size": size.bytes() });
        self.order_within("block_resize", Some(arguments), ORDER_LIMIT)
            .await
            .map(|_| ())
    }

    async fn activity(&self) -> Result<Activity, ControlError> {
        let answer = self.order("query-status").await?;
        match answer.get("running").and_then(Value::as_bool) {
            Some(true) => Ok(Activity::Running),
            Some(false) => Ok(Activity::Paused),
            None => Err(ControlError::Malformed {
                order: "query-status",
                answer: answer.to_string().chars().take(80).collect(),
            }),
        }
    }
}

/// QEMU's words without its name in front, which the failure tells already.
fn without_program(line: &str) -> String {
    let rest = ["qemu-system-x86_64: ", "qemu: "]
        .iter()
        .find_map(|name| line.strip_prefix(name));
    rest.unwrap_or(line).to_owned()
}

/// Why a QEMU ended, from all that is known of it. `None`: it failed.
fn cause(ended: Ended, word: LastWord, killed: bool) -> Option<ExitCause> {
    use std::os::unix::process::ExitStatusExt;

    if let Ended::Status(status) = ended {
        match (status.code(), status.signal()) {
            (Some(0), _) => {}
            (_, Some(signal @ (libc::SIGKILL | libc::SIGTERM | libc::SIGINT | libc::SIGHUP))) => {
                return Some(ExitCause::Killed {
                    signal: Some(signal),
                });
            }
            _ => return None,
        }
    }
    Some(match word {
        LastWord::Said(Shutdown::GuestOff) => ExitCause::PoweredOff,
        LastWord::Said(Shutdown::GuestReset | Shutdown::GuestPanic) => ExitCause::Reset,
        LastWord::Said(Shutdown::Host) => ExitCause::Killed { signal: None },
        LastWord::Unheard | LastWord::Silence if killed => ExitCause::Killed {
            signal: Some(libc::SIGKILL),
        },
        // Nobody was told of its status, but it was killed by another or crashed.
        LastWord::Silence if ended == Ended::Unseen => return None,
        LastWord::Unheard | LastWord::Silence => ExitCause::Unseen,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    #[test]
    fn the_cause_of_an_end_is_what_is_known_best() {
        let code = |code: i32| Ended::Status(ExitStatus::from_raw(code << 8));
        let signal = |signal| Ended::Status(ExitStatus::from_raw(signal));
        let off = LastWord::Said(Shutdown::GuestOff);
        let (unheard, silence) = (LastWord::Unheard, LastWord::Silence);
        for (ended, word, killed, expected) in [
            (code(0), off, false, Some(ExitCause::PoweredOff)),
            (
                code(0),
                LastWord::Said(Shutdown::GuestReset),
                false,
                Some(ExitCause::Reset),
            ),
            (
                code(0),
                LastWord::Said(Shutdown::GuestPanic),
                false,
                Some(ExitCause::Reset),
            ),
            (
                code(0),
                LastWord::Said(Shutdown::Host),
                false,
                Some(ExitCause::Killed { signal: None }),
            ),
            (code(0), unheard, false, Some(ExitCause::Unseen)),
            (code(0), silence, false, Some(ExitCause::Unseen)),
            (code(1), silence, false, None),
            (code(1), off, false, None),
            (
                signal(9),
                silence,
                true,
                Some(ExitCause::Killed { signal: Some(9) }),
            ),
            (
                signal(9),
                silence,
                false,
                Some(ExitCause::Killed { signal: Some(9) }),
            ),
            (signal(11), silence, false, None),
            (Ended::Unseen, off, false, Some(ExitCause::PoweredOff)),
            (
                Ended::Unseen,
                silence,
                true,
                Some(ExitCause::Killed { signal: Some(9) }),
            ),
            (Ended::Unseen, unheard, false, Some(ExitCause::Unseen)),
            (Ended::Unseen, silence, false, None),
        ] {
            assert_eq!(
                cause(ended, word, killed),
                expected,
                "{ended:?} {word:?} {killed}"
            );
        }
    }
}

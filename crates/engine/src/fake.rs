//! The engine without VMs: the guest agent as an ordinary process behind a socket.
//!
//! It keeps the rules of a real engine (detached, marked, adopted and released by place), so
//! that everything above can be tested fast. It isolates nothing: for tests only.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use banger_proto::api::EngineKind;
use banger_proto::size::ByteSize;
use rustix::process::Signal;
use tokio::net::UnixStream;

use crate::birth::Birth;
use crate::machine::refuse_to_shrink;
use crate::process::{Detached, Ended, Process, ProcessFailure};
use crate::{
    Access, Activity, AgentStream, ControlError, Disk, Engine, Exit, ExitCause, LaunchError,
    Machine, MachineHandle, MachineSpec, Place, files, release, tail,
};

/// How long the agent may take until it listens.
const LAUNCH_LIMIT: Duration = Duration::from_secs(20);
/// Number of lines of the agent's log that explain an end.
const LOG_LINES: usize = 6;

/// The engine without VMs.
#[derive(Debug)]
pub struct Fake {
    agent: PathBuf,
}

impl Fake {
    /// An engine that runs this `banger-vsock-agent`.
    pub fn new(agent: PathBuf) -> Self {
        Self { agent }
    }

    fn start(&self, spec: &MachineSpec) -> Result<Process, LaunchError> {
        let place = &spec.place;
        // The VM's own disks must be there as for a real engine. What is shared (the image,
        // the kernel) is what these tests do without.
        for disk in spec
            .disks
            .iter()
            .filter(|disk| disk.access == Access::ReadWrite)
        {
            files::disk(&disk.path, disk.access).map_err(|source| LaunchError::Open {
                what: format!("{} disk", disk.role.as_str()),
                path: disk.path.clone(),
                source,
            })?;
        }
        files::log(&place.console_log())?;
        let detached = Detached {
            program: self.agent.clone(),
            arguments: vec!["serve".into(), "--unix".into(), place.agent_socket().into()],
            mark: place.mark(),
            inherited: Vec::new(),
            output: None,
            log: files::log(&place.engine_log())?,
            directory: None,
            space: None,
            jail: None,
            cgroup: None,
            identity: None,
        };
        detached.spawn().map_err(|source| LaunchError::Spawn {
            program: self.agent.clone(),
            source,
        })
    }
}

#[async_trait]
impl Engine for Fake {
    fn kind(&self) -> EngineKind {
        EngineKind::Fake
    }

    fn reason(&self) -> String {
        "no VM: the agent as an ordinary process, for tests".to_owned()
    }

    fn patience(&self) -> u32 {
        1
    }

    async fn launch(&self, spec: MachineSpec) -> Result<Arc<dyn Machine>, LaunchError> {
        let path = spec.place.agent_socket();
        let socket_error = |source| LaunchError::Socket {
            path: path.clone(),
            source,
        };
        let birth = Birth::watch(&path).map_err(socket_error)?;
        let process = self.start(&spec)?;
        let machine = FakeMachine::new(spec.place, process);
        tokio::select! {
            born = birth.happened() => born.map_err(socket_error)?,
            ended = machine.process.wait() => {
                return Err(LaunchError::Refused(machine.failure(ended)));
            }
            () = tokio::time::sleep(LAUNCH_LIMIT) => {
                return Err(LaunchError::Control(ControlError::Timeout {
                    order: "serve",
                    seconds: LAUNCH_LIMIT.as_secs(),
                }));
            }
        }
        Ok(Arc::new(machine))
    }
}

/// The machine of a process that runs already.
pub(crate) fn adopted(place: Place, process: Process) -> Arc<dyn Machine> {
    Arc::new(FakeMachine::new(place, process))
}

#[derive(Debug)]
struct FakeMachine {
    handle: MachineHandle,
    place: Place,
    process: Process,
    killed: AtomicBool,
}

impl FakeMachine {
    fn new(place: Place, process: Process) -> Self {
        Self {
            handle: MachineHandle {
                engine: EngineKind::Fake,
                process: process.id().clone(),
            },
            place,
            process,
            killed: AtomicBool::new(false),
        }
    }

    fn failure(&self, ended: Ended) -> ProcessFailure {
        ProcessFailure {
            command: "banger-vsock-agent".to_owned(),
            status: ended.to_string(),
            stderr: tail(&self.place.engine_log(), LOG_LINES),
        }
    }

    fn order(&self, order: &'static str, signal: Signal) -> Result<(), ControlError> {
        if self.process.ended().is_some() {
            return Err(ControlError::Ended);
        }
        self.process
            .signal(signal)
            .map_err(|source| ControlError::Io { order, source })
    }
}

#[async_trait]
impl Machine for FakeMachine {
    fn handle(&self) -> &MachineHandle {
        &self.handle
    }

    fn place(&self) -> &Place {
        &self.place
    }

    async fn connect(&self) -> io::Result<Box<dyn AgentStream>> {
        let path = self.place.agent_socket();
        // Between the birth of a socket's file and its first moment of listening there are
        // microseconds in the agent, of which nothing tells.
        for _ in 0..1000 {
            match UnixStream::connect(&path).await {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                connected => return Ok(Box::new(connected?)),
            }
            if self.process.ended().is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Err(io::ErrorKind::ConnectionRefused.into())
    }

    async fn exited(&self) -> Exit {
        let ended = self.process.wait().await;
        let killed = self.killed.load(Ordering::Relaxed);
        let cause = match ended {
            Ended::Status(status) => match (status.code(), status.signal()) {
                (Some(0), _) => ExitCause::PoweredOff,
                (None, signal) => ExitCause::Killed { signal },
                (Some(_), _) => ExitCause::Failed(self.failure(ended)),
            },
            Ended::Unseen if killed => ExitCause::Killed {
                signal: Some(libc::SIGKILL),
            },
            Ended::Unseen => ExitCause::Unseen,
        };
        Exit {
            cause,
            engine_log: tail(&self.place.engine_log(), LOG_LINES),
        }
    }

    async fn kill(&self) -> Result<(), ControlError> {
        if self.process.ended().is_none() {
            self.killed.store(true, Ordering::Relaxed);
        }
        // A cut of the power also ends what runs in the guest.
        release::kill(&self.place)
            .await
            .map_err(|(_, source)| ControlError::Io {
                order: "kill",
                source,
            })?;
        self.process.wait().await;
        Ok(())
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
        self.order("power button", Signal::TERM)
    }

    async fn pause(&self) -> Result<(), ControlError> {
        self.order("pause", Signal::STOP)
    }

    async fn resume(&self) -> Result<(), ControlError> {
        self.order("resume", Signal::CONT)
    }

    async fn grow_disk(&self, disk: &Disk, size: ByteSize) -> Result<(), ControlError> {
        refuse_to_shrink(disk, size)?;
        files::disk(&disk.path, disk.access)
            .and_then(|file| file.set_len(size.bytes()))
            .map_err(|source| ControlError::Io {
                order: "grow",
                source,
            })
    }

    async fn activity(&self) -> Result<Activity, ControlError> {
        match self.process.is_stopped() {
            Ok(true) => Ok(Activity::Paused),
            Ok(false) => Ok(Activity::Running),
            Err(_) => Err(ControlError::Ended),
        }
    }
}

//! A real `bangerd` process in a home of its own, with the fake engine and the real agent.

#![expect(clippy::disallowed_methods, reason = "tests start what they test")]
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![expect(clippy::unwrap_used, reason = "these are tests")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use banger_client::{ByteStream, Client, ClientError};
use banger_config::Paths;
use banger_engine::process::{Marked, marked};
use banger_proto::agent::ExecRequest;
use banger_proto::api::{CreateVm, Operation, OperationEvent, OperationState, Vm, VmState};
use banger_proto::exit::ExitStatus;
use banger_proto::frame::Frame;
use banger_proto::id::OperationId;
use banger_proto::size::ByteSize;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};

/// Longest time that anything in these tests may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Bounds a wait.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, what)
        .await
        .expect("it happens within a minute")
}

/// A temporary `BANGER_HOME`. What still runs in it at the end of the test is killed.
pub struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("bgr")
            .tempdir_in("/tmp")
            .unwrap();
        Self { dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn paths(&self) -> Paths {
        let home = self.path().as_os_str().to_owned();
        Paths::resolve(
            |name| (name == "BANGER_HOME").then(|| OsString::from(&home)),
            0,
        )
        .unwrap()
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bangerd"));
        command
            .env("BANGER_HOME", self.path())
            .env("BANGER_TEST_FAKE", "1")
            .env("BANGER_LOG_LEVEL", "debug")
            .env("BANGER_AGENT_BIN", agent())
            .env_remove("BANGER_FAULT")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    pub async fn start(&self) -> Daemon {
        self.start_with(&[]).await
    }

    /// Starts a daemon in which a fault is planted, such as `fail:disks:half`.
    pub async fn start_with_fault(&self, fault: &str) -> Daemon {
        self.start_with(&[("BANGER_FAULT", fault)]).await
    }

    /// Starts a daemon with these variables in its environment.
    pub async fn start_with(&self, variables: &[(&str, &str)]) -> Daemon {
        let mut command = self.command();
        command.envs(variables.iter().copied());
        let mut process = command.spawn().unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        soon(stdout.read_line(&mut line)).await.unwrap();
        assert!(line.starts_with(r#"{"ready":true,"socket":""#), "{line}");
        let client = Client::connect(self.paths().socket()).await.unwrap();
        Daemon { process, client }
    }

    /// A daemon in which a fault is planted; `None` if it died of it before it was ready.
    pub async fn try_start_with_fault(&self, fault: &str) -> Option<Daemon> {
        let mut command = self.command();
        command.env("BANGER_FAULT", fault);
        let mut process = command.spawn().unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        soon(stdout.read_line(&mut line)).await.unwrap();
        match Client::connect(self.paths().socket()).await {
            Ok(client) => Some(Daemon { process, client }),
            Err(_) => {
                assert!(!soon(process.wait()).await.unwrap().success());
                None
            }
        }
    }

    /// Copies images and kernels, so that real VMs can be made.
    pub fn take_store(&self, store: &Path) {
        let state = self.paths().state;
        std::fs::create_dir_all(&state).unwrap();
        for name in ["images", "kernels"] {
            let mut copy = std::process::Command::new("cp");
            copy.args(["-r", "--reflink=auto", "--sparse=always"]);
            copy.arg(store.join(name)).arg(state.join(name));
            assert!(copy.status().unwrap().success());
        }
    }

    /// The processes that carry this home's mark.
    pub fn processes(&self) -> Vec<Marked> {
        let instance = banger_config::instance::read(&self.paths().instance()).unwrap();
        instance.map_or_else(Vec::new, |instance| marked(&instance).unwrap())
    }

    /// Everything that a VM may have on the host, by name.
    pub fn leftovers(&self) -> Vec<String> {
        let paths = self.paths();
        let processes = self.processes();
        let mut found: Vec<String> = processes
            .iter()
            .map(|process| format!("process {}", process.mark))
            .collect();
        for directory in [paths.vms(), paths.runtime.join("vms")] {
            let entries = std::fs::read_dir(&directory).into_iter().flatten();
            found.extend(entries.map(|entry| entry.unwrap().path().display().to_string()));
        }
        found
    }

    #[track_caller]
    pub fn assert_clean(&self) {
        assert_eq!(self.leftovers(), [""; 0]);
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.paths().daemon_log()).unwrap_or_default();
            eprintln!("the daemon's log:\n{log}");
        }
        for process in self.processes() {
            let pid = rustix::process::Pid::from_raw(process.process.pid.cast_signed());
            let _ =
                pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL));
        }
    }
}

/// A running daemon. Killed when dropped.
pub struct Daemon {
    process: Child,
    pub client: Client,
}

impl Daemon {
    pub fn pid(&self) -> u32 {
        self.process.id().unwrap()
    }

    /// As a crash does.
    pub async fn kill(mut self) {
        self.process.kill().await.unwrap();
    }

    /// As a crash does, after some time; sooner if it dies by itself, which only one with a
    /// fault may.
    pub async fn kill_after(mut self, time: Duration, may_die: bool) {
        if let Ok(ended) = tokio::time::timeout(time, self.process.wait()).await {
            assert!(may_die, "it ended by itself: {ended:?}");
            return;
        }
        self.process.kill().await.unwrap();
    }

    /// Waits until the daemon has ended by itself.
    pub async fn ended(mut self) -> std::process::ExitStatus {
        soon(self.process.wait()).await.unwrap()
    }

    /// Has it end in order.
    pub async fn stop(self) {
        self.client.stop_daemon().await.unwrap();
        assert!(self.ended().await.success());
    }

    /// Begins to create a VM.
    pub async fn begin(&self, vm: CreateVm) -> Result<Operation, ClientError> {
        self.client.create_vm(&vm, None).await
    }

    /// Creates a VM and waits for its end, well or not.
    pub async fn create(&self, name: &str) -> Operation {
        let operation = self.begin(small(name)).await.unwrap();
        self.end(&operation.id).await
    }

    /// Creates a VM and does not start it.
    pub async fn create_only(&self, name: &str) {
        let only = CreateVm {
            no_start: true,
            ..small(name)
        };
        let created = self.begin(only).await.unwrap();
        succeeded(&self.end(&created.id).await);
    }

    /// Creates a VM that must come up.
    pub async fn run(&self, name: &str) {
        succeeded(&self.create(name).await);
    }

    /// Waits for the end of an operation.
    pub async fn end(&self, id: &OperationId) -> Operation {
        soon(async { self.client.events(id).await.unwrap().end().await.unwrap() }).await
    }

    /// Waits until the operation is in a stage.
    pub async fn reach(&self, id: &OperationId, wanted: &str) {
        let mut events = self.client.events(id).await.unwrap();
        soon(async {
            loop {
                match events.next().await.unwrap() {
                    OperationEvent::Stage { stage } if stage == wanted => return,
                    OperationEvent::Done(operation) => {
                        panic!("it ended before {wanted}: {operation:?}")
                    }
                    _ => {}
                }
            }
        })
        .await;
    }

    /// Waits until a VM is in a state that no operation of this client leads to.
    pub async fn comes_to(&self, vm: &str, state: VmState) -> Vm {
        soon(async {
            loop {
                let vm = self.client.vm(vm).await.unwrap();
                if vm.state == state {
                    return vm;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }

    pub async fn start_vm(&self, vm: &str) -> Operation {
        let operation = self.client.start_vm(vm).await.unwrap();
        self.end(&operation.id).await
    }

    pub async fn stop_vm(&self, vm: &str) -> Operation {
        let operation = self.client.stop_vm(vm).await.unwrap();
        self.end(&operation.id).await
    }

    pub async fn delete_vm(&self, vm: &str) -> Operation {
        let operation = self.client.delete_vm(vm).await.unwrap();
        self.end(&operation.id).await
    }

    /// Runs a command and collects its output.
    pub async fn exec(&self, vm: &str, command: &[&str]) -> Output {
        self.exec_with_input(vm, command, None).await
    }

    pub async fn exec_with_input(
        &self,
        vm: &str,
        command: &[&str],
        input: Option<Bytes>,
    ) -> Output {
        let mut stream = self.client.exec(vm).await.unwrap();
        let request = ExecRequest {
            command: command.iter().map(ToString::to_string).collect(),
            stdin: input.is_some(),
            ..ExecRequest::default()
        };
        stream
            .write_all(&Frame::Start(Box::new(request)).to_bytes())
            .await
            .unwrap();
        soon(collect(stream, input)).await
    }
}

/// What a command printed and how it ended.
#[derive(Debug, Default)]
pub struct Output {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub end: Option<Frame>,
}

impl Output {
    #[track_caller]
    pub fn code(&self) -> u8 {
        match &self.end {
            Some(Frame::Exit(ExitStatus::Code(code))) => *code,
            other => panic!("it did not end with a code but with {other:?}"),
        }
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).unwrap()
    }
}

async fn collect(stream: ByteStream, input: Option<Bytes>) -> Output {
    let (mut reader, mut writer) = stream.into_split();
    let feeding = tokio::spawn(async move {
        let Some(mut input) = input else {
            return writer;
        };
        while !input.is_empty() {
            let piece = input.split_to(input.len().min(64 << 10));
            writer
                .write_all(&Frame::Stdin(piece).to_bytes())
                .await
                .unwrap();
        }
        writer
            .write_all(&Frame::Stdin(Bytes::new()).to_bytes())
            .await
            .unwrap();
        writer
    });
    let mut output = Output::default();
    let mut buffer = BytesMut::new();
    while reader.read_buf(&mut buffer).await.unwrap() > 0 {
        while let Some(frame) = Frame::decode(&mut buffer).unwrap() {
            match frame {
                Frame::Stdout(bytes) => output.stdout.extend_from_slice(&bytes),
                Frame::Stderr(bytes) => output.stderr.extend_from_slice(&bytes),
                Frame::Started(_) => {}
                end => output.end = Some(end),
            }
        }
    }
    // Held until here, so that the client has not gone.
    drop(feeding.await.unwrap());
    output
}

/// A VM that costs little.
pub fn small(name: &str) -> CreateVm {
    CreateVm {
        name: Some(name.parse().unwrap()),
        engine: Some(banger_proto::api::EngineKind::Fake),
        disk_size: Some(ByteSize::from_mib(64)),
        system_size: Some(ByteSize::from_mib(64)),
        vcpu: Some(1),
        memory: Some(ByteSize::from_mib(128)),
        labels: BTreeMap::new(),
        ..CreateVm::default()
    }
}

#[track_caller]
pub fn succeeded(operation: &Operation) {
    assert_eq!(
        operation.state,
        OperationState::Succeeded,
        "{:?}",
        operation.error
    );
}

/// The error of a request that must be refused.
#[track_caller]
pub fn refusal<T: std::fmt::Debug>(
    result: Result<T, ClientError>,
) -> banger_proto::error::ApiError {
    match result {
        Err(ClientError::Api(error)) => error,
        other => panic!("not refused: {other:?}"),
    }
}

/// The agent's binary: the one that is given, or the one of this build.
fn agent() -> PathBuf {
    if let Some(given) = std::env::var_os("BANGER_TEST_AGENT") {
        return given.into();
    }
    let daemon = Path::new(env!("CARGO_BIN_EXE_bangerd"));
    let agent = daemon.with_file_name("banger-vsock-agent");
    if !agent.is_file() {
        let mut build = std::process::Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--package", "banger-agent"]);
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        assert!(build.status().unwrap().success(), "the agent is built");
    }
    agent
}

//! The link with the real agent, which the fake engine runs as an ordinary process.

#![expect(clippy::disallowed_methods, reason = "tests start what they test")]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use banger_engine::{Engine, Fake, Machine, MachineSpec, Place};
use banger_proto::agent::{Configure, ExecRefusal, ExecRequest, Shutdown};
use banger_proto::exit::ExitStatus;
use banger_proto::frame::Frame;
use banger_proto::id::{InstanceId, RequestId, VmId};
use banger_proto::size::ByteSize;
use bytes::{Bytes, BytesMut};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{ConnectError, Guest, GuestStream, RequestError, connect};

/// Longest wait for anything in here.
const LIMIT: Duration = Duration::from_secs(30);

/// The agent that `BANGER_TEST_AGENT` names, or the one that was built beside this test.
fn agent() -> Option<PathBuf> {
    let built = || {
        let test = std::env::current_exe().ok()?;
        Some(test.parent()?.parent()?.join("banger-vsock-agent"))
    };
    let path = std::env::var_os("BANGER_TEST_AGENT")
        .map(PathBuf::from)
        .or_else(built)?;
    if path.exists() {
        return Some(path);
    }
    eprintln!(
        "skipped: there is no `{}`; run `cargo build -p banger-agent`",
        path.display()
    );
    None
}

/// A fake machine of its own for a test.
struct Lab {
    machine: Arc<dyn Machine>,
    directory: tempfile::TempDir,
}

impl Lab {
    async fn new() -> Option<Self> {
        let agent = agent()?;
        Some(Self::with(agent).await)
    }

    async fn with(agent: PathBuf) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let vm = VmId::new();
        let engine = Fake::new(agent);
        let machine = engine
            .launch(MachineSpec {
                place: Place {
                    instance: InstanceId::new(),
                    slot: 1,
                    vm,
                    runtime_dir: directory.path().to_owned(),
                    log_dir: directory.path().to_owned(),
                },
                name: "calm-otter".parse().unwrap(),
                vcpu: 1,
                memory: ByteSize::from_mib(128),
                kernel: PathBuf::new(),
                initrd: PathBuf::new(),
                cmdline: String::new(),
                disks: Vec::new(),
                nic: None,
            })
            .await
            .unwrap();
        Self { machine, directory }
    }

    async fn connect(&self) -> Guest {
        connect(&*self.machine, LIMIT).await.unwrap()
    }

    async fn end(self) {
        banger_engine::release(self.machine.place()).await.unwrap();
    }
}

impl Drop for Lab {
    /// The agent outlives its test otherwise, if the test fails.
    fn drop(&mut self) {
        let instance = &self.machine.place().instance;
        for found in banger_engine::process::marked(instance).unwrap_or_default() {
            let pid = Pid::from_raw(found.process.pid.cast_signed());
            let _ = pid.map(|pid| kill_process(pid, Signal::KILL));
        }
    }
}

macro_rules! lab_or_skip {
    () => {
        match Lab::new().await {
            Some(lab) => lab,
            None => return,
        }
    };
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future)
        .await
        .expect("it happens in time")
}

async fn start(stream: &mut GuestStream, command: &[&str], stdin: bool) {
    let request = ExecRequest {
        command: command.iter().map(|&word| word.to_owned()).collect(),
        stdin,
        ..ExecRequest::default()
    };
    let frame = Frame::Start(Box::new(request));
    stream.write_all(&frame.to_bytes()).await.unwrap();
}

/// Reads frames to the end.
async fn frames(stream: &mut GuestStream) -> Vec<Frame> {
    let mut buffer = BytesMut::new();
    let mut frames = Vec::new();
    while in_time(stream.read_buf(&mut buffer)).await.unwrap() > 0 {
        while let Some(frame) = Frame::decode(&mut buffer).unwrap() {
            frames.push(frame);
        }
    }
    assert!(buffer.is_empty());
    frames
}

#[tokio::test]
async fn a_guest_tells_its_health_and_takes_its_identity() {
    let lab = lab_or_skip!();
    let guest = lab.connect().await.for_request(&RequestId::new());
    assert_eq!(guest.version(), 1);
    let health = guest.health().await.unwrap();
    assert_eq!(health.version, banger_proto::VERSION);
    guest.configure(&Configure::default()).await.unwrap();
    lab.end().await;
}

#[tokio::test]
async fn a_command_gets_its_input_and_its_output_and_status_come_back() {
    let lab = lab_or_skip!();
    let guest = lab.connect().await;
    let mut stream = guest.exec();
    start(
        &mut stream,
        &["sh", "-c", "cat; echo err >&2; exit 3"],
        true,
    )
    .await;
    let input = Frame::Stdin(Bytes::from_static(b"in\0\xff")).to_bytes();
    stream.write_all(&input).await.unwrap();
    stream
        .write_all(&Frame::Stdin(Bytes::new()).to_bytes())
        .await
        .unwrap();
    stream.shutdown().await.unwrap();
    let frames = frames(&mut stream).await;
    assert!(matches!(frames[0], Frame::Started(_)));
    assert!(frames.contains(&Frame::Stdout(Bytes::from_static(b"in\0\xff"))));
    assert!(frames.contains(&Frame::Stderr(Bytes::from_static(b"err\n"))));
    assert_eq!(frames.last(), Some(&Frame::Exit(ExitStatus::Code(3))));
    lab.end().await;
}

#[tokio::test]
async fn many_commands_at_once_do_not_mix() {
    let lab = lab_or_skip!();
    let guest = lab.connect().await;
    let runs = (0..20).map(|number| {
        let guest = guest.clone();
        async move {
            let mut stream = guest.exec();
            let word = format!("word {number}");
            start(&mut stream, &["echo", &word], false).await;
            let output = Frame::Stdout(format!("{word}\n").into());
            assert!(frames(&mut stream).await.contains(&output));
        }
    });
    futures_util::future::join_all(runs).await;
    lab.end().await;
}

#[tokio::test]
async fn a_large_stream_passes_unchanged_both_ways() {
    const TOTAL: usize = 16 << 20;
    let lab = lab_or_skip!();
    let guest = lab.connect().await;
    let (mut read, mut write) = tokio::io::split(guest.exec());
    let request = ExecRequest {
        command: vec!["cat".to_owned()],
        stdin: true,
        ..ExecRequest::default()
    };
    write
        .write_all(&Frame::Start(Box::new(request)).to_bytes())
        .await
        .unwrap();
    let writer = tokio::spawn(async move {
        for index in 0..TOTAL >> 16 {
            let piece = vec![u8::try_from(index % 251).unwrap(); 1 << 16];
            write
                .write_all(&Frame::Stdin(piece.into()).to_bytes())
                .await
                .unwrap();
        }
        write
            .write_all(&Frame::Stdin(Bytes::new()).to_bytes())
            .await
            .unwrap();
        write
    });
    let began = std::time::Instant::now();
    let mut buffer = BytesMut::with_capacity(1 << 18);
    let (mut received, mut exit) = (0, None);
    while exit.is_none() && in_time(read.read_buf(&mut buffer)).await.unwrap() > 0 {
        while let Some(frame) = Frame::decode(&mut buffer).unwrap() {
            match frame {
                Frame::Stdout(bytes) => {
                    for byte in bytes {
                        assert_eq!(usize::from(byte), (received >> 16) % 251);
                        received += 1;
                    }
                }
                Frame::Exit(status) => exit = Some(status),
                _ => {}
            }
        }
    }
    eprintln!(
        "{} MiB there and back in {:?}",
        TOTAL >> 20,
        began.elapsed()
    );
    assert_eq!((received, exit), (TOTAL, Some(ExitStatus::Code(0))));
    writer.await.unwrap();
    lab.end().await;
}

#[tokio::test]
async fn readers_that_stand_still_hold_up_nobody_else() {
    let lab = lab_or_skip!();
    let guest = lab.connect().await;
    let mut still = Vec::new();
    for _ in 0..24 {
        let mut stream = guest.exec();
        start(&mut stream, &["head", "-c", "4M", "/dev/zero"], false).await;
        in_time(stream.read_u8()).await.unwrap();
        still.push(stream);
    }
    let mut stream = guest.exec();
    start(&mut stream, &["head", "-c", "2M", "/dev/zero"], false).await;
    let last = frames(&mut stream).await.pop();
    assert_eq!(last, Some(Frame::Exit(ExitStatus::Code(0))));
    lab.end().await;
}

#[tokio::test]
async fn a_command_that_cannot_run_is_refused_with_its_reason() {
    let lab = lab_or_skip!();
    let guest = lab.connect().await;
    let mut stream = guest.exec();
    start(&mut stream, &["no-such-command"], false).await;
    let frames = frames(&mut stream).await;
    let [Frame::Refused(refused)] = &frames[..] else {
        panic!("{frames:?}");
    };
    assert_eq!(refused.refusal, ExecRefusal::NotFound);
    lab.end().await;
}

#[tokio::test]
async fn what_the_agent_refuses_is_an_error_with_its_words() {
    let lab = lab_or_skip!();
    let guest = lab.connect().await;
    let configure = Configure {
        ssh_host_key: "no key".to_owned(),
        ..Configure::default()
    };
    let error = guest.configure(&configure).await.unwrap_err();
    assert!(
        error.to_string().starts_with("the agent refused: "),
        "{error}"
    );

    // On a stream of frames it comes with the first read.
    let mut stream = guest.exec();
    stream
        .write_all(&Frame::Signal(1).to_bytes())
        .await
        .unwrap();
    let error = in_time(stream.read_u8()).await.unwrap_err();
    assert!(error.to_string().contains("first frame"), "{error}");
    lab.end().await;
}

#[tokio::test]
async fn a_tree_of_files_goes_out_and_in_unchanged() {
    let lab = lab_or_skip!();
    let guest = lab.connect().await;
    let (from, to) = (
        lab.directory.path().join("from ä&b"),
        lab.directory.path().join("to"),
    );
    std::fs::create_dir_all(from.join("deep")).unwrap();
    std::fs::create_dir(&to).unwrap();
    let content: Vec<u8> = (0..3_000_000u32).map(|n| n.to_le_bytes()[0]).collect();
    std::fs::write(from.join("deep/file"), &content).unwrap();
    std::fs::set_permissions(from.join("deep/file"), PermissionsExt::from_mode(0o750)).unwrap();

    let (kind, files) = guest.read_files(from.to_str().unwrap()).await.unwrap();
    assert_eq!(kind.as_deref(), Some("directory"));
    in_time(guest.write_files(to.to_str().unwrap(), files))
        .await
        .unwrap();
    let copy = [to.join("deep/file"), to.join("from ä&b/deep/file")];
    let copy = copy.iter().find(|path| path.exists()).unwrap();
    assert!(std::fs::read(copy).unwrap() == content);
    let mode = std::fs::metadata(copy).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o750);

    let error = guest
        .read_files("/nonexistent")
        .await
        .map(|_| ())
        .unwrap_err();
    assert!(
        matches!(error, RequestError::Refused { status: 404, .. }),
        "{error:?}"
    );
    lab.end().await;
}

#[tokio::test]
async fn files_that_break_off_are_an_error_and_not_a_shorter_tree() {
    let lab = lab_or_skip!();
    let guest = lab.connect().await;
    let files = futures_util::stream::iter([
        Ok(Bytes::from_static(&[0; 100])),
        Err(std::io::Error::other("the client is gone")),
    ]);
    let target = lab.directory.path().to_str().unwrap();
    let written = in_time(guest.write_files(target, files)).await;
    assert!(written.is_err(), "{written:?}");
    guest.health().await.unwrap();
    lab.end().await;
}

#[tokio::test]
async fn a_tcp_connection_passes_bytes_and_its_end_and_a_refused_one_says_so() {
    let lab = lab_or_skip!();
    let guest = lab.connect().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        stream.read_to_end(&mut request).await.unwrap();
        request.reverse();
        stream.write_all(&request).await.unwrap();
    });
    let mut stream = in_time(guest.tcp(&address)).await.unwrap();
    stream.write_all(b"abc").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    in_time(stream.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, b"cba");
    server.await.unwrap();
    let error = in_time(guest.tcp(&address)).await.unwrap_err();
    assert!(matches!(error, RequestError::Refused { .. }), "{error:?}");
    lab.end().await;
}

#[tokio::test]
async fn a_guest_tells_what_it_uses() {
    let lab = lab_or_skip!();
    let stats = lab.connect().await.stats().await.unwrap();
    assert!(
        stats.processes > 0 && stats.memory_total.is_some(),
        "{stats:?}"
    );
    lab.end().await;
}

#[tokio::test]
async fn a_stream_that_is_dropped_hangs_its_command_up() {
    let lab = lab_or_skip!();
    let guest = lab.connect().await;
    let mut stream = guest.exec();
    let marker = lab.directory.path().join("hung-up");
    let script = format!("trap 'touch {}; exit' HUP; echo up; cat", marker.display());
    start(&mut stream, &["sh", "-c", &script], true).await;
    let mut buffer = BytesMut::new();
    while !buffer.windows(3).any(|window| window == b"up\n") {
        in_time(stream.read_buf(&mut buffer)).await.unwrap();
    }
    drop(stream);
    in_time(async {
        while !marker.exists() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // The link itself goes on.
    guest.health().await.unwrap();
    lab.end().await;
}

#[tokio::test]
async fn a_second_link_is_begun_when_the_first_is_gone_and_even_when_it_is_not() {
    let lab = lab_or_skip!();
    let first = lab.connect().await;
    first.health().await.unwrap();
    drop(first);
    let second = lab.connect().await;
    second.health().await.unwrap();
    let third = in_time(lab.connect()).await;
    third.health().await.unwrap();
    in_time(second.closed()).await;
    assert!(second.is_closed());
    assert!(second.health().await.is_err());
    lab.end().await;
}

#[tokio::test]
async fn a_guest_that_goes_down_closes_its_link_and_ends_its_machine() {
    let lab = lab_or_skip!();
    let guest = lab.connect().await;
    guest.shutdown(Shutdown { grace_ms: 1000 }).await.unwrap();
    in_time(async { tokio::join!(guest.closed(), lab.machine.exited()) }).await;
    lab.end().await;
}

#[tokio::test]
async fn waiting_for_an_agent_ends_when_its_machine_does() {
    let directory = tempfile::tempdir().unwrap();
    let Some(lab) = silent(&directory).await else {
        return;
    };
    let (connected, killed) =
        in_time(async { tokio::join!(connect(&*lab.machine, LIMIT), lab.machine.kill()) }).await;
    killed.unwrap();
    let error = connected.unwrap_err();
    assert!(matches!(error, ConnectError::Ended { .. }), "{error:?}");
    insta::assert_snapshot!(
        error,
        @"the machine ended before its agent answered: the engine was ended by signal 9"
    );
    lab.end().await;
}

#[tokio::test]
async fn waiting_for_an_agent_that_is_silent_has_its_limit_and_shows_the_console() {
    let directory = tempfile::tempdir().unwrap();
    let Some(lab) = silent(&directory).await else {
        return;
    };
    let console = lab.machine.place().console_log();
    std::fs::write(console, "booting\nKernel panic - not syncing: no root\n").unwrap();
    let error = connect(&*lab.machine, Duration::from_secs(1))
        .await
        .unwrap_err();
    insta::assert_snapshot!(error, @"the agent gave no answer within 1 s");
    assert_eq!(
        error.console().last().unwrap(),
        "Kernel panic - not syncing: no root"
    );
    lab.end().await;
}

/// A machine whose agent listens and says nothing.
async fn silent(directory: &tempfile::TempDir) -> Option<Lab> {
    if std::process::Command::new("python3")
        .arg("-V")
        .output()
        .is_err()
    {
        eprintln!("skipped: there is no python3 to play a silent agent");
        return None;
    }
    let script = directory.path().join("agent");
    std::fs::write(
        &script,
        "#!/usr/bin/env python3\n\
         import socket, sys, signal\n\
         s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[3]); s.listen()\n\
         c = s.accept(); signal.pause()\n",
    )
    .unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    Some(Lab::with(script).await)
}

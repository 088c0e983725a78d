//! Claims about commands.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use banger_proto::agent::{Configure, ExecRefusal, ExecRequest, Pty};
use banger_proto::exit::ExitStatus;
use banger_proto::frame::Frame;
use bytes::Bytes;

use crate::client::{Client, Exec, command};
use crate::process::TestAgent;

async fn agent() -> (TestAgent, Client) {
    let agent = TestAgent::start().await;
    let client = agent.connect().await;
    (agent, client)
}

fn on_terminal(arguments: &[&str]) -> ExecRequest {
    ExecRequest {
        pty: Some(Pty {
            term: "xterm-256color".to_owned(),
            columns: 101,
            rows: 33,
        }),
        ..command(arguments)
    }
}

#[tokio::test]
async fn output_error_output_and_status_are_told_apart() {
    let (_agent, mut client) = agent().await;
    let output = client.sh("echo out; echo err >&2; exit 7").await;
    assert_eq!(output.stdout, b"out\n");
    assert_eq!(output.stderr, b"err\n");
    assert_eq!(output.status, Some(ExitStatus::Code(7)));
    assert!(output.pid > 0);
    let output = client.sh("kill -9 $$").await;
    assert_eq!(output.status, Some(ExitStatus::Signal(9)));
}

#[tokio::test]
async fn bytes_of_all_kinds_go_both_ways_whole() {
    let (_agent, mut client) = agent().await;
    let mut state = 1u32;
    let input: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(20_000_000)
    .collect();
    let output = client.run(command(&["cat"]), &input).await;
    assert_eq!(output.status, Some(ExitStatus::Code(0)));
    assert!(
        output.stdout == input,
        "{} bytes came back",
        output.stdout.len()
    );
}

#[tokio::test]
async fn a_command_that_reads_nothing_ends_in_spite_of_its_input() {
    let (_agent, mut client) = agent().await;
    let output = client.run(command(&["true"]), &vec![1; 3_000_000]).await;
    assert_eq!(output.status, Some(ExitStatus::Code(0)));
}

fn acknowledged(arguments: &[&str]) -> ExecRequest {
    ExecRequest {
        acknowledge_input: true,
        ..command(arguments)
    }
}

/// The window that the agent tells of.
async fn window(exec: &mut Exec) -> usize {
    match exec.next().await {
        Some(Frame::Started(started)) => usize::try_from(started.input_window).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_signal_is_heard_behind_a_whole_window_of_input_that_nobody_reads() {
    let (_agent, mut client) = agent().await;
    // In large pieces, and in tiny ones as a terminal sends them.
    for piece in [64 * 1024, 100, 16] {
        let mut exec = client.exec(acknowledged(&["sleep", "1000"])).await;
        let window = window(&mut exec).await;
        assert!(window >= 64 * 1024, "{window}");
        for _ in 0..window / piece {
            exec.send(Frame::Stdin(Bytes::from(vec![0; piece]))).await;
        }
        exec.send(Frame::Signal(15)).await;
        loop {
            match exec.next().await {
                // The pipe and the queue before it take some.
                Some(Frame::Taken(_)) => {}
                other => {
                    assert_eq!(other, Some(Frame::Exit(ExitStatus::Signal(15))));
                    break;
                }
            }
        }
    }
}

#[tokio::test]
async fn every_byte_of_input_is_acknowledged_whether_it_is_read_or_not() {
    let (_agent, mut client) = agent().await;
    for script in [
        "cat > /dev/null",
        "exec < /dev/null; sleep 0.2; echo closed",
    ] {
        let mut exec = client.exec(acknowledged(&["sh", "-c", script])).await;
        let window = window(&mut exec).await;
        let mut unacknowledged = 0;
        for piece in [1, 70_000, 3, 250_000, 100_000, 99_999] {
            while unacknowledged + piece > window {
                match exec.next().await {
                    Some(Frame::Taken(bytes)) => unacknowledged -= usize::try_from(bytes).unwrap(),
                    Some(Frame::Stdout(_)) => {}
                    other => panic!("{other:?}"),
                }
            }
            exec.send(Frame::Stdin(Bytes::from(vec![0; piece]))).await;
            unacknowledged += piece;
        }
        exec.send(Frame::Stdin(Bytes::new())).await;
        while let Some(frame) = exec.next().await {
            match frame {
                Frame::Taken(bytes) => unacknowledged -= usize::try_from(bytes).unwrap(),
                Frame::Stdout(_) => {}
                end => assert_eq!(end, Frame::Exit(ExitStatus::Code(0))),
            }
        }
        assert!(unacknowledged <= window);
    }
}

#[tokio::test]
async fn a_client_that_asks_for_no_acknowledgement_gets_none() {
    let (_agent, mut client) = agent().await;
    let mut exec = client.exec(command(&["cat"])).await;
    assert_eq!(window(&mut exec).await, 0);
    // `finish` panics at any frame that is not of the old protocol.
    assert_eq!(exec.finish(&[b'x'; 900_000]).await.stdout.len(), 900_000);
}

#[tokio::test]
async fn commands_that_read_nothing_keep_nobody_out() {
    let (_agent, mut client) = agent().await;
    let mut stuck = Vec::new();
    for _ in 0..20 {
        let mut exec = client.exec(command(&["sleep", "100"])).await;
        let input = exec.input.take().unwrap();
        tokio::spawn(async move {
            let piece = Frame::Stdin(Bytes::from(vec![0; 60_000])).to_bytes();
            while input.send(piece.clone()).await.is_ok() {}
        });
        stuck.push(exec);
    }
    assert_eq!(
        client.run(command(&["cat"]), b"through").await.text(),
        "through"
    );
}

#[tokio::test]
async fn without_input_a_command_reads_an_empty_file() {
    let (_agent, mut client) = agent().await;
    let request = ExecRequest {
        stdin: false,
        ..command(&["cat"])
    };
    let mut exec = client.exec(request).await;
    assert!(matches!(exec.next().await, Some(Frame::Started(_))));
    assert_eq!(exec.next().await, Some(Frame::Exit(ExitStatus::Code(0))));
}

#[tokio::test]
async fn refusals_say_what_scripts_expect() {
    let (agent, mut client) = agent().await;
    let path = |name: &str| agent.directory.path().join(name).display().to_string();
    let write = |name: &str, text: &str, mode: u32| {
        std::fs::write(path(name), text).unwrap();
        std::fs::set_permissions(path(name), PermissionsExt::from_mode(mode)).unwrap();
        path(name)
    };
    let cases = [
        (
            command(&["no-such-command"]),
            ExecRefusal::NotFound,
            "not found in PATH",
        ),
        (
            command(&["/no/such/command"]),
            ExecRefusal::NotFound,
            "does not exist",
        ),
        (command(&[""]), ExecRefusal::NotFound, "empty"),
        (
            command(&[&write("lost", "#!/no/such/interpreter\n", 0o755)]),
            ExecRefusal::NotFound,
            "its interpreter or loader is not",
        ),
        (
            command(&[&write("data", "echo hi\n", 0o644)]),
            ExecRefusal::NotExecutable,
            "Permission denied",
        ),
        (
            command(&[&write("headless", "echo hi\n", 0o755)]),
            ExecRefusal::NotExecutable,
            "Exec format error",
        ),
        (
            command(&["/tmp"]),
            ExecRefusal::NotExecutable,
            "Permission denied",
        ),
        (
            ExecRequest {
                cwd: Some("/no/such/directory".to_owned()),
                ..command(&["true"])
            },
            ExecRefusal::Unusable,
            "/no/such/directory",
        ),
        (
            ExecRequest {
                user: Some("no-such-user".to_owned()),
                ..command(&["true"])
            },
            ExecRefusal::Unusable,
            "no user `no-such-user`",
        ),
    ];
    for (request, refusal, words) in cases {
        let output = client.run(request.clone(), b"").await;
        let refused = output
            .refused
            .unwrap_or_else(|| panic!("{request:?} was not refused"));
        assert_eq!(refused.refusal, refusal, "{request:?}: {}", refused.message);
        assert!(refused.message.contains(words), "{}", refused.message);
    }
}

#[tokio::test]
async fn the_environment_is_the_defaults_the_image_and_the_request() {
    let (agent, mut client) = agent().await;
    let configure = Configure {
        env: [
            ("FROM_IMAGE".to_owned(), "1".to_owned()),
            ("BOTH".to_owned(), "image".to_owned()),
        ]
        .into(),
        workdir: Some(agent.directory.path().display().to_string()),
        ..Configure::default()
    };
    client.configure(&configure).await;
    let request = ExecRequest {
        env: [("BOTH".to_owned(), "request".to_owned())].into(),
        ..command(&[
            "sh",
            "-c",
            "echo $FROM_IMAGE $BOTH $LANG $HOME $USER; pwd -P; umask",
        ])
    };
    let output = client.run(request, b"").await;
    let mut lines = output.text().lines();
    let user = lines.next().unwrap();
    assert!(user.starts_with("1 request C.UTF-8 /"), "{user}");
    assert_eq!(
        lines.next().unwrap(),
        agent
            .directory
            .path()
            .canonicalize()
            .unwrap()
            .display()
            .to_string()
    );
    assert_eq!(lines.next().unwrap(), "0022");
}

#[tokio::test]
async fn root_can_run_commands_as_others() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can become another user");
        return;
    }
    let (_agent, mut client) = agent().await;
    let request = ExecRequest {
        user: Some("daemon:games".to_owned()),
        ..command(&["sh", "-c", "id -un; id -gn; id -G"])
    };
    let output = client.run(request, b"").await;
    assert_eq!(output.text(), "daemon\ngames\n60\n");
    let request = ExecRequest {
        user: Some("12345".to_owned()),
        ..command(&["id", "-u"])
    };
    assert_eq!(client.run(request, b"").await.text(), "12345\n");
}

#[tokio::test]
async fn a_terminal_has_a_size_a_name_and_a_session() {
    let (_agent, mut client) = agent().await;
    let mut exec = client
        .exec(on_terminal(&[
            "sh",
            "-c",
            "stty size; echo $TERM; tty; read x; stty size",
        ]))
        .await;
    let before = exec.until("/dev/pts/").await;
    assert!(
        before.contains("33 101\r\nxterm-256color\r\n"),
        "{before:?}"
    );
    exec.send(Frame::Resize {
        columns: 80,
        rows: 24,
    })
    .await;
    exec.send(Frame::Stdin(Bytes::from_static(b"\r"))).await;
    exec.until("24 80\r\n").await;
    assert_eq!(exec.next().await, Some(Frame::Exit(ExitStatus::Code(0))));
}

#[tokio::test]
async fn control_c_interrupts_and_control_d_ends_input() {
    let (_agent, mut client) = agent().await;
    let mut exec = client
        .exec(on_terminal(&["sh", "-c", "echo ready; exec sleep 100"]))
        .await;
    exec.until("ready").await;
    exec.send(Frame::Stdin(Bytes::from_static(b"\x03"))).await;
    exec.until("^C").await;
    assert_eq!(exec.next().await, Some(Frame::Exit(ExitStatus::Signal(2))));

    let mut exec = client
        .exec(on_terminal(&["sh", "-c", "echo ready; cat; echo ended"]))
        .await;
    exec.until("ready").await;
    exec.send(Frame::Stdin(Bytes::from_static(b"\x04"))).await;
    exec.until("ended").await;
}

#[tokio::test]
async fn signals_reach_the_whole_group() {
    let (_agent, mut client) = agent().await;
    let script = "trap 'echo caught; exit 3' TERM; echo ready; sleep 100 & wait";
    let mut exec = client.exec(command(&["sh", "-c", script])).await;
    exec.until("ready").await;
    let begin = Instant::now();
    exec.send(Frame::Signal(15)).await;
    exec.until("caught").await;
    assert_eq!(exec.next().await, Some(Frame::Exit(ExitStatus::Code(3))));
    assert!(
        begin.elapsed() < Duration::from_secs(20),
        "the sleep in the group went on"
    );
}

#[tokio::test]
async fn a_process_in_the_background_does_not_hold_the_exit_back() {
    let (_agent, mut client) = agent().await;
    let begin = Instant::now();
    let output = client.sh("sleep 20 & echo started").await;
    assert_eq!(output.text(), "started\n");
    assert!(
        begin.elapsed() < Duration::from_secs(10),
        "waited for the background process"
    );
}

#[tokio::test]
async fn output_right_before_the_exit_is_not_lost() {
    let (_agent, mut client) = agent().await;
    for _ in 0..20 {
        let output = client.sh("head -c 200000 /dev/zero").await;
        assert_eq!(output.stdout.len(), 200_000);
    }
}

#[tokio::test]
async fn an_empty_command_is_a_login_shell() {
    let (_agent, mut client) = agent().await;
    let output = client.run(command(&[]), b"echo $0; exit 4\n").await;
    assert!(output.stdout.starts_with(b"-"), "{output:?}");
    assert_eq!(output.status, Some(ExitStatus::Code(4)));
}

#[tokio::test]
async fn a_client_that_is_gone_hangs_its_command_up() {
    let (agent, mut client) = agent().await;
    let mark = agent.directory.path().join("hung-up");
    let fifo = agent.directory.path().join("fifo");
    let script = format!(
        "mkfifo {fifo}; trap 'echo bye > {fifo}; exit' HUP; echo ready; while :; do sleep 0.1; done",
        fifo = fifo.display()
    );
    let mut exec = client.exec(command(&["sh", "-c", &script])).await;
    exec.until("ready").await;
    drop(exec);
    // Reading the FIFO waits for the trap to write it.
    let bye = tokio::time::timeout(crate::client::LIMIT, tokio::fs::read_to_string(fifo)).await;
    assert_eq!(bye.expect("no hang-up came").unwrap(), "bye\n");
    let _ = mark;
}

#[tokio::test]
async fn a_command_that_ignores_the_hang_up_is_killed() {
    let (_agent, mut client) = agent().await;
    let mut exec = client
        .exec(command(&[
            "sh",
            "-c",
            "trap '' HUP; echo ready $$; exec sleep 1000",
        ]))
        .await;
    let ready = exec.until("\n").await;
    let pid: i32 = ready.trim().rsplit(' ').next().unwrap().parse().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    // SAFETY: the descriptor is owned by what watches it.
    let pidfd = unsafe { tokio::io::unix::AsyncFd::register(pidfd).unwrap() };
    drop(exec);
    let killed = tokio::time::timeout(crate::client::LIMIT, pidfd.readable()).await;
    killed.expect("it still runs").unwrap().retain_ready();
}

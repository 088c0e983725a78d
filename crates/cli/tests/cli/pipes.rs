//! Guest commands joined to pipes: bytes, statuses, signals, limits.

#![expect(clippy::disallowed_methods, reason = "tests start what they test")]

use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::daemon::{Daemon, Deed};
use crate::process::{Running, banger, run};

fn exec(daemon: &Daemon, words: &[&str]) -> Running {
    let words = [&["vm", "exec", "calm-otter", "--"], words].concat();
    let mut command = banger(daemon.home(), &words);
    command.stdin(Stdio::piped());
    Running::start(command)
}

#[test]
fn bytes_pass_unchanged_both_ways() {
    let daemon = Daemon::start();
    let bytes: Vec<u8> = (0..6_000_001u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let mut running = exec(&daemon, &["cat"]);
    running.feed(bytes.clone());
    let said = running.wait();
    assert_eq!(said.status, Some(0));
    assert!(
        said.stdout == bytes,
        "{} bytes came back",
        said.stdout.len()
    );
    assert_eq!(said.stderr, "");
}

#[test]
fn an_empty_input_ends_at_once() {
    let daemon = Daemon::start();
    let said = run(daemon.home(), &["vm", "exec", "calm-otter", "--", "cat"]);
    assert_eq!((said.status, said.stdout()), (Some(0), ""));
}

#[test]
fn an_input_that_never_ends_does_not_hold_the_end_up() {
    let daemon = Daemon::start();
    // Its stdin stays open until `running` is dropped.
    let mut running = exec(&daemon, &["exit", "0"]);
    assert_eq!(running.status(), Some(0));
}

#[test]
fn output_and_complaints_stay_apart() {
    let daemon = Daemon::start();
    let said = exec(&daemon, &["both"]).wait();
    assert_eq!((said.stdout(), said.stderr.as_str()), ("out\n", "err\n"));
}

#[test]
fn the_guests_status_is_bangers() {
    let daemon = Daemon::start();
    for (words, status) in [
        (&["exit", "0"][..], 0),
        (&["exit", "3"], 3),
        (&["exit", "255"], 255),
        (&["killed-by", "9"], 137),
    ] {
        let said = exec(&daemon, words).wait();
        assert_eq!(
            (said.status, said.stderr.as_str()),
            (Some(status), ""),
            "{words:?}"
        );
    }
}

#[test]
fn a_command_that_cannot_be_run_says_why() {
    let daemon = Daemon::start();
    for (word, status) in [("missing", 127), ("not-executable", 126), ("nowhere", 125)] {
        let said = exec(&daemon, &[word]).wait();
        assert_eq!(said.status, Some(status), "{word}");
        assert_eq!(
            said.stderr,
            format!(
                "error: could not run `{word}` in VM `calm-otter`\n  caused by: `{word}` is refused\n"
            )
        );
    }
}

#[test]
fn an_unknown_vm_suggests_a_near_name() {
    let daemon = Daemon::start();
    let said = run(
        daemon.home(),
        &["vm", "exec", "calm-oter", "--", "exit", "0"],
    );
    assert_eq!(said.status, Some(125));
    insta::assert_snapshot!(said.stderr, @r"
    error: no VM `calm-oter`
    hint: did you mean `calm-otter`?
    ");
}

#[test]
fn a_lost_connection_is_not_taken_for_success() {
    let daemon = Daemon::start();
    let said = exec(&daemon, &["vanish"]).wait();
    assert_eq!(said.status, Some(125));
    assert_eq!(said.stdout(), "half", "what came before is not lost");
    insta::assert_snapshot!(said.stderr, @r"
    error: the connection to VM `calm-otter` ended before `vanish` did
      caused by: the stream ended
    hint: `vanish` may still run there: `banger vm exec calm-otter -- ps ax` shows it; `banger vm health calm-otter` tells how the VM is
    ");
}

#[test]
fn the_first_signal_goes_to_the_guest() {
    let daemon = Daemon::start();
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::QUIT, 131)] {
        let mut running = exec(&daemon, &["sleep"]);
        assert_eq!(running.line(), "asleep\n");
        running.signal(signal);
        let said = running.wait();
        assert_eq!(
            (said.status, said.stderr.as_str()),
            (Some(status), ""),
            "{signal:?}"
        );
        assert_eq!(daemon.deed(), Deed::ExecEnded("exited".into()));
    }
}

#[test]
fn the_second_signal_gives_a_stubborn_guest_up() {
    let daemon = Daemon::start();
    let mut running = exec(&daemon, &["stubborn"]);
    assert_eq!(running.line(), "asleep\n");
    running.signal(Signal::INT);
    assert_eq!(running.line(), "ignored 2\n");
    running.signal(Signal::TERM);
    assert_eq!(running.wait().status, Some(143));
    assert_eq!(daemon.deed(), Deed::ExecEnded("client gone".into()));
}

#[test]
fn a_guest_that_does_not_answer_is_left_after_one_signal() {
    let daemon = Daemon::start();
    // Its agent does not answer.
    let words = ["vm", "exec", "devbox", "--", "stubborn"];
    let mut running = Running::start(banger(daemon.home(), &words));
    assert_eq!(running.line(), "asleep\n");
    running.signal(Signal::TERM);
    assert_eq!(running.line(), "ignored 15\n");
    let said = running.wait();
    assert_eq!(said.status, Some(143));
    insta::assert_snapshot!(said.stderr, @r"
    error: VM `devbox` does not answer, so `stubborn` is given up after signal 15
    hint: `banger vm show devbox` says how it is, and `banger vm kill devbox` ends it
    ");
    assert_eq!(daemon.deed(), Deed::ExecEnded("client gone".into()));
}

#[test]
fn a_hang_up_reaches_the_guest_and_ends_banger() {
    let daemon = Daemon::start();
    let mut running = exec(&daemon, &["sleep"]);
    assert_eq!(running.line(), "asleep\n");
    running.signal(Signal::HUP);
    assert_eq!(running.wait().status, Some(129));
    // The guest got the signal before the stream's end, or it would have said `client gone`.
    assert_eq!(daemon.deed(), Deed::ExecEnded("exited".into()));
}

#[test]
fn a_signal_that_the_parent_ignores_stays_ignored() {
    let daemon = Daemon::start();
    let program = banger(daemon.home(), &[]);
    let mut nohup = std::process::Command::new("/bin/sh");
    nohup
        .args([
            "-c",
            "trap '' HUP; exec \"$0\" vm exec calm-otter -- sleep",
            env!("CARGO_BIN_EXE_banger"),
        ])
        .env_clear()
        .envs(
            program
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut running = Running::start(nohup);
    assert_eq!(running.line(), "asleep\n");
    running.signal(Signal::HUP);
    running.signal(Signal::INT);
    // The hang-up would have given 129, whichever came first.
    assert_eq!(running.wait().status, Some(130));
}

#[test]
fn a_command_that_takes_too_long_is_ended() {
    let daemon = Daemon::start();
    let words = [
        "vm",
        "exec",
        "--timeout",
        "0.2",
        "calm-otter",
        "--",
        "sleep",
    ];
    let said = run(daemon.home(), &words);
    assert_eq!(said.status, Some(124));
    assert_eq!(
        said.stderr,
        "error: `sleep` ran longer than 200 ms in VM `calm-otter`\n"
    );
}

#[test]
fn a_stubborn_command_that_takes_too_long_is_killed() {
    let daemon = Daemon::start();
    let words = [
        "vm",
        "exec",
        "--timeout",
        "0.2",
        "calm-otter",
        "--",
        "stubborn",
    ];
    let began = Instant::now();
    let said = run(daemon.home(), &words);
    assert_eq!(said.status, Some(124));
    assert_eq!(said.stdout(), "asleep\nignored 15\n");
    assert!(began.elapsed() >= Duration::from_secs(5), "it had its time");
    assert_eq!(
        daemon.deed(),
        Deed::ExecEnded("exited".into()),
        "killed, not abandoned"
    );
}

#[test]
fn a_reader_that_goes_away_ends_the_guest_quietly() {
    let daemon = Daemon::start();
    let mut running = exec(&daemon, &["yes"]);
    assert_eq!(running.line(), "y\n");
    drop(running.child.stdout.take());
    let said = running.wait();
    assert_eq!((said.status, said.stderr.as_str()), (Some(141), ""));
    assert_eq!(daemon.deed(), Deed::ExecEnded("exited".into()));
}

#[test]
fn a_full_disk_under_the_output_is_an_error() {
    let daemon = Daemon::start();
    let mut command = banger(daemon.home(), &["vm", "exec", "calm-otter", "--", "yes"]);
    command.stdout(
        std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap(),
    );
    let said = Running::start(command).wait();
    assert_eq!(said.status, Some(125));
    insta::assert_snapshot!(said.stderr, @r"
    error: could not write to standard output
      caused by: No space left on device (os error 28)
    ");
}

#[test]
fn an_input_that_fails_is_not_taken_for_its_end() {
    let daemon = Daemon::start();
    let mut command = banger(daemon.home(), &["vm", "exec", "calm-otter", "--", "cat"]);
    command.stdin(std::fs::File::open("/").unwrap());
    let said = Running::start(command).wait();
    assert_eq!(said.status, Some(125));
    insta::assert_snapshot!(said.stderr, @r"
    error: could not read standard input
      caused by: Is a directory (os error 21)
    ");
}

#[test]
fn what_is_asked_of_the_guest_is_what_was_typed() {
    let daemon = Daemon::start();
    let mut command = banger(
        daemon.home(),
        &[
            "vm",
            "exec",
            "-e",
            "A=1",
            "-e",
            "FROM_HERE",
            "-w",
            "/srv",
            "-u",
            "nobody",
            "-t",
            "calm-otter",
            "--",
            "request",
        ],
    );
    command.env("FROM_HERE", "x y").env("TERM", "vt220");
    let said = Running::start(command).wait();
    insta::assert_snapshot!(said.stdout(), @r#"{"command":["request"],"env":{"A":"1","FROM_HERE":"x y"},"cwd":"/srv","user":"nobody","pty":{"term":"vt220","columns":80,"rows":24},"stdin":true,"acknowledge_input":true}"#);
}

#[test]
fn ssh_proxy_passes_bytes_and_ends_with_the_connection() {
    let daemon = Daemon::start();
    let mut command = banger(daemon.home(), &["ssh-proxy", "calm-otter"]);
    command.stdin(Stdio::piped());
    let mut running = Running::start(command);
    running.feed(b"SSH-2.0-test\r\n".repeat(20_000));
    let said = running.wait();
    assert_eq!((said.status, said.stdout.len()), (Some(0), 280_000));
}

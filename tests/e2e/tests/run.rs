//! `banger vm run -- COMMAND`: a command in a VM of its own behaves as if it ran here.

#![expect(clippy::disallowed_methods, reason = "tests start what they test")]

use std::io::Read;
use std::process::Stdio;

use banger_e2e::Home;
use rustix::process::{Pid, Signal, kill_process};

/// Bytes that go each way: `head -c 50M /dev/urandom`.
const BULK: u64 = 50 << 20;

#[test]
fn a_command_runs_in_a_vm_and_leaves_nothing() {
    let Some(home) = Home::with_vms() else { return };
    let kernel = home
        .banger(["vm", "run", "--rm", "--", "uname", "-sr"])
        .run()
        .text();
    assert!(kernel.starts_with("Linux 6.12."), "{kernel}");
    assert!(kernel.contains("cloud"), "{kernel}");
    home.wait_for_no_vm();
    home.assert_no_vm_known();
}

#[test]
fn fifty_megabytes_pass_both_ways_unchanged() {
    let Some(home) = Home::with_vms() else { return };
    let mut bulk = Vec::new();
    let random = std::fs::File::open("/dev/urandom").unwrap();
    random.take(BULK).read_to_end(&mut bulk).unwrap();
    // `tee` writes the sum of what arrived to standard error, and sends all of it back.
    let script = "tee /tmp/bulk; sha256sum </tmp/bulk >&2";
    let output = home
        .banger(["vm", "run", "--rm", "--", "sh", "-c", script])
        .stdin(bulk.clone())
        .run()
        .exited_with(0);
    assert!(
        output.stdout == bulk,
        "{} bytes came back",
        output.stdout.len()
    );
    let sum = sha256sum(&bulk);
    let output = output.says(&sum);
    assert_eq!(output.stderr.matches(&sum).count(), 1);
    home.wait_for_no_vm();
}

#[test]
fn statuses_streams_and_refusals_come_through_exec() {
    let Some(home) = Home::new() else { return };
    home.banger(["vm", "run", "--name", "kept", "--", "true"])
        .run()
        .exited_with(0);
    let exec = |command: &[&str]| {
        home.banger(
            ["vm", "exec", "kept", "--"]
                .into_iter()
                .chain(command.iter().copied()),
        )
    };
    exec(&["sh", "-c", "exit 7"]).run().exited_with(7);
    exec(&["sh", "-c", "kill -KILL $$"]).run().exited_with(137);
    exec(&["no-such-command"])
        .run()
        .exited_with(127)
        .says("no-such-command");
    exec(&["/etc/passwd"])
        .run()
        .exited_with(126)
        .says("/etc/passwd");

    let output = exec(&["sh", "-c", "echo out; echo err >&2"])
        .run()
        .exited_with(0);
    assert_eq!(output.stdout, b"out\n");
    assert_eq!(output.stderr, "err\n");

    let words = ["two words", "*", "$HOME", "'", "\"", "\\", "", "ü"];
    let command: Vec<&str> = ["printf", "<%s>"].into_iter().chain(words).collect();
    let expected: String = words.iter().map(|word| format!("<{word}>")).collect();
    assert_eq!(exec(&command).run().text(), expected);

    let environment = [
        "vm",
        "exec",
        "--env",
        "COLOUR=dark red",
        "--workdir",
        "/usr",
        "kept",
    ];
    let show = [
        "--",
        "sh",
        "-c",
        "echo \"$COLOUR\" in $PWD as $(id -un), $HOME",
    ];
    let shown = home
        .banger(environment.into_iter().chain(show))
        .run()
        .text();
    assert_eq!(shown, "dark red in /usr as root, /root");

    exec(&["cat"]).stdin("in\n").run().exited_with(0).text();
    exec(&["cat"]).run().exited_with(0);
    // A command that does not read its input ends while the input is still open.
    exec(&["true"]).open_stdin().run().exited_with(0);

    home.banger(["vm", "delete", "kept"]).run().exited_with(0);
    home.assert_no_vm_left();
}

#[test]
fn the_status_of_run_is_the_commands_and_125_is_bangers_own() {
    let Some(home) = Home::new() else { return };
    home.banger(["vm", "run", "--rm", "--", "sh", "-c", "exit 9"])
        .run()
        .exited_with(9);
    home.banger([
        "vm",
        "run",
        "--rm",
        "--image",
        "no-such-image",
        "--",
        "true",
    ])
    .run()
    .exited_with(125)
    .says("no-such-image");
    home.banger(["vm", "run", "--rm", "--timeout", "2s", "--", "sleep", "600"])
        .run()
        .exited_with(124);
    home.wait_for_no_vm();
    home.assert_no_vm_known();
}

#[test]
fn rm_deletes_the_vm_however_the_client_ends() {
    let Some(home) = Home::new() else { return };
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        let mut run = home
            .banger([
                "vm",
                "run",
                "--rm",
                "--",
                "sh",
                "-c",
                "echo ready; exec sleep 600",
            ])
            .start();
        run.expect_stdout("ready");
        run.signal(signal);
        let output = run.wait();
        match signal {
            Signal::KILL => assert_eq!(output.status.code(), None, "{output:?}"),
            _ => drop(output.exited_with(128 + signal.as_raw())),
        }
        home.wait_for_no_vm();
        home.assert_no_vm_known();
    }
}

#[test]
fn an_interrupted_boot_leaves_nothing() {
    let Some(home) = Home::with_vms() else { return };
    let mut run = home.banger(["vm", "run", "--rm", "--", "true"]).start();
    run.expect_stderr("engine");
    run.signal(Signal::INT);
    let output = run.wait();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    home.wait_for_no_vm();
    home.assert_no_vm_known();
}

#[test]
fn a_reader_that_closes_early_ends_the_command_quietly() {
    let Some(home) = Home::new() else { return };
    let mut command = home
        .banger(["vm", "run", "--rm", "--", "yes"])
        .into_command();
    let mut run = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 4];
    run.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"y\ny\n");
    // The pipe is closed now, as `| head -n 2` would.
    let limit = std::time::Duration::from_secs(60);
    let ended = banger_e2e::exits_within(&run, limit);
    if !ended {
        kill_process(Pid::from_child(&run), Signal::KILL).unwrap();
    }
    let mut talk = String::new();
    run.stderr
        .take()
        .unwrap()
        .read_to_string(&mut talk)
        .unwrap();
    run.wait().unwrap();
    assert!(ended, "it went on without a reader: {talk}");
    assert!(!talk.contains("error"), "{talk}");
    home.wait_for_no_vm();
}

fn sha256sum(bytes: &[u8]) -> String {
    let output = banger_e2e::Invocation::new(std::process::Command::new("sha256sum"))
        .stdin(bytes)
        .run()
        .text();
    let sum = output.split_whitespace().next();
    sum.expect("sha256sum tells a sum").to_owned()
}

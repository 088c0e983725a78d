//! Commands that print facts, with and without a daemon.

#![expect(clippy::disallowed_methods, reason = "tests start what they test")]

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;

use crate::daemon::Daemon;
use crate::process::{Running, banger, run};

#[test]
fn lists_are_tables_json_or_names() {
    let daemon = Daemon::start();
    let said = run(daemon.home(), &["vm", "list"]);
    let lines: Vec<&str> = said.stdout().lines().collect();
    assert!(lines[0].starts_with("NAME"), "{}", lines[0]);
    assert!(lines[1].starts_with("calm-otter"), "{}", lines[1]);
    let said = run(daemon.home(), &["vm", "ps", "--quiet"]);
    assert_eq!(said.stdout(), "calm-otter\ndevbox\n");
    let said = run(daemon.home(), &["vm", "list", "--json"]);
    let vms: Vec<banger_proto::api::Vm> = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(vms[1].name.as_str(), "devbox");
    let said = run(daemon.home(), &["image", "list", "-q"]);
    assert_eq!(
        (said.stdout(), said.stderr.as_str()),
        ("debian-bookworm-slim\n", "")
    );
}

#[test]
fn each_log_is_asked_for_by_its_name() {
    let daemon = Daemon::start();
    for (flags, query) in [
        (&[][..], "log=console&follow=false"),
        (&["--boot"], "log=boot&follow=false"),
        (&["--agent"], "log=agent&follow=false"),
        (&["--boot", "-f"], "log=boot&follow=true"),
        (&["--engine", "-f"], "log=engine&follow=true"),
        (
            &["--console", "--tail", "5"],
            "log=console&follow=false&tail=5",
        ),
    ] {
        let words = [&["vm", "logs", "calm-otter"], flags].concat();
        let said = run(daemon.home(), &words);
        assert_eq!(said.stdout(), format!("/v1/vms/calm-otter/logs?{query}\n"));
    }
}

#[test]
fn a_vm_without_a_name_is_refused_with_the_ways_to_name_one() {
    let daemon = Daemon::start();
    for words in [
        &["vm", "show", ""][..],
        &["vm", "delete", ""],
        &["vm", "health", " "],
        &["vm", "exec", "", "--", "true"],
    ] {
        let said = run(daemon.home(), words);
        assert_ne!(said.status, Some(0), "{words:?}");
        assert!(
            said.stderr
                .contains("its name, its id, or the first 4 or more digits of its id"),
            "{words:?}: {}",
            said.stderr
        );
    }
}

#[test]
fn a_reader_that_goes_away_ends_a_list_quietly() {
    let daemon = Daemon::start();
    let mut command = banger(daemon.home(), &["vm", "list"]);
    let (reader, writer) = std::io::pipe().unwrap();
    command.stdout(writer);
    drop(reader);
    let said = Running::start(command).wait();
    assert_eq!((said.status, said.stderr.as_str()), (Some(141), ""));
}

#[test]
fn errors_have_colour_only_where_it_is_wanted() {
    let home = tempfile::tempdir().unwrap();
    let said = run(home.path(), &["daemon", "status"]);
    assert_eq!(said.status, Some(1));
    insta::assert_snapshot!(said.stderr, @r"
    error: the daemon does not run
    hint: any command that needs it starts it, and so does `banger daemon start`
    ");
}

#[test]
fn a_daemon_that_cannot_be_started_is_said_so() {
    let home = tempfile::tempdir().unwrap();
    let said = run(home.path(), &["vm", "run", "--", "true"]);
    assert_eq!(said.status, Some(125));
    insta::assert_snapshot!(said.stderr, @r"
    error: could not start the daemon `/nowhere/bangerd`
      caused by: No such file or directory (os error 2)
    hint: install `bangerd` beside `banger`, or name it in BANGER_DAEMON_BIN
    ");
}

#[test]
fn a_signal_is_heard_while_the_daemon_starts() {
    let home = tempfile::tempdir().unwrap();
    let fifo = |name: &str| {
        let path = home.path().join(name);
        let mode = Mode::from_raw_mode(0o600);
        mknodat(CWD, &path, FileType::Fifo, mode, 0).unwrap();
        path
    };
    // A daemon that says when it runs, and gets on only when it is told to.
    let (up, go) = (fifo("up"), fifo("go"));
    let program = home.path().join("bangerd");
    let script = format!(
        "#!/bin/sh\necho up >'{}'\nread word <'{}'\n",
        up.display(),
        go.display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    for words in [&["vm", "run"][..], &["vm", "create"], &["vm", "stop", "a"]] {
        let mut command = banger(home.path(), words);
        command.env("BANGER_DAEMON_BIN", &program);
        let running = Running::start(command);
        assert_eq!(std::fs::read_to_string(&up).unwrap(), "up\n");
        running.signal(Signal::INT);
        let said = running.wait();
        assert_eq!((said.status, said.stderr.as_str()), (Some(130), ""));
        std::fs::write(&go, "go\n").unwrap();
    }
}

#[test]
fn leaks_are_listed_by_the_daemons_program() {
    let home = tempfile::tempdir().unwrap();
    let program = home.path().join("bangerd");
    std::fs::write(&program, "#!/bin/sh\necho \"$*\"\nexit 1\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = banger(home.path(), &["doctor", "--leaks", "--json"]);
    command.env("BANGER_DAEMON_BIN", &program);
    let said = Running::start(command).wait();
    assert_eq!(
        (said.status, said.stdout()),
        (Some(1), "doctor --leaks --json\n")
    );
}

#[test]
fn nothing_but_a_version_needs_no_daemon() {
    let home = tempfile::tempdir().unwrap();
    let said = run(home.path(), &["version"]);
    assert_eq!(said.stdout(), format!("banger {}\n", banger_proto::VERSION));
    let said = run(home.path(), &["version", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(json["daemon"], serde_json::Value::Null);
    let said = run(home.path(), &["daemon", "socket"]);
    assert_eq!(
        said.stdout(),
        format!("{}\n", home.path().join("run/bangerd.sock").display())
    );
    let said = run(home.path(), &["daemon", "stop"]);
    assert_eq!(
        (said.status, said.stderr.as_str()),
        (Some(0), "the daemon does not run\n")
    );
    assert_eq!(
        std::fs::read_dir(home.path()).unwrap().count(),
        0,
        "nothing was made"
    );
}

#[test]
fn a_relative_home_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let mut command = banger(home.path(), &["version"]);
    command.env("BANGER_HOME", "here");
    let said = Running::start(command).wait();
    assert_eq!(said.status, Some(1));
    assert!(
        said.stderr.starts_with("error: BANGER_HOME is `here`"),
        "{}",
        said.stderr
    );
}

#[test]
fn a_typo_in_the_config_is_found() {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join("config")).unwrap();
    let file = home.path().join("config/config.toml");
    std::fs::write(&file, "vm = \"qemu\"\n").unwrap();
    let said = run(home.path(), &["config", "check"]);
    assert_eq!(said.status, Some(1));
    assert_eq!(
        said.stderr,
        format!(
            "error: {}:1: unknown key `vm`: did you mean `vmm`?\n",
            file.display()
        )
    );
    let nonsense = "qemu_bin = \"/no/qemu\"\n[vm_defaults]\nvcpu = 0\n";
    std::fs::write(&file, nonsense).unwrap();
    let said = run(home.path(), &["config", "check"]);
    assert_eq!(said.status, Some(1));
    let lines: Vec<&str> = said.stderr.lines().collect();
    assert!(
        lines[0].contains("config.toml:1: qemu_bin: `/no/qemu`"),
        "{}",
        lines[0]
    );
    assert!(
        lines[1].contains("config.toml:3: vm_defaults.vcpu: 0 CPUs"),
        "{}",
        lines[1]
    );
    std::fs::write(&file, "vmm = \"qemu\"\n").unwrap();
    assert_eq!(run(home.path(), &["config", "check"]).status, Some(0));
    let said = run(home.path(), &["config", "show", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(json["vmm"], "qemu");
    assert!(json["vm_defaults"]["vcpu"].as_u64().unwrap() >= 1);
}

#[test]
fn doctor_shows_what_the_daemons_program_finds_and_fails_with_it() {
    let home = tempfile::tempdir().unwrap();
    let program = home.path().join("bangerd");
    let doctor = |status: &str| {
        let script = format!(
            "#!/bin/sh\n[ \"$*\" = 'doctor --json' ] || exit 9\necho '{{\"version\":\"1\",\"checks\":[{{\"id\":\"net.tun\",\"title\":\"tun\",\"status\":\"{status}\",\"detail\":\"x\",\"fix\":\"mend it\"}}]}}'\n"
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = banger(home.path(), &["doctor"]);
        command.env("BANGER_DAEMON_BIN", &program);
        Running::start(command).wait()
    };
    let said = doctor("fail");
    assert_eq!(said.status, Some(1));
    assert!(
        said.stdout()
            .starts_with("FAIL  tun: x\n      fix: mend it\n"),
        "{}",
        said.stdout()
    );
    assert_eq!(doctor("warn").status, Some(0));
    let said = doctor("nonsense");
    assert_eq!(said.status, Some(1));
    assert!(
        said.stderr
            .contains("doctor`\n  caused by: it printed no report"),
        "{}",
        said.stderr
    );
}

#[test]
fn a_shell_completes_names_from_the_daemon_and_does_without_it() {
    let complete = |home: &std::path::Path, words: &[&str]| {
        let mut command = banger(home, &[&["--", "banger"], words].concat());
        command
            .env("BANGER_COMPLETE", "bash")
            .env("_CLAP_IFS", "\n")
            .env("_CLAP_COMPLETE_INDEX", words.len().to_string());
        Running::start(command).wait()
    };
    let daemon = Daemon::start();
    let said = complete(daemon.home(), &["vm", "exec", "c"]);
    assert_eq!((said.status, said.stdout().trim()), (Some(0), "calm-otter"));
    let said = complete(daemon.home(), &["vm", "run", "--image", ""]);
    assert_eq!(said.stdout().trim(), "debian-bookworm-slim");
    let empty = tempfile::tempdir().unwrap();
    let said = complete(empty.path(), &["vm", "stop", "c"]);
    assert_eq!((said.status, said.stdout().trim()), (Some(0), ""));
    let said = complete(empty.path(), &["vm", "st"]);
    assert_eq!(said.stdout(), "stats\nstart\nstop");
}

#[test]
fn a_completion_script_is_one_that_its_shell_understands() {
    let home = tempfile::tempdir().unwrap();
    let script = run(home.path(), &["completion", "bash"]);
    let mut bash = std::process::Command::new("bash");
    bash.arg("-n")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut running = Running::start(bash);
    running.feed(script.stdout);
    let said = running.wait();
    assert_eq!((said.status, said.stderr.as_str()), (Some(0), ""));
}

#[test]
fn the_daemons_log_is_read_without_the_daemon() {
    let daemon = Daemon::start();
    let said = run(daemon.home(), &["daemon", "logs"]);
    assert_eq!(said.status, Some(1));
    assert!(
        said.stderr.starts_with("error: there is no log at"),
        "{}",
        said.stderr
    );
    std::fs::create_dir_all(daemon.log().parent().unwrap()).unwrap();
    std::fs::write(daemon.log(), "1\n2\n3\n").unwrap();
    let said = run(daemon.home(), &["daemon", "logs", "-n", "2"]);
    assert_eq!(said.stdout(), "2\n3\n");
    let mut following = Running::start(banger(daemon.home(), &["daemon", "logs", "-f", "-n1"]));
    assert_eq!(following.line(), "3\n");
    std::fs::write(daemon.log(), "1\n2\n3\n4\n").unwrap();
    assert_eq!(following.line(), "4\n");
}

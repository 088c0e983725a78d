//! The same program with the real daemon and the real guest agent, on the engine that runs the
//! agent as an ordinary process. They are looked for where the workspace's build puts them.

use std::path::{Path, PathBuf};
use std::process::Command;

use banger_proto::api::{DaemonStatus, Vm};
use rustix::process::{Pid, Signal, kill_process};

use crate::daemon::LIMIT;
use crate::process::{Running, Said, banger};
use crate::terminal::Terminal;

/// A home of its own; its daemon and VMs end with it.
struct Home {
    directory: tempfile::TempDir,
    daemon: PathBuf,
    agent: PathBuf,
}

impl Home {
    /// `None` if the other programs are not built.
    fn new() -> Option<Self> {
        let built = Path::new(env!("CARGO_BIN_EXE_banger")).parent().unwrap();
        let find = |variable: &str, name: &str| {
            let named = std::env::var_os(variable).map(PathBuf::from);
            named.or_else(|| Some(built.join(name)).filter(|path| path.exists()))
        };
        let daemon = find("BANGER_DAEMON_BIN", "bangerd");
        let agent = find("BANGER_AGENT_BIN", "banger-vsock-agent");
        let (Some(daemon), Some(agent)) = (daemon, agent) else {
            eprintln!(
                "skipped: bangerd and banger-vsock-agent are not in {}",
                built.display()
            );
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config");
        std::fs::create_dir(&config).unwrap();
        std::fs::write(config.join("config.toml"), "vmm = \"fake\"\n").unwrap();
        Some(Self {
            directory,
            daemon,
            agent,
        })
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = banger(self.directory.path(), words);
        command
            .env("BANGER_DAEMON_BIN", &self.daemon)
            .env("BANGER_AGENT_BIN", &self.agent)
            .env("BANGER_TEST_FAKE", "1")
            .env("TERM", "vt220");
        command
    }

    fn run(&self, words: &[&str]) -> Said {
        Running::start(self.command(words)).wait()
    }

    fn vms(&self) -> Vec<Vm> {
        let said = self.run(&["vm", "list", "--json"]);
        serde_json::from_slice(&said.stdout).unwrap_or_else(|_| panic!("{said:?}"))
    }

    /// Waits until the daemon has deleted what it has to.
    fn wait_for_no_vms(&self) {
        let deadline = std::time::Instant::now() + LIMIT;
        while !self.vms().is_empty() {
            assert!(
                std::time::Instant::now() < deadline,
                "VMs stay: {:?}",
                self.vms()
            );
        }
    }

    fn daemon_pid(&self) -> Pid {
        let said = self.run(&["daemon", "status", "--json"]);
        let status: DaemonStatus = serde_json::from_slice(&said.stdout).unwrap();
        Pid::from_raw(status.pid.cast_signed()).unwrap()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let names = self.run(&["vm", "list", "--quiet"]);
        for name in String::from_utf8_lossy(&names.stdout).lines() {
            self.run(&["vm", "delete", name]);
        }
        self.run(&["daemon", "stop"]);
    }
}

#[test]
fn a_first_command_starts_everything_it_needs() {
    let Some(home) = Home::new() else { return };
    let said = home.run(&[
        "vm",
        "run",
        "--quiet",
        "--rm",
        "--",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 3",
    ]);
    assert_eq!(
        (said.status, said.stdout(), said.stderr.as_str()),
        (Some(3), "out\n", "err\n")
    );
    home.wait_for_no_vms();
}

#[test]
fn commands_at_once_start_one_daemon() {
    let Some(home) = Home::new() else { return };
    let commands: Vec<Running> = (0..6)
        .map(|_| Running::start(home.command(&["vm", "list", "--quiet"])))
        .collect();
    for command in commands {
        let said = command.wait();
        assert_eq!((said.status, said.stderr.as_str()), (Some(0), ""));
    }
}

#[test]
fn the_daemons_death_ends_no_vm() {
    let Some(home) = Home::new() else { return };
    assert_eq!(
        home.run(&["vm", "create", "-q", "--name", "a"]).status,
        Some(0)
    );
    kill_process(home.daemon_pid(), Signal::KILL).unwrap();
    let said = home.run(&["vm", "exec", "a", "--", "echo", "still here"]);
    assert_eq!(
        (said.status, said.stdout(), said.stderr.as_str()),
        (Some(0), "still here\n", "")
    );
    let said = home.run(&["daemon", "restart"]);
    assert_eq!(said.status, Some(0), "{said:?}");
    assert_eq!(home.run(&["vm", "exec", "a", "--", "true"]).status, Some(0));
}

#[test]
fn rm_deletes_the_vm_when_banger_is_killed() {
    let Some(home) = Home::new() else { return };
    for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::KILL] {
        let words = [
            "vm",
            "run",
            "-q",
            "--rm",
            "--",
            "sh",
            "-c",
            "echo up; exec sleep 100",
        ];
        let mut running = Running::start(home.command(&words));
        assert_eq!(running.line(), "up\n");
        running.signal(signal);
        running.status();
        home.wait_for_no_vms();
    }
}

#[test]
fn a_vm_stops_starts_and_goes() {
    let Some(home) = Home::new() else { return };
    assert_eq!(
        home.run(&["vm", "create", "-q", "--name", "a"]).stdout(),
        "a\n"
    );
    assert_eq!(home.run(&["vm", "stop", "-q", "a"]).status, Some(0));
    let said = home.run(&["vm", "exec", "a", "--", "true"]);
    assert_eq!(said.status, Some(125));
    assert!(
        said.stderr.contains("`banger vm start a`"),
        "{}",
        said.stderr
    );
    let said = home.run(&["vm", "ssh", "a"]);
    assert_eq!(said.status, Some(125));
    assert!(
        said.stderr.contains("`banger vm start a`"),
        "{}",
        said.stderr
    );
    assert_eq!(home.run(&["vm", "start", "-q", "a"]).status, Some(0));
    assert_eq!(home.run(&["vm", "exec", "a", "--", "true"]).status, Some(0));
    assert_eq!(home.run(&["vm", "delete", "-q", "a"]).status, Some(0));
    assert!(home.vms().is_empty());
}

#[test]
fn a_shell_is_a_shell() {
    let Some(home) = Home::new() else { return };
    let mut terminal = Terminal::of(home.command(&["vm", "run", "--rm", "--", "sh", "-i"]));
    terminal.expect("ready after");
    terminal.type_in(b"stty size; tty\n");
    terminal.expect("33 91");
    terminal.expect("/dev/pts/");
    // The new size travels beside what is typed: nothing says which of the two comes first.
    terminal.type_in(
        b"sh -c 'trap \"stty size; exit\" WINCH; echo $((5+6)); while :; do sleep 0.01; done'\n",
    );
    terminal.expect("11\r\n");
    terminal.resize(120, 40);
    terminal.expect("40 120");
    // What prints is what sleeps, so that Ctrl-C cannot come between the two.
    terminal.type_in(b"sh -c 'echo $((6*7)); exec sleep 100'\n");
    terminal.expect("42\r\n");
    terminal.type_in(b"\x03");
    terminal.type_in(b"echo status=$?\n");
    terminal.expect("status=130");
    terminal.type_in(b"exit 9\n");
    assert_eq!(terminal.running.status(), Some(9));
    assert!(terminal.is_cooked());
    home.wait_for_no_vms();
}

#[test]
fn all_of_a_vms_life_by_its_commands() {
    let Some(home) = Home::new() else { return };
    let well = |words: &[&str]| {
        let said = home.run(words);
        assert_eq!(said.status, Some(0), "{words:?}: {said:?}");
        said
    };
    let state = |vm: &str| {
        let said = well(&["vm", "show", vm, "--json"]);
        let vm: Vm = serde_json::from_slice(&said.stdout).unwrap();
        vm.state.to_string()
    };
    well(&[
        "vm", "create", "-q", "--name", "a", "--label", "x=1", "--ttl", "1h",
    ]);
    well(&["vm", "wait", "a", "--for", "healthy", "--timeout", "20s"]);
    well(&["vm", "pause", "a"]);
    assert_eq!(state("a"), "paused");
    let said = home.run(&["vm", "exec", "a", "--", "true"]);
    assert!(
        said.stderr.contains("`banger vm resume a`"),
        "{}",
        said.stderr
    );
    well(&["vm", "resume", "a"]);
    well(&["vm", "restart", "a"]);
    well(&["vm", "rename", "a", "b"]);
    well(&[
        "vm",
        "set",
        "b",
        "--label",
        "y=2",
        "--unlabel",
        "x",
        "--no-ttl",
    ]);
    let said = home.run(&["vm", "set", "b", "--disk-size", "1M"]);
    assert_eq!(said.status, Some(1), "{said:?}");
    let said = well(&["vm", "list", "--json", "--filter", "label=y=2"]);
    let vms: Vec<Vm> = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!((vms.len(), vms[0].expires_at.as_deref()), (1, None));
    assert!(well(&["vm", "stats", "b"]).stdout().contains("running"));
    let tree = home.directory.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("file"), "words").unwrap();
    let copy = home.directory.path().join("copy");
    let guest = format!("b:{}", home.directory.path().join("in-guest").display());
    well(&["vm", "cp", tree.to_str().unwrap(), &guest]);
    well(&["vm", "cp", &guest, copy.to_str().unwrap()]);
    let words = std::fs::read_to_string(copy.join("file")).unwrap();
    assert_eq!(words, "words");
    well(&["vm", "kill", "b"]);
    well(&["vm", "wait", "b", "--for", "stopped"]);
    well(&["vm", "prune", "--yes"]);
    assert!(home.vms().is_empty());
    let events = well(&["events"]);
    assert!(
        events.stdout().contains("VM b is deleted"),
        "{}",
        events.stdout()
    );
    let operations = well(&["operation", "list", "--json"]);
    assert!(operations.stdout().contains("\"restart_vm\""));
}

#[test]
fn a_daemon_that_is_at_work_is_not_stopped_unawares() {
    let Some(home) = Home::new() else { return };
    let created = home.run(&["vm", "create", "-q", "--name", "a"]);
    assert_eq!(created.status, Some(0), "{created:?}");
    let words = [
        "vm",
        "exec",
        "a",
        "--",
        "sh",
        "-c",
        "echo up; exec sleep 100",
    ];
    let mut running = Running::start(home.command(&words));
    assert_eq!(running.line(), "up\n");
    for order in ["stop", "restart"] {
        let said = home.run(&["daemon", order]);
        assert_eq!(said.status, Some(1), "{said:?}");
        insta::assert_snapshot!("a_daemon_at_work", said.stderr);
    }
    let said = home.run(&["daemon", "restart", "--force"]);
    assert_eq!(said.status, Some(0), "{said:?}");
    assert!(said.stderr.contains("1 open stream"), "{}", said.stderr);
    assert_ne!(running.status(), Some(0));
    assert_eq!(home.run(&["vm", "exec", "a", "--", "true"]).status, Some(0));

    // On a terminal it asks.
    let mut running = Running::start(home.command(&words));
    assert_eq!(running.line(), "up\n");
    let mut terminal = Terminal::of(home.command(&["daemon", "stop"]));
    terminal.expect("[y/N]");
    terminal.type_in(b"n\n");
    terminal.expect("the daemon goes on");
    assert_eq!(terminal.running.status(), Some(1));
    let mut terminal = Terminal::of(home.command(&["daemon", "stop"]));
    terminal.expect("[y/N]");
    terminal.type_in(b"y\n");
    terminal.expect("the daemon has stopped");
    assert_eq!(terminal.running.status(), Some(0));
    assert_ne!(running.status(), Some(0));
}

#[test]
fn an_interrupted_copy_leaves_no_file_in_part() {
    let Some(home) = Home::new() else { return };
    let created = home.run(&["vm", "create", "-q", "--name", "a"]);
    assert_eq!(created.status, Some(0), "{created:?}");
    let (here, guest) = (
        home.directory.path().join("here"),
        home.directory.path().join("guest"),
    );
    for directory in [&here, &guest] {
        std::fs::create_dir(directory).unwrap();
    }
    let entries = |directory: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        let name = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.unwrap().file_name().into_string().unwrap()
        };
        entries.map(name).collect()
    };
    let until = |directory: &Path, wanted: &dyn Fn(&[String]) -> bool| {
        let deadline = std::time::Instant::now() + LIMIT;
        while !wanted(&entries(directory)) {
            let late = std::time::Instant::now() > deadline;
            assert!(!late, "{:?}", entries(directory));
            std::thread::yield_now();
        }
    };
    // What takes long, and little room.
    let endless = home.directory.path().join("endless");
    let file = std::fs::File::create(&endless).unwrap();
    file.set_len(1 << 32).unwrap();
    let endless = endless.display().to_string();
    let is_draft = |names: &[String]| names.len() == 1 && names[0].starts_with(".banger-cp-");
    for (from, to, directory) in [
        (
            format!("a:{endless}"),
            format!("{}/", here.display()),
            &here,
        ),
        (endless.clone(), format!("a:{}/", guest.display()), &guest),
    ] {
        let mut copying = Running::start(home.command(&["vm", "cp", &from, &to]));
        until(directory, &is_draft);
        copying.signal(Signal::INT);
        assert_eq!(copying.status(), Some(130));
        until(directory, &|names| names.is_empty());
    }
    // Nothing waits for what a copy out leaves.
    let mut copying = Running::start(home.command(&[
        "vm",
        "cp",
        &format!("a:{endless}"),
        &format!("{}/", here.display()),
    ]));
    until(&here, &is_draft);
    copying.signal(Signal::INT);
    assert_eq!(copying.status(), Some(130));
    assert_eq!(entries(&here), Vec::<String>::new());
}

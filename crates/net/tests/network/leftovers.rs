//! What there is of banger on the stage: processes, interfaces, rules and files.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Everything that attaching must not leave behind.
#[derive(Debug, PartialEq, Eq)]
pub struct Traces {
    processes: BTreeSet<String>,
    addresses: String,
    routes: String,
    rules: String,
    files: BTreeSet<String>,
}

/// What there is now. The stage's PID namespace has no processes but the test's.
pub fn traces(runtime_dir: &Path) -> Traces {
    let processes = processes()
        .into_iter()
        .map(|process| process.command)
        .collect();
    let files = fs::read_dir(runtime_dir).into_iter().flatten().flatten();
    Traces {
        processes,
        addresses: said("ip -j addr"),
        routes: said("ip -j route"),
        rules: said("nft list ruleset"),
        files: files
            .map(|file| file.file_name().to_string_lossy().into_owned())
            // It stays, as to remove a lock is to lose it.
            .filter(|name| name != "net.lock")
            .collect(),
    }
}

/// A process of the stage.
pub struct Process {
    pub id: i32,
    pub command: String,
}

/// The processes of the stage that have not ended.
pub fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let process = |entry: fs::DirEntry| {
        let id: i32 = entry.file_name().to_str()?.parse().ok()?;
        let words = fs::read(entry.path().join("cmdline")).ok()?;
        let command = String::from_utf8_lossy(&words).replace('\0', " ");
        // A process that has ended and waits for its parent has no command line.
        (!command.is_empty()).then_some(Process { id, command })
    };
    entries.filter_map(process).collect()
}

/// The ids of processes whose command line has `word`.
pub fn find(word: &str) -> Vec<i32> {
    let found = processes()
        .into_iter()
        .filter(|process| process.command.contains(word));
    found.map(|process| process.id).collect()
}

/// The session of a process, as /proc/PID/stat has it (proc(5)); 0 for one of outside.
pub fn session(id: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).expect("it is there");
    let (_, fields) = stat.rsplit_once(") ").expect("its name is in brackets");
    fields
        .split(' ')
        .nth(3)
        .and_then(|field| field.parse().ok())
        .expect("the fourth is the session")
}

/// Kills a process, and waits until it is gone.
pub fn kill(id: i32) {
    let pid = rustix::process::Pid::from_raw(id).expect("it is an id");
    let flags = rustix::process::PidfdFlags::empty();
    let process = rustix::process::pidfd_open(pid, flags).expect("it is there");
    rustix::process::pidfd_send_signal(&process, rustix::process::Signal::KILL)
        .expect("it is the test's own");
    let mut ended = [rustix::event::PollFd::new(
        &process,
        rustix::event::PollFlags::IN,
    )];
    let patience = rustix::event::Timespec {
        tv_sec: 5,
        tv_nsec: 0,
    };
    let ready = rustix::event::poll(&mut ended, Some(&patience)).expect("it can be awaited");
    assert_eq!(ready, 1, "process {id} outlives SIGKILL");
}

fn said(line: &str) -> String {
    let mut words = line.split(' ');
    let output = Command::new(words.next().expect("a program"))
        .args(words)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .expect("the stage has the tools");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

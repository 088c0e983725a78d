//! What banger has on the host at a moment: the proof that nothing leaks.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use banger_config::Paths;
use banger_proto::id::InstanceId;
use rustix::process::{Pid, Signal, kill_process};

use crate::invocation::pid_exits_within;

/// A process that belongs to a banger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its process id.
    pub pid: i32,
    /// Its command line.
    pub command: String,
}

/// The processes of the banger with these directories: those that carry its mark or its home
/// in their environment, or its directories in their command line.
///
/// Processes whose environment this user may not read are judged by their command line.
pub fn processes(paths: &Paths, home: &Path) -> Vec<Process> {
    let home_variable = format!("BANGER_HOME={}", home.display());
    let mark = instance(paths).map(|instance| format!("BANGER_MARK={instance}/"));
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc is mounted").flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
        // A process whose memory is gone, a zombie, has neither of the two.
        let environment = read("environ");
        let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let is_ours = environment.split(|byte| *byte == 0).any(|variable| {
            variable == home_variable.as_bytes()
                || mark
                    .as_ref()
                    .is_some_and(|mark| variable.starts_with(mark.as_bytes()))
        }) || command.contains(&*home.to_string_lossy());
        if is_ours {
            found.push(Process { pid, command });
        }
    }
    found
}

/// The id that this banger has made itself, if it has.
fn instance(paths: &Paths) -> Option<InstanceId> {
    banger_config::instance::read(&paths.instance()).expect("it is whole")
}

/// Kills them all, and returns when they are gone.
pub fn kill(paths: &Paths, home: &Path) {
    for process in processes(paths, home) {
        if let Some(pid) = Pid::from_raw(process.pid) {
            let _ = kill_process(pid, Signal::KILL); // it may just have ended
            pid_exits_within(pid, Duration::from_secs(10));
        }
    }
}

/// Network interfaces of the host that this banger could have made.
pub fn interfaces(paths: &Paths) -> Vec<String> {
    let Some(instance) = instance(paths) else {
        return Vec::new();
    };
    let mark = format!("bgr-{}", &instance.as_str()[..4]);
    fs::read_dir("/sys/class/net")
        .expect("/sys is mounted")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(&mark))
        .collect()
}

/// Mounts of the host that have something of `home` in them.
pub fn mounts(home: &Path) -> Vec<String> {
    // The process's first thread never leaves the host's mount namespace.
    fs::read_to_string(format!("/proc/{}/mountinfo", std::process::id()))
        .expect("/proc is mounted")
        .lines()
        .filter(|line| line.contains(&*home.to_string_lossy()))
        .map(str::to_owned)
        .collect()
}

/// The host's own network: addresses, routes, rules and firewall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostNetwork(Vec<(&'static str, String)>);

impl HostNetwork {
    /// Reads it as it is now. Only root can read the firewall.
    pub fn read() -> Self {
        let mut facts = vec![
            (
                "addresses",
                without_lifetimes(&listing("ip", &["-o", "addr"])),
            ),
            (
                "routes",
                without_lifetimes(&listing("ip", &["route", "show", "table", "all"])),
            ),
            ("rules", listing("ip", &["rule"])),
        ];
        if crate::user::is_root() {
            facts.push((
                "firewall",
                listing("nft", &["--stateless", "list", "ruleset"]),
            ));
        }
        Self(facts)
    }
}

/// The lifetimes of leased addresses and of routes that were announced run by themselves.
fn without_lifetimes(listing: &str) -> String {
    listing
        .lines()
        .map(|line| {
            let line = line.split(" valid_lft").next().unwrap_or(line);
            let line = line.split(" expires ").next().unwrap_or(line);
            line.trim_end_matches('\\')
        })
        .collect::<Vec<_>>()
        .join("\n")
}

fn listing(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("could not start {program}: {error}"));
    assert!(output.status.success(), "{program}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

//! What only Firecracker has: how its process is confined, what it counts, and what a daemon that
//! takes it over reads of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use banger_e2e::{Home, inventory::Process};

/// The engine's only process.
fn engine(home: &Home) -> Process {
    let engines = home.engines();
    let [engine] = &engines[..] else {
        panic!("not one engine: {engines:#?}")
    };
    engine.clone()
}

/// A field of `/proc/<pid>/status`.
fn status(process: &Path, field: &str) -> Vec<String> {
    let status = fs::read_to_string(process.join("status")).expect("the process runs");
    let told = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let told = told.unwrap_or_else(|| panic!("no {field} in {status}"));
    told.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn the_process_has_no_more_of_the_host_than_it_needs() {
    /// The first of the user ids of root's engines.
    const FIRST_USER: u32 = 0x7000_0000;
    /// Seccomp: filters are on (proc_pid_status(5)).
    const FILTERED: &str = "2";

    let Some(home) = Home::with_firecracker() else {
        return;
    };
    let sizes = ["--vcpu", "2", "--memory", "512M"];
    let create = ["vm", "create", "--name", "jailed"];
    home.banger(create.into_iter().chain(sizes))
        .run()
        .exited_with(0);
    let engine = engine(&home);
    let process = PathBuf::from(format!("/proc/{}", engine.pid));

    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status(&process, set), ["0000000000000000"], "{set}");
    }
    assert_eq!(status(&process, "NoNewPrivs"), ["1"]);
    assert_eq!(status(&process, "Seccomp"), [FILTERED]);
    for thread in fs::read_dir(process.join("task")).unwrap() {
        assert_eq!(status(&thread.unwrap().path(), "Seccomp"), [FILTERED]);
    }
    // The first of its PID namespace.
    let ids = status(&process, "NSpid");
    assert_eq!(ids, [engine.pid.to_string(), "1".to_owned()]);
    let daemon = home.daemon().unwrap().as_raw_nonzero();
    let daemon = PathBuf::from(format!("/proc/{daemon}"));
    for kind in ["mnt", "ipc", "uts", "pid", "net"] {
        let of = |process: &Path| fs::read_link(process.join("ns").join(kind)).unwrap();
        assert_ne!(of(&process), of(&daemon), "{kind}");
    }
    let users: Vec<u32> = status(&process, "Uid")
        .iter()
        .map(|id| id.parse().unwrap())
        .collect();
    match home.is_roots() {
        true => assert!(users.iter().all(|user| *user >= FIRST_USER), "{users:?}"),
        false => assert!(users.iter().all(|user| *user != 0), "{users:?}"),
    }

    let seen = |path: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(process.join("root").join(path)).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(seen("."), names(&["dev", "firecracker", "proc", "run"]));
    assert_eq!(seen("proc"), names(&["self"]));
    assert_eq!(seen("dev"), names(&["kvm", "net"]));
    let limits = fs::read_to_string(process.join("limits")).unwrap();
    for (limit, most) in [("Max core file size", "0"), ("Max open files", "4096")] {
        let line = limits.lines().find(|line| line.starts_with(limit)).unwrap();
        let soft = line[limit.len()..].split_whitespace().next();
        assert_eq!(soft, Some(most), "{line}");
    }
    // The files of its VM, its sockets and pipes, and what it has made itself.
    let state = &home.paths().state;
    for entry in fs::read_dir(process.join("fd")).unwrap() {
        let target = fs::read_link(entry.unwrap().path()).unwrap();
        let below = ["vms", "images", "kernels"];
        let is_of_vm = below
            .iter()
            .any(|name| target.starts_with(state.join(name)));
        let shown = target.to_string_lossy().into_owned();
        let is_known = [
            "anon_inode:",
            "socket:",
            "/dev/",
            "/run/log",
            "/run/metrics",
        ];
        let is_known = is_known.iter().any(|begin| shown.starts_with(begin));
        assert!(is_of_vm || is_known, "{shown}");
    }

    let cgroup = is_in_cgroup(&home, &process);
    home.banger(["vm", "delete", "jailed"]).run().exited_with(0);
    home.assert_no_vm_left();
    if let Some(cgroup) = cgroup {
        assert!(!cgroup.exists(), "{} is left", cgroup.display());
    }
}

/// Root's engine is in a cgroup of its own where the host has such: asserts its limits and that
/// it is no leak, and returns where it is.
fn is_in_cgroup(home: &Home, process: &Path) -> Option<PathBuf> {
    let top = Path::new("/sys/fs/cgroup");
    if !home.is_roots() || !top.join("cgroup.controllers").exists() {
        return None;
    }
    let told = fs::read_to_string(process.join("cgroup")).expect("the process runs");
    let own = told.lines().find_map(|line| line.strip_prefix("0::/"));
    let own = top.join(own.unwrap_or_else(|| panic!("no cgroup in {told}")));
    assert_eq!(own.parent(), Some(&*top.join("banger")), "{told}");
    // Two CPUs and 512 MiB are the guest's.
    for (file, limit) in [
        ("pids.max", "34"),
        ("memory.max", "1610612736"),
        ("cpu.max", "300000 100000"),
    ] {
        let set = fs::read_to_string(own.join(file)).expect("the controller is on");
        assert_eq!(set.trim_end(), limit, "{file}");
    }
    let inventory = home.banger(["doctor", "--leaks", "--json"]).run().json();
    let things = inventory["things"].as_array().expect("they are a list");
    let listed = things
        .iter()
        .find(|thing| thing["name"] == own.display().to_string())
        .unwrap_or_else(|| panic!("{inventory:#}"));
    assert_eq!(
        (&listed["kind"], &listed["owner"]),
        (&"cgroup".into(), &"VM `jailed`".into())
    );
    Some(own)
}

/// What `/metrics` says that the engine has counted.
fn counted(home: &Home, group: &str, counter: &str) -> Option<u64> {
    let page = home.page("/metrics");
    let words = format!("group=\"{group}\",counter=\"{counter}\"}} ");
    let mut samples = page
        .lines()
        .filter(|line| line.starts_with("banger_vm_engine_total{"));
    samples.find_map(|line| line.split_once(&words)?.1.parse().ok())
}

#[test]
fn what_it_counts_and_logs_goes_on_with_the_next_daemon() {
    const MIB: u64 = 1 << 20;

    let Some(home) = Home::with_firecracker() else {
        return;
    };
    home.banger(["vm", "create", "--name", "counted"])
        .run()
        .exited_with(0);
    let write = || {
        let write = "dd if=/dev/urandom of=/root/much bs=1M count=8 conv=fsync";
        home.banger(["vm", "exec", "counted", "--", "sh", "-c", write])
            .run()
            .exited_with(0);
    };
    let written = || counted(&home, "block_work", "write_bytes").expect("the disk is counted");
    write();
    assert!(written() >= 8 * MIB, "{}", written());
    assert!(counted(&home, "net_net", "rx_packets_count").is_some());
    assert_eq!(counted(&home, "seccomp", "num_faults"), Some(0));

    let engine = engine(&home);
    home.kill_daemon();
    // The next one counts from its own beginning.
    write();
    assert_eq!(self::engine(&home), engine);
    assert!(written() >= 8 * MIB, "{}", written());
    // Each order is logged, as that by which it was asked for what it counts: what comes after
    // the daemon's death has come by the same pipe.
    let orders = || {
        let log = home.banger(["vm", "logs", "counted", "--engine"]).run();
        log.text().matches("FlushMetrics").count()
    };
    let before = orders();
    written();
    assert!(orders() > before, "{before}");
    home.banger(["vm", "delete", "counted"])
        .run()
        .exited_with(0);
    home.assert_no_vm_left();
}

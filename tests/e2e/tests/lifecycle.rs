//! create, list, show, stop, start, delete: what a VM is, and that its data stays.

use banger_e2e::Home;

#[test]
fn what_was_written_before_stop_is_there_after_start() {
    let Some(home) = Home::with_vms() else { return };
    let created = home
        .banger([
            "vm",
            "create",
            "--name",
            "keeper",
            "--label",
            "kind=test",
            "--json",
        ])
        .run()
        .json();
    assert_eq!(created["name"], "keeper");
    assert_eq!(created["state"], "running");
    assert_eq!(created["image"], banger_e2e::IMAGE);
    assert_eq!(created["labels"]["kind"], "test");

    let exec = |script: &str| {
        home.banger(["vm", "exec", "keeper", "--", "sh", "-c", script])
            .run()
    };
    assert_eq!(home.engines().len(), 1);
    let boot = exec("cat /proc/sys/kernel/random/boot_id").text();
    exec("echo work >/root/work; echo system >/etc/system; hostname").exited_with(0);

    home.banger(["vm", "stop", "keeper"]).run().exited_with(0);
    let stopped = home.banger(["vm", "show", "keeper", "--json"]).run().json();
    assert_eq!(stopped["state"], "stopped");
    assert_eq!(stopped["pid"], serde_json::Value::Null);
    assert_eq!(home.engines(), []);
    exec("true").exited_with(125).says("is not running");

    home.banger(["vm", "start", "keeper"]).run().exited_with(0);
    assert_eq!(
        exec("cat /root/work /etc/system; hostname").text(),
        "work\nsystem\nkeeper"
    );
    assert_ne!(exec("cat /proc/sys/kernel/random/boot_id").text(), boot);
    assert_eq!(exec("dmesg | grep -c 'EXT4-fs error' || true").text(), "0");

    home.banger(["vm", "delete", "keeper"]).run().exited_with(0);
    home.assert_no_vm_left();
    home.assert_no_vm_known();
    home.banger(["vm", "show", "keeper"])
        .run()
        .exited_with(1)
        .says("keeper");
}

#[test]
fn vms_are_found_by_name_id_and_beginning_of_an_id() {
    let Some(home) = Home::new() else { return };
    for name in ["ant", "bee"] {
        let create = ["vm", "create", "--no-start", "--name", name];
        home.banger(create).run().exited_with(0);
    }
    let listed = home.banger(["vm", "list", "--json"]).run().json();
    let names: Vec<&str> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|vm| vm["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["ant", "bee"]);
    let table = home.banger(["vm", "list"]).run().text();
    assert!(table.contains("ant") && table.contains("bee"), "{table}");
    // Neither has been started, so none runs.
    assert_eq!(
        home.banger(["vm", "ps", "--json"]).run().json(),
        serde_json::json!([])
    );

    let id = listed[0]["id"].as_str().unwrap();
    for reference in ["ant", id, &id[..id.len() - 4]] {
        let shown = home
            .banger(["vm", "show", reference, "--json"])
            .run()
            .json();
        assert_eq!(shown["id"], id, "by {reference}");
    }
    // A command on several VMs does what it can, and fails if one of them cannot.
    home.banger(["vm", "delete", "ant", "no-such-vm", "bee"])
        .run()
        .exited_with(1)
        .says("no-such-vm");
    home.assert_no_vm_known();
    home.assert_no_vm_left();
}

#[test]
fn logs_and_stages_tell_how_a_vm_came_up() {
    let Some(home) = Home::with_vms() else { return };
    let vm = home
        .banger(["vm", "create", "--name", "talker", "--json"])
        .run()
        .json();
    let stages: Vec<&str> = vm["stages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|stage| stage["stage"].as_str().unwrap())
        .collect();
    for stage in ["image", "disks", "network", "engine", "agent"] {
        assert!(stages.contains(&stage), "no {stage} in {stages:?}");
    }
    let boot = home.banger(["vm", "logs", "talker", "--boot"]).run().text();
    assert!(boot.contains("agent"), "{boot}");
    home.banger(["vm", "logs", "talker", "--console"])
        .run()
        .exited_with(0);
    home.banger(["vm", "logs", "talker", "--engine"])
        .run()
        .exited_with(0);
    home.banger(["vm", "delete", "talker"]).run().exited_with(0);
}

#[test]
fn a_vm_has_the_cpus_memory_and_disks_that_were_asked_for() {
    let Some(home) = Home::with_vms() else { return };
    let sizes = [
        "--vcpu",
        "2",
        "--memory",
        "700M",
        "--disk-size",
        "3G",
        "--system-size",
        "2G",
    ];
    let script = "nproc; awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo; \
                  df --output=size -BM /root / | tail -n 2 | tr -d ' M'";
    let run = ["vm", "run", "--rm"].into_iter().chain(sizes);
    let told = home
        .banger(run.chain(["--", "sh", "-c", script]))
        .run()
        .text();
    let numbers: Vec<u64> = told.lines().map(|line| line.parse().unwrap()).collect();
    let [cpus, memory, work, system] = numbers[..] else {
        panic!("{told}")
    };
    assert_eq!(cpus, 2);
    // A kernel keeps some of the memory, and a file system some of the disk.
    assert!((600..=700).contains(&memory), "{memory} MiB of memory");
    assert!((2700..=3072).contains(&work), "{work} MiB of work disk");
    assert!(
        (1800..=2048).contains(&system),
        "{system} MiB of system disk"
    );
    home.wait_for_no_vm();
}

#[test]
fn a_paused_vm_goes_on_with_the_right_time_and_a_killed_one_keeps_what_was_synced() {
    let Some(home) = Home::with_vms() else { return };
    let banger = |arguments: &[&str]| home.banger(arguments.iter().copied()).run();
    banger(&["vm", "create", "--name", "sleeper"]).exited_with(0);
    let exec = |script: &str| banger(&["vm", "exec", "sleeper", "--", "sh", "-c", script]);
    let boot = exec("cat /proc/sys/kernel/random/boot_id").text();

    // A clock that stands still is like one that is wrong: what counts is that it is set.
    exec("date -s '2001-01-01' && sync").exited_with(0);
    banger(&["vm", "pause", "sleeper"]).exited_with(0);
    home.wait_for_state("sleeper", "paused");
    exec("true").exited_with(125).says("is paused");
    banger(&["vm", "resume", "sleeper"]).exited_with(0);
    let guest: u64 = exec("date +%s").text().parse().unwrap();
    let host = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    assert!(
        host.abs_diff(guest) < 60,
        "{guest} in the guest, {host} here"
    );
    assert_eq!(exec("cat /proc/sys/kernel/random/boot_id").text(), boot);

    exec("echo kept >/root/kept; echo system >/etc/kept; sync").exited_with(0);
    banger(&["vm", "pause", "sleeper"]).exited_with(0);
    banger(&["vm", "kill", "sleeper"]).exited_with(0);
    home.wait_for_state("sleeper", "stopped");
    assert_eq!(home.engines(), []);
    banger(&["vm", "restart", "sleeper"]).exited_with(0);
    assert_eq!(exec("cat /root/kept /etc/kept").text(), "kept\nsystem");
    let second = exec("cat /proc/sys/kernel/random/boot_id").text();
    banger(&["vm", "restart", "sleeper"]).exited_with(0);
    assert_ne!(exec("cat /proc/sys/kernel/random/boot_id").text(), second);
    assert_eq!(exec("cat /root/kept /etc/kept").text(), "kept\nsystem");
    banger(&["vm", "delete", "sleeper"]).exited_with(0);
    home.assert_no_vm_left();
}

#[test]
fn a_guest_that_powers_itself_off_is_stopped_and_not_failed() {
    let Some(home) = Home::with_vms() else { return };
    let banger = |arguments: &[&str]| home.banger(arguments.iter().copied()).run();
    banger(&["vm", "create", "--name", "leaver"]).exited_with(0);
    let exec = |script: &str| banger(&["vm", "exec", "leaver", "--", "sh", "-c", script]);
    // The init's own way, once that is up; and without it, at once.
    let through_init = "until [ -S /run/systemd/private ]; do sleep 0.1; done; \
                        echo kept >/root/kept; systemctl poweroff";
    for way in [
        through_init,
        "echo more >>/root/kept; sync; poweroff --force --force",
    ] {
        // It may be gone before it has answered.
        let _ = exec(way);
        home.wait_for_state("leaver", "stopped");
        let shown = banger(&["vm", "show", "leaver", "--json"]).json();
        assert!(shown["failure"].is_null(), "{shown:#}");
        assert_eq!(home.engines(), []);
        banger(&["vm", "start", "leaver"]).exited_with(0);
    }
    assert_eq!(exec("cat /root/kept").text(), "kept\nmore");
    banger(&["vm", "delete", "leaver"]).exited_with(0);
    home.assert_no_vm_left();
}

#[test]
fn disks_grow_while_the_vm_runs_and_at_its_next_start() {
    let Some(home) = Home::with_vms() else { return };
    let banger = |arguments: &[&str]| home.banger(arguments.iter().copied()).run();
    let small = ["--disk-size", "1G", "--system-size", "1G"];
    let create = ["vm", "create", "--name", "grower"];
    let create: Vec<&str> = create.into_iter().chain(small).collect();
    banger(&create).exited_with(0);
    let exec = |script: &str| banger(&["vm", "exec", "grower", "--", "sh", "-c", script]);
    let sizes = || -> Vec<u64> {
        let told = exec("df --output=size -BM /root / | tail -n 2 | tr -d ' M'").text();
        told.lines().map(|line| line.parse().unwrap()).collect()
    };
    let before = sizes();
    assert!(
        before.iter().all(|size| (800..=1024).contains(size)),
        "{before:?}"
    );
    exec("head -c 48M /dev/urandom >/root/data; sha256sum /root/data >/root/sum; sync")
        .exited_with(0);

    banger(&["vm", "set", "grower", "--disk-size", "2G"]).exited_with(0);
    let live = sizes();
    assert!((1800..=2048).contains(&live[0]), "{live:?}");
    assert_eq!(live[1], before[1]);
    exec("sha256sum -c /root/sum").exited_with(0);
    banger(&["vm", "set", "grower", "--disk-size", "1G"])
        .exited_with(1)
        .says("cannot shrink");

    banger(&["vm", "stop", "grower"]).exited_with(0);
    let larger = [
        "vm",
        "set",
        "grower",
        "--disk-size",
        "3G",
        "--system-size",
        "2G",
    ];
    banger(&larger).exited_with(0);
    banger(&["vm", "start", "grower"]).exited_with(0);
    let next = sizes();
    assert!((2700..=3072).contains(&next[0]), "{next:?}");
    assert!((1800..=2048).contains(&next[1]), "{next:?}");
    exec("sha256sum -c /root/sum").exited_with(0);
    banger(&["vm", "delete", "grower"]).exited_with(0);
    home.assert_no_vm_left();
}

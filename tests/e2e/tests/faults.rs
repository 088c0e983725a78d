//! What guests and hosts do wrong while a VM runs, and what becomes of the VM: its state is the
//! truth, every command ends, and what was synced is there after the next start.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use banger_e2e::{Home, Output, wait_for_words, wait_in};

/// How long a command may take to end that is about a guest that does not answer. Without
/// hardware virtualisation banger waits longest, for a new command 60 s.
const BOUND: Duration = Duration::from_secs(120);

/// Runs a script in a VM.
fn script(home: &Home, vm: &str, script: &str) -> Output {
    home.banger(["vm", "exec", vm, "--", "sh", "-c", script])
        .limit(BOUND)
        .run()
}

fn run(home: &Home, command: &str, vm: &str) -> Output {
    home.banger(["vm", command, vm]).limit(BOUND).run()
}

#[test]
fn a_guest_whose_kernel_panics_is_failed_says_so_and_starts_again() {
    let Some(home) = Home::with_vms() else { return };
    home.banger(["vm", "create", "--name", "panicky"])
        .run()
        .exited_with(0);
    let crash = "echo kept >/root/kept; sync; echo c >/proc/sysrq-trigger";
    script(&home, "panicky", crash).exited_with(125);
    home.wait_for_state("panicky", "failed");
    let shown = home
        .banger(["vm", "show", "panicky", "--json"])
        .run()
        .json();
    let failure = shown["failure"].to_string();
    let words = "Kernel panic - not syncing: sysrq triggered crash";
    assert!(failure.contains(words), "{failure}");
    assert!(!failure.contains("RIP:"), "{failure}");
    run(&home, "start", "panicky").exited_with(0);
    assert_eq!(script(&home, "panicky", "cat /root/kept").text(), "kept");
    run(&home, "delete", "panicky").exited_with(0);
    home.assert_no_vm_left();
}

#[test]
fn a_guest_whose_agent_hangs_is_not_healthy_and_its_stop_ends_in_bounded_time() {
    let Some(home) = Home::with_vms() else { return };
    home.banger(["vm", "create", "--name", "mute"])
        .run()
        .exited_with(0);
    script(&home, "mute", "echo kept >/root/kept; sync").exited_with(0);
    // It stops after the command's end has been told.
    let hang = "pid=$(grep -lz '^@banger-vsock-agent' /proc/[0-9]*/cmdline | cut -d / -f 3); \
                nohup setsid sh -c \"sleep 1; echo gone >/root/gone; sync; kill -STOP $pid\" \
                >/dev/null 2>&1 &";
    script(&home, "mute", hang).exited_with(0);
    // Until then it answers: each look is a request, which is what is waited for.
    let deadline = Instant::now() + BOUND;
    let ill = loop {
        let health = run(&home, "health", "mute");
        if health.status.code() != Some(0) {
            break health;
        }
        assert!(Instant::now() < deadline, "still healthy: {health:?}");
    };
    let told = String::from_utf8_lossy(&ill.stdout).into_owned();
    assert!(told.contains("no answer"), "{ill:?}");
    let shown = home.banger(["vm", "show", "mute", "--json"]).run().json();
    assert_eq!(shown["state"], "running", "{shown:#}");

    let begin = Instant::now();
    run(&home, "stop", "mute").exited_with(0);
    assert!(begin.elapsed() < BOUND, "{:?}", begin.elapsed());
    let shown = home.banger(["vm", "show", "mute", "--json"]).run().json();
    assert_eq!(shown["state"], "stopped", "{shown:#}");
    run(&home, "start", "mute").exited_with(0);
    let kept = script(&home, "mute", "cat /root/kept /root/gone").text();
    assert_eq!(kept, "kept\ngone");
    run(&home, "delete", "mute").exited_with(0);
    home.assert_no_vm_left();
}

/// Ends the guest's agent as a crash would.
const KILL_AGENT: &str = "kill -9 $(grep -lz '^@banger-vsock-agent' /proc/[0-9]*/cmdline \
                          | cut -d / -f 3)";

/// What a guest whose agent was killed must come to, with the exec that ran at that moment.
fn recovers_from_a_killed_agent(home: &Home, vm: &str) {
    let ready = ["vm", "exec", vm, "--", "sh", "-c", "echo ready; sleep 600"];
    let mut running = home.banger(ready).limit(BOUND).start();
    running.expect_stdout("ready");
    let begin = Instant::now();
    script(home, vm, KILL_AGENT).exited_with(125);
    let lost = running.wait().exited_with(125);
    assert!(begin.elapsed() < BOUND / 2, "{:?}", begin.elapsed());
    let lost = lost.says("ended before `sh` did");
    lost.says("`sh` may still run there");

    assert_eq!(script(home, vm, "echo back").text(), "back");
    run(home, "health", vm).exited_with(0);
    let shown = home.banger(["vm", "show", vm]).run();
    let told = String::from_utf8_lossy(&shown.stdout).into_owned();
    let words = "the agent ended by signal 9 and was started again";
    assert!(told.contains(words), "{told}");
    assert!(told.contains("running"), "{told}");
}

#[test]
fn an_agent_that_dies_is_started_again_and_what_ran_on_its_link_ends_with_an_error() {
    let Some(home) = Home::with_vms() else { return };
    home.banger(["vm", "create", "--name", "mortal"])
        .run()
        .exited_with(0);
    recovers_from_a_killed_agent(&home, "mortal");

    // Two processes that cost a guest little.
    let resident = "for name in keeper vsock-agent; do \
                    pid=$(grep -lz \"^@banger-$name\" /proc/[0-9]*/cmdline | cut -d / -f 3); \
                    grep VmRSS /proc/$pid/status | tr -dc '0-9\\n'; done";
    let told = script(&home, "mortal", resident).text();
    let kib: Vec<u64> = told.lines().map(|line| line.parse().unwrap()).collect();
    eprintln!("resident: {kib:?} KiB");
    assert!(
        kib.len() == 2 && kib.iter().sum::<u64>() < 8 << 10,
        "{told}"
    );

    // It can still go down in order: nothing is synced here.
    script(&home, "mortal", "echo kept >/root/kept").exited_with(0);
    run(&home, "stop", "mortal").exited_with(0);
    run(&home, "start", "mortal").exited_with(0);
    assert_eq!(script(&home, "mortal", "cat /root/kept").text(), "kept");

    // The next boot stays with banger's own init: the image has lost its.
    script(&home, "mortal", "rm /sbin/init && sync").exited_with(0);
    run(&home, "restart", "mortal").exited_with(0);
    let comm = script(&home, "mortal", "cat /proc/1/cmdline | tr '\\0' ' '");
    assert!(comm.text().starts_with("/init"), "PID 1 is banger's");
    recovers_from_a_killed_agent(&home, "mortal");
    script(&home, "mortal", "echo more >>/root/kept").exited_with(0);
    run(&home, "stop", "mortal").exited_with(0);
    run(&home, "start", "mortal").exited_with(0);
    assert_eq!(
        script(&home, "mortal", "cat /root/kept").text(),
        "kept\nmore"
    );
    run(&home, "delete", "mortal").exited_with(0);
    home.assert_no_vm_left();
}

#[test]
fn an_agent_that_dies_while_no_daemon_runs_is_there_for_the_next_one() {
    let Some(home) = Home::with_vms() else { return };
    home.banger(["vm", "create", "--name", "alone"])
        .run()
        .exited_with(0);
    let console = console_log(&home, "alone");
    let kill = format!(
        "nohup setsid sh -c \"sleep 5; {KILL_AGENT}; echo agent is killed >/dev/console\" \
         >/dev/null 2>&1 &"
    );
    // Not expanded before its time.
    let kill = kill.replace("$(", "\\$(");
    script(&home, "alone", &kill).exited_with(0);
    home.kill_daemon();
    wait_for_words(&console, "agent is killed", BOUND);

    assert_eq!(script(&home, "alone", "echo back").text(), "back");
    run(&home, "delete", "alone").exited_with(0);
    home.assert_no_vm_left();
}

/// Where the console of a VM is written down.
fn console_log(home: &Home, vm: &str) -> PathBuf {
    let shown = home.banger(["vm", "show", vm, "--json"]).run().json();
    let id = shown["id"].as_str().expect("a VM has an id");
    home.paths().vms().join(id).join("console.log")
}

#[test]
fn a_guest_whose_agent_is_gone_for_good_is_told_of_and_stops_in_bounded_time() {
    let Some(home) = Home::with_vms() else { return };
    home.banger(["vm", "create", "--name", "headless"])
        .run()
        .exited_with(0);
    let kill_both = "kill -9 $(grep -lz '^@banger-' /proc/[0-9]*/cmdline | cut -d / -f 3)";
    let begin = Instant::now();
    script(&home, "headless", kill_both).exited_with(125);
    assert!(begin.elapsed() < BOUND / 2, "{:?}", begin.elapsed());
    let shown = home
        .banger(["vm", "show", "headless", "--json"])
        .run()
        .json();
    assert_eq!(shown["state"], "running", "{shown:#}");
    let warnings = shown["warnings"].to_string();
    assert!(warnings.contains("its agent does not answer"), "{warnings}");
    run(&home, "health", "headless").exited_with(1);
    script(&home, "headless", "true")
        .exited_with(125)
        .says("`banger vm stop headless` ends it in any case");

    let begin = Instant::now();
    run(&home, "stop", "headless").exited_with(0);
    assert!(begin.elapsed() < BOUND, "{:?}", begin.elapsed());
    run(&home, "start", "headless").exited_with(0);
    script(&home, "headless", "true").exited_with(0);
    run(&home, "delete", "headless").exited_with(0);
    home.assert_no_vm_left();
}

#[test]
fn a_guest_whose_init_ignores_its_shutdown_is_powered_off_in_bounded_time_and_keeps_its_files() {
    let Some(home) = Home::with_vms() else { return };
    home.banger(["vm", "create", "--name", "deaf"])
        .run()
        .exited_with(0);
    let console = console_log(&home, "deaf");
    // An init that is not up yet is not asked at all.
    let deafen = "until [ -S /run/systemd/private ]; do sleep 0.1; done; \
                  systemctl is-system-running --wait >/dev/null; \
                  systemctl mask poweroff.target && echo kept >/root/kept";
    script(&home, "deaf", deafen).exited_with(0);
    let begin = Instant::now();
    run(&home, "stop", "deaf").exited_with(0);
    assert!(begin.elapsed() < BOUND, "{:?}", begin.elapsed());
    wait_for_words(
        &console,
        "the guest's init did not power off in time",
        BOUND,
    );
    let shown = home.banger(["vm", "show", "deaf", "--json"]).run().json();
    assert_eq!(shown["state"], "stopped", "{shown:#}");
    assert!(shown["failure"].is_null(), "{shown:#}");

    // Nothing was synced but by the agent, at its end.
    run(&home, "start", "deaf").exited_with(0);
    assert_eq!(script(&home, "deaf", "cat /root/kept").text(), "kept");
    run(&home, "delete", "deaf").exited_with(0);
    home.assert_no_vm_left();
}

#[test]
fn a_guest_that_floods_its_console_stays_usable_and_its_log_bounded() {
    /// Bytes beyond which a log is begun anew.
    const BOUND_OF_LOGS: u64 = 16 << 20;

    let Some(home) = Home::with_vms() else { return };
    home.banger(["vm", "create", "--name", "noisy"])
        .run()
        .exited_with(0);
    let console = console_log(&home, "noisy");
    // The flood before, which would take long without hardware virtualisation.
    let log = fs::OpenOptions::new().write(true).open(&console).unwrap();
    log.set_len(BOUND_OF_LOGS - (64 << 10)).unwrap();
    let flood = "nohup setsid sh -c 'base64 /dev/urandom >/dev/console' >/dev/null 2>&1 &";
    script(&home, "noisy", flood).exited_with(0);
    let kept = console.with_extension("log.1");
    let directory = console.parent().unwrap();
    wait_in(directory, BOUND, "not cut yet", || {
        let length = log.metadata().unwrap().len();
        (!kept.exists() || length > BOUND_OF_LOGS).then_some(length)
    });
    assert!(fs::metadata(&kept).unwrap().len() <= BOUND_OF_LOGS);
    // It floods on.
    assert_eq!(script(&home, "noisy", "echo usable").text(), "usable");
    let before = log.metadata().unwrap().len();
    wait_in(directory, BOUND, "the flood has ended", || {
        let length = log.metadata().unwrap().len();
        (length == before).then_some(length)
    });
    run(&home, "stop", "noisy").exited_with(0);
    run(&home, "delete", "noisy").exited_with(0);
    home.assert_no_vm_left();
}

#[test]
fn a_guest_gets_the_time_when_the_hosts_clock_has_jumped() {
    let Some(home) = Home::with_vms() else { return };
    home.banger(["vm", "create", "--name", "late"])
        .run()
        .exited_with(0);
    let daemon = home.daemon().unwrap();
    // The host's clock is everybody's: the guest's is put back instead, and the daemon is told
    // of a jump as a daemon of tests can be.
    let now = || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.unwrap().as_secs()
    };
    let guests = || {
        let told = script(&home, "late", "date +%s").text();
        told.parse::<u64>().unwrap()
    };
    script(&home, "late", "date -s @1000000000").exited_with(0);
    assert!(guests() < now() - 3600);
    rustix::process::kill_process(daemon, rustix::process::Signal::USR1).unwrap();
    let deadline = Instant::now() + BOUND;
    while guests() < now() - 10 {
        assert!(Instant::now() < deadline, "{} is not {}", guests(), now());
    }
    assert!(guests() <= now() + 1);
    assert_eq!(
        home.daemon(),
        Some(daemon),
        "it is the daemon that was told"
    );
    run(&home, "delete", "late").exited_with(0);
    home.assert_no_vm_left();
}

#[test]
fn a_host_without_room_costs_a_running_guest_nothing_that_was_synced() {
    let Some(home) = Home::with_vms() else { return };
    let vms = home.paths().vms();
    // Firecracker's guests have blocks of zeros written, which QEMU leaves out.
    if !home.limit_size(&vms, "320m") {
        return;
    }
    home.banger(["vm", "create", "--name", "cramped"])
        .run()
        .exited_with(0);
    script(&home, "cramped", "echo kept >/root/kept; sync").exited_with(0);
    // What takes the room is the host's, so that all of a guest's writes fail from here on.
    let filler = vms.join("filler");
    let fill = || io::copy(&mut io::repeat(1), &mut fs::File::create(&filler)?);
    let full = fill().unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    let write = "dd if=/dev/urandom of=/root/much bs=1M count=32 conv=fsync 2>&1";
    let output = script(&home, "cramped", write);
    assert_ne!(output.status.code(), Some(0), "{output:?}");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        told.contains("Input/output error") || told.contains("Read-only file system"),
        "{output:?}"
    );
    let shown = home
        .banger(["vm", "show", "cramped", "--json"])
        .run()
        .json();
    assert_eq!(shown["state"], "running", "{shown:#}");
    // The guest's own services may have met it first, on the system disk.
    let begin = "its work disk could not be written at ";
    let warnings = shown["warnings"].as_array().unwrap();
    let warning = warnings
        .iter()
        .map(|warning| warning.as_str().unwrap())
        .find(|warning| warning.starts_with(begin))
        .unwrap_or_else(|| panic!("{shown:#}"));
    let reason = ": No space left on device; free space on the host: 0";
    assert!(warning.contains(reason), "{warning}");
    let told = home.banger(["vm", "show", "cramped"]).run();
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains(warning), "{told}");

    fs::remove_file(&filler).unwrap();
    run(&home, "stop", "cramped").exited_with(0);
    run(&home, "start", "cramped").exited_with(0);
    let after = "cat /root/kept; echo more >/root/more; sync; cat /root/more";
    assert_eq!(script(&home, "cramped", after).text(), "kept\nmore");
    let shown = home
        .banger(["vm", "show", "cramped", "--json"])
        .run()
        .json();
    assert!(shown["warnings"].is_null(), "{shown:#}");
    run(&home, "delete", "cramped").exited_with(0);
    home.assert_no_vm_left();
}

#[test]
fn a_daemon_with_few_descriptors_says_what_is_wanting_and_serves_on() {
    let Some(home) = Home::with_vms() else { return };
    let mut limited = home.command("prlimit");
    // A daemon at rest has 17 open, one more when VMs run, and 3 more for each VM; a start takes
    // some for a while.
    limited.args(["--nofile=26:26", "--"]);
    limited.arg(home.programs().join("banger"));
    limited.args(["daemon", "start"]);
    let status = limited.status().unwrap();
    assert!(status.success(), "{status}");

    let mut refused = 0;
    for name in ["one", "two", "three"] {
        let created = home.banger(["vm", "create", "--name", name]).run();
        if created.status.code() == Some(0) {
            script(&home, name, "true").exited_with(0);
        } else {
            created.says("error: ").says("Too many open files");
            refused += 1;
        }
    }
    assert!(refused > 0, "the limit was not reached");
    // It serves on, and what was not made has left nothing.
    for listed in home
        .banger(["vm", "list", "--json"])
        .run()
        .json()
        .as_array()
        .unwrap()
    {
        assert_eq!(listed["state"], "running", "{listed:#}");
        run(&home, "delete", listed["name"].as_str().unwrap()).exited_with(0);
    }
    home.assert_no_vm_known();
    home.assert_no_vm_left();
}

//! What cannot work says so, says what to do, fails, and leaves nothing behind.

use std::fs;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use banger_e2e::{Home, Output, pid_exits_within};

/// The shape of every error: one line what, lines why, one line what to do.
#[track_caller]
fn assert_clear(output: &Output) {
    assert!(output.stderr.contains("error: "), "no error in {output:?}");
    assert!(!output.stderr.contains("panicked"), "{output:?}");
    assert!(
        output.stdout.is_empty(),
        "talk on standard output: {output:?}"
    );
}

#[test]
fn nonsense_is_refused_before_anything_is_made() {
    let Some(home) = Home::new() else { return };
    let refused: &[(&[&str], &str)] = &[
        (&["--name", "No_Name"], "No_Name"),
        (&["--name", &"n".repeat(64)], "VM name"),
        (&["--memory", "lots"], "lots"),
        (&["--memory", "1M"], "memory"),
        (&["--memory", "900T"], "memory"),
        (&["--vcpu", "0"], "cpu"),
        (&["--vcpu", "100000"], "cpu"),
        (&["--disk-size", "0"], "disk"),
        (&["--image", "../etc"], "../etc"),
        (&["--image", "debian-bookwurm"], "debian-bookwurm"),
        (&["--engine", "abacus"], "abacus"),
        (&["--label", "=x"], "label"),
    ];
    for (flags, words) in refused {
        let run = ["vm", "run", "--rm"]
            .into_iter()
            .chain(flags.iter().copied());
        let output = home.banger(run.chain(["--", "true"])).run();
        let code = output.status.code().unwrap();
        assert!(code == 125 || code == 2, "{flags:?}: {output:?}");
        assert_clear(&output);
        output.says(words);
    }
    home.banger(["vm", "create", "--no-start", "--name", "taken"])
        .run()
        .exited_with(0);
    let twice = home
        .banger(["vm", "create", "--name", "taken"])
        .run()
        .exited_with(1);
    assert_clear(&twice);
    twice.says("taken");
    for command in ["show", "start", "stop", "delete", "logs"] {
        let output = home.banger(["vm", command, "nobody"]).run().exited_with(1);
        assert_clear(&output);
        output.says("nobody");
    }
    home.banger(["vm", "exec", "nobody", "--", "true"])
        .run()
        .exited_with(125)
        .says("nobody");
    home.banger(["vm", "fly"]).run().exited_with(2).says("fly");
    home.banger(["vm", "delete", "taken"]).run().exited_with(0);
    home.assert_no_vm_known();
    home.assert_no_vm_left();
}

#[test]
fn a_near_name_is_suggested() {
    let Some(home) = Home::new() else { return };
    home.banger(["vm", "create", "--no-start", "--name", "otter"])
        .run()
        .exited_with(0);
    home.banger(["vm", "show", "oter"])
        .run()
        .exited_with(1)
        .says("otter");
    home.banger(["vm", "delete", "otter"]).run().exited_with(0);
}

#[test]
fn a_config_typo_is_refused_with_the_key_that_was_meant() {
    let Some(home) = Home::new() else { return };
    home.configure("log_levle = \"info\"\n");
    for command in [&["vm", "list"][..], &["config", "check"]] {
        let output = home.banger(command.iter().copied()).run();
        assert_ne!(output.status.code(), Some(0));
        assert_clear(&output);
        output.says("log_levle").says("log_level");
    }
    assert_eq!(home.daemon(), None);
}

#[test]
fn a_second_daemon_is_refused_and_the_first_one_serves_on() {
    let Some(home) = Home::new() else { return };
    home.banger(["daemon", "start"]).run().exited_with(0);
    let second = home.program("bangerd").run();
    assert_ne!(second.status.code(), Some(0));
    let told = String::from_utf8_lossy(&second.stdout).into_owned();
    assert!(told.contains("\"error\""), "{second:?}");
    home.banger(["vm", "list"]).run().exited_with(0);
}

#[test]
fn a_stale_socket_is_replaced() {
    let Some(home) = Home::new() else { return };
    let socket = home.paths().socket();
    home.banger(["daemon", "start"]).run().exited_with(0);
    home.kill_daemon();
    assert!(socket.exists(), "a killed daemon leaves its socket");
    home.banger(["vm", "list"]).run().exited_with(0);
    home.banger(["daemon", "stop"]).run().exited_with(0);
    // So is one that nobody of ours ever listened on.
    let _ = fs::remove_file(&socket);
    drop(UnixListener::bind(&socket).unwrap());
    home.hand_over();
    home.banger(["vm", "list"]).run().exited_with(0);
}

#[test]
fn a_truncated_image_is_named_and_not_booted() {
    let Some(home) = Home::new() else { return };
    for rootfs in home.files_named("rootfs.ext4") {
        let start = fs::read(&rootfs).unwrap()[..1 << 20].to_vec();
        // A new file: the old one is shared with the other tests.
        fs::remove_file(&rootfs).unwrap();
        fs::write(&rootfs, start).unwrap();
    }
    home.hand_over();
    let output = home
        .banger(["vm", "run", "--rm", "--", "true"])
        .run()
        .exited_with(125);
    assert_clear(&output);
    output.says(banger_e2e::IMAGE);
    home.assert_no_vm_known();
    home.assert_no_vm_left();
}

#[test]
fn a_full_disk_is_reported_and_nothing_half_made_stays() {
    let Some(home) = Home::new() else { return };
    if !home.limit_size(&home.paths().vms(), "1m") {
        return;
    }
    let output = home
        .banger(["vm", "run", "--rm", "--", "true"])
        .run()
        .exited_with(125);
    assert_clear(&output);
    assert!(
        output.stderr.contains("space") || output.stderr.contains("room"),
        "{output:?}"
    );
    home.assert_no_vm_known();
    home.assert_no_vm_left();
}

#[test]
fn a_read_only_state_directory_is_reported() {
    let Some(home) = Home::new() else { return };
    if !home.make_read_only(&home.paths().state) {
        return;
    }
    let output = home.banger(["vm", "list"]).run().exited_with(1);
    assert_clear(&output);
    output.says(&home.paths().state.display().to_string());
    // The daemon that could not start has said so just before its end.
    let ended = |daemon| pid_exits_within(daemon, Duration::from_secs(10));
    assert!(home.daemon().is_none_or(ended));
}

#[test]
fn a_missing_tool_is_named_with_the_way_to_get_it() {
    let Some(home) = Home::with_vms() else { return };
    // Everything but pasta: the engine and the others by their names in a directory of their own.
    let tools = home.path().join("tools");
    fs::create_dir(&tools).unwrap();
    for directory in ["/usr/local/bin", "/usr/bin", "/usr/sbin"] {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name != "pasta" && name != "passt" && name != "pasta.avx2" && name != "passt.avx2" {
                let _ = std::os::unix::fs::symlink(entry.path(), tools.join(name));
            }
        }
    }
    home.hand_over();
    let output = home
        .banger(["vm", "run", "--rm", "--", "true"])
        .env("PATH", &tools)
        .run()
        .exited_with(125);
    assert_clear(&output);
    output.says("pasta").says("passt");
    home.assert_no_vm_known();
    home.assert_no_vm_left();
}

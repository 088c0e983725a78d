//! `vm cp`, with guests whose file systems are directories of the test.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Stdio;

use banger_proto::api::VmState;

use crate::daemon::Daemon;
use crate::process::{Running, Said, banger, run};

fn cp(daemon: &Daemon, from: &str, to: &str) -> Said {
    run(daemon.home(), &["vm", "cp", from, to])
}

fn well(daemon: &Daemon, from: &str, to: &str) {
    let said = cp(daemon, from, to);
    assert_eq!(
        (said.status, said.stderr.as_str()),
        (Some(0), ""),
        "{from} {to}"
    );
}

/// A tree with a script, a link, and a file two levels down.
fn make_tree(at: &Path) {
    fs::create_dir_all(at.join("sub")).unwrap();
    fs::write(at.join("run"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(at.join("run"), PermissionsExt::from_mode(0o750)).unwrap();
    symlink("/no/where", at.join("link")).unwrap();
    fs::write(at.join("sub/deep"), vec![9; 300_000]).unwrap();
}

fn assert_tree(at: &Path) {
    let run = fs::metadata(at.join("run")).unwrap();
    assert_eq!(run.permissions().mode() & 0o7777, 0o750);
    assert_eq!(
        fs::read_link(at.join("link")).unwrap(),
        Path::new("/no/where")
    );
    assert_eq!(fs::read(at.join("sub/deep")).unwrap(), vec![9; 300_000]);
}

#[test]
fn trees_and_files_go_in_and_come_out_again() {
    let daemon = Daemon::start();
    let guest = daemon.guest("calm-otter");
    fs::create_dir_all(guest.join("srv")).unwrap();
    fs::create_dir_all(guest.join("root")).unwrap();
    let here = tempfile::tempdir().unwrap();
    let tree = here.path().join("tree");
    make_tree(&tree);
    let path = |name: &str| here.path().join(name).display().to_string();

    well(&daemon, &path("tree"), "calm-otter:/srv");
    assert_tree(&guest.join("srv/tree"));
    well(&daemon, &path("tree"), "calm-otter:/srv/other");
    assert_tree(&guest.join("srv/other"));
    well(&daemon, &path("tree/."), "calm-otter:");
    assert_tree(&guest.join("root"));
    well(&daemon, &path("tree/run"), "calm-otter:/srv/script");
    assert_eq!(
        fs::read_to_string(guest.join("srv/script")).unwrap(),
        "#!/bin/sh\n"
    );

    well(&daemon, "calm-otter:/srv/tree", &path("back"));
    assert_tree(&here.path().join("back"));
    well(&daemon, "calm-otter:/srv/tree", &path("back"));
    assert_tree(&here.path().join("back/tree"));
    fs::create_dir(here.path().join("contents")).unwrap();
    well(&daemon, "calm-otter:/srv/tree/.", &path("contents"));
    assert_tree(&here.path().join("contents"));
    well(&daemon, "calm-otter:/srv/tree/link", &path("a-link"));
    assert_eq!(
        fs::read_link(path("a-link")).unwrap(),
        Path::new("/no/where")
    );
}

#[test]
fn a_link_to_a_directory_is_a_directory_to_copy_into() {
    let daemon = Daemon::start();
    let guest = daemon.guest("calm-otter");
    fs::create_dir_all(guest.join("data")).unwrap();
    symlink(guest.join("data"), guest.join("srv")).unwrap();
    let here = tempfile::tempdir().unwrap();
    fs::write(here.path().join("file"), "x").unwrap();
    let file = here.path().join("file").display().to_string();
    well(&daemon, &file, "calm-otter:/srv");
    assert_eq!(fs::read_to_string(guest.join("data/file")).unwrap(), "x");
}

#[test]
fn between_vms_a_tree_streams_through() {
    let daemon = Daemon::start();
    make_tree(&daemon.guest("calm-otter").join("tree"));
    let to = daemon.guest("devbox");
    well(&daemon, "calm-otter:/tree", "devbox:/copy");
    assert_tree(&to.join("copy"));
    well(&daemon, "calm-otter:/tree/.", "devbox:/");
    assert_tree(&to);
}

#[test]
fn a_dash_is_a_tar_stream() {
    let daemon = Daemon::start();
    make_tree(&daemon.guest("calm-otter").join("tree"));
    let out = cp(&daemon, "calm-otter:/tree", "-");
    assert_eq!(out.status, Some(0));
    let to = daemon.guest("devbox");
    fs::create_dir(to.join("srv")).unwrap();
    let mut command = banger(daemon.home(), &["vm", "cp", "-", "devbox:/srv"]);
    command.stdin(Stdio::piped());
    let mut running = Running::start(command);
    running.feed(out.stdout);
    assert_eq!(running.wait().status, Some(0));
    assert_tree(&to.join("srv/tree"));
}

#[test]
fn what_is_no_tar_stream_is_refused_before_it_is_sent() {
    let daemon = Daemon::start();
    fs::create_dir(daemon.guest("devbox").join("srv")).unwrap();
    let given = |bytes: &[u8]| {
        let mut command = banger(daemon.home(), &["vm", "cp", "-", "devbox:/srv"]);
        command.stdin(Stdio::piped());
        let mut running = Running::start(command);
        running.feed(bytes.to_vec());
        running.wait()
    };
    let said = given(&[b'x'; 3000]);
    assert_eq!(said.status, Some(1));
    insta::assert_snapshot!(said.stderr);
    assert_eq!(given(b"").stderr, said.stderr);
    let left: Vec<_> = fs::read_dir(daemon.guest("devbox").join("srv"))
        .unwrap()
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_cannot_be_copied_says_why() {
    let daemon = Daemon::start();
    let guest = daemon.guest("calm-otter");
    fs::write(guest.join("file"), "x").unwrap();
    make_tree(&guest.join("tree"));
    let here = tempfile::tempdir().unwrap();
    make_tree(&here.path().join("tree"));
    fs::write(here.path().join("file"), "x").unwrap();
    let here_path = here.path().display().to_string();
    let mut text = String::new();
    for (from, to) in [
        ("HERE/file", "HERE/other"),
        ("-", "-"),
        ("HERE/none", "calm-otter:/"),
        ("HERE/file", "calm-otter:/no/where"),
        ("HERE/file", "calm-otter:/no/"),
        ("HERE/tree", "calm-otter:/file"),
        ("HERE/file", "calm-otter:/file/"),
        ("calm-otter:/none", "HERE"),
        ("calm-otter:/file", "HERE/no/where"),
        ("calm-otter:/tree", "HERE/file"),
        ("calm-otter:/none", "devbox:/"),
        ("calm-oter:/file", "HERE"),
    ] {
        let typed = (
            from.replace("HERE", &here_path),
            to.replace("HERE", &here_path),
        );
        let said = cp(&daemon, &typed.0, &typed.1);
        assert_eq!(said.status, Some(1), "{from} {to}");
        let stderr = said.stderr.replace(&here_path, "HERE");
        text.push_str(&format!("$ banger vm cp {from} {to}\n{stderr}"));
    }
    daemon.enter("devbox", VmState::Paused);
    let said = cp(&daemon, "devbox:/file", &here_path);
    text.push_str(&format!(
        "$ banger vm cp devbox:/file HERE\n{}",
        said.stderr
    ));
    insta::assert_snapshot!(text);
}

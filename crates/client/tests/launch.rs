//! How a daemon that does not become one is reported, with programs that behave so.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use banger_client::launch::{LaunchError, connect_or_start};
use banger_proto::error::{ApiError, ErrorKind};

fn program(directory: &Path, script: &str) -> PathBuf {
    let path = directory.join("bangerd");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

async fn launch(script: &str) -> (tempfile::TempDir, LaunchError) {
    let directory = tempfile::tempdir().unwrap();
    let program = program(directory.path(), script);
    let error = connect_or_start(&directory.path().join("d.sock"), &program).await;
    (directory, error.unwrap_err())
}

#[tokio::test]
async fn the_daemons_own_reason_is_passed_on() {
    let refusal = ApiError::new(
        ErrorKind::Precondition,
        "could not open the state directory",
    );
    let json = serde_json::to_string(&refusal).unwrap();
    let (_directory, error) = launch(&format!("echo '{{\"error\":{json}}}'; exit 1")).await;
    assert_eq!(ApiError::from(error), refusal);
}

#[tokio::test]
async fn a_daemon_that_dies_without_a_word_is_an_error() {
    let (_directory, error) = launch("echo rubbish").await;
    assert!(matches!(error, LaunchError::Mute { .. }));
    let (_directory, error) = launch("exit 3").await;
    assert!(matches!(error, LaunchError::Mute { .. }));
}

#[tokio::test]
async fn a_daemon_that_is_ending_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("d.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    // It takes one connection, and is gone before it answers.
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        drop(listener);
        drop(stream);
    });
    let program = program(directory.path(), "echo started > ${0%/*}/started");
    let error = connect_or_start(&socket, &program).await.unwrap_err();
    assert!(matches!(error, LaunchError::Mute { .. }), "{error:?}");
    assert!(directory.path().join("started").exists());
}

#[tokio::test]
async fn a_daemon_that_ends_while_another_starts_is_replaced_too() {
    let directory = tempfile::tempdir().unwrap();
    let json = r#"{"error":{"kind":"conflict","message":"bangerd is already running"}}"#;
    let script =
        format!("d=${{0%/*}}; [ -e $d/once ] && exit 1; echo > $d/once; echo '{json}'; exit 1");
    let program = program(directory.path(), &script);
    let socket = directory.path().join("d.sock");
    let error = connect_or_start(&socket, &program).await.unwrap_err();
    // The second attempt is the one that failed.
    assert!(matches!(error, LaunchError::Mute { .. }), "{error:?}");
}

#[tokio::test]
async fn a_missing_program_says_where_to_put_it() {
    let directory = tempfile::tempdir().unwrap();
    let error = connect_or_start(
        &directory.path().join("d.sock"),
        Path::new("/nowhere/bangerd"),
    )
    .await
    .unwrap_err();
    let error = ApiError::from(error);
    assert_eq!(
        error.message,
        "could not start the daemon `/nowhere/bangerd`"
    );
    assert!(error.hint.unwrap().contains("BANGER_DAEMON_BIN"));
}

#[tokio::test]
async fn the_daemon_gets_a_session_of_its_own_and_none_of_our_descriptors() {
    // A descriptor without close-on-exec, as a script that holds a lock leaves to its children.
    let inherited = std::fs::File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&inherited, rustix::io::FdFlags::empty()).unwrap();
    let (directory, _error) = launch(
        "d=${0%/*}; cut -d' ' -f1,6 /proc/$$/stat > $d/stat; ls /proc/$$/fd > $d/fds; pwd > $d/pwd",
    )
    .await;
    let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
    let stat = read("stat");
    let (pid, session) = stat.trim().split_once(' ').unwrap();
    assert_eq!(pid, session, "leads its own session");
    assert_eq!(read("pwd"), "/\n");
    let number = std::os::fd::AsRawFd::as_raw_fd(&inherited).to_string();
    assert!(
        !read("fds").lines().any(|line| line == number),
        "descriptor {number} leaked"
    );
}

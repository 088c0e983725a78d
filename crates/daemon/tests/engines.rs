//! Installing an engine through the API: from a server on the loopback, and from a file. The
//! programs are scripts that tell a version.

#![expect(clippy::unwrap_used, reason = "these are tests")]
#![expect(clippy::disallowed_methods, reason = "tests start what they test")]

mod support;

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use banger_client::ClientError;
use banger_proto::api::{
    Engine, EngineKind, InstallEngine, Operation, OperationKind, OperationState, ProgramOrigin,
};
use banger_proto::error::ErrorKind;
use bytes::Bytes;
use futures_util::stream;
use support::{Daemon, Home, soon, succeeded};

const FIRECRACKER: EngineKind = EngineKind::Firecracker;
const ARCH: &str = std::env::consts::ARCH;

/// The archive of a release, compressed by the host's gzip.
fn archive(version: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for program in ["firecracker", "jailer"] {
        let content = script(version);
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        let path = format!("release-v{version}-{ARCH}/{program}-v{version}-{ARCH}");
        builder
            .append_data(&mut header, path, &content[..])
            .unwrap();
    }
    piped("gzip", &builder.into_inner().unwrap())
}

fn script(version: &str) -> Vec<u8> {
    format!("#!/bin/sh\necho Firecracker v{version}\n").into_bytes()
}

fn sha256(bytes: &[u8]) -> String {
    let printed = String::from_utf8(piped("sha256sum", bytes)).unwrap();
    printed.split_whitespace().next().unwrap().to_owned()
}

/// What a program makes of a few bytes.
fn piped(program: &str, bytes: &[u8]) -> Vec<u8> {
    let mut command = Command::new(program);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    child.wait_with_output().unwrap().stdout
}

/// How a server answers everybody.
#[derive(Clone, Copy)]
enum Answers {
    Wholly,
    /// Half of it, and then nothing more.
    ByHalf,
}

/// Serves `content` for as long as this process lives, and gives the address.
fn serve(content: Vec<u8>, answers: Answers) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/firecracker.tgz", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() > 0 {
                request.push(byte[0]);
            }
            let length = content.len();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
            stream.write_all(head.as_bytes()).unwrap();
            let body = match answers {
                Answers::Wholly => &content[..],
                Answers::ByHalf => &content[..length / 2],
            };
            // The client may have gone.
            let _ = stream.write_all(body);
            if let Answers::ByHalf = answers {
                held.push(stream);
            }
        }
    });
    url
}

/// A home whose config says where Firecracker comes from, and a daemon in it that finds no
/// other one.
async fn start(home: &Home, url: &str) -> Daemon {
    let paths = home.paths();
    fs::create_dir_all(&paths.config).unwrap();
    let config = format!("firecracker_url = '{url}'\n");
    fs::write(paths.config_file(), config).unwrap();
    let empty = home.path().join("empty");
    fs::create_dir_all(&empty).unwrap();
    home.start_with(&[("PATH", &format!("{}:/usr/bin:/bin", empty.display()))])
        .await
}

async fn download(daemon: &Daemon, sha256: Option<String>) -> Operation {
    let request = InstallEngine { sha256 };
    let begun = daemon.client.install_engine(FIRECRACKER, &request).await;
    daemon.end(&begun.unwrap().id).await
}

async fn send(daemon: &Daemon, bytes: Vec<u8>, sha256: Option<&str>) -> Operation {
    let pieces = stream::iter([Ok::<_, io::Error>(Bytes::from(bytes))]);
    let begun = daemon
        .client
        .install_engine_from(FIRECRACKER, sha256, pieces);
    daemon.end(&begun.await.unwrap().id).await
}

async fn engine(daemon: &Daemon) -> Engine {
    daemon.client.engine(FIRECRACKER).await.unwrap()
}

/// What an operation failed of, in one line.
fn failure(operation: &Operation) -> String {
    assert_eq!(operation.state, OperationState::Failed);
    let error = operation.error.as_ref().unwrap();
    format!("{}: {}", error.message, error.causes.join(": "))
}

/// Everything of engines and downloads that is there.
fn files(home: &Home) -> Vec<String> {
    fn list(directory: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(directory).into_iter().flatten() {
            let path = entry.unwrap().path();
            match path.is_dir() && !path.is_symlink() {
                true => list(&path, found),
                false => found.push(path.file_name().unwrap().to_str().unwrap().to_owned()),
            }
        }
    }
    let mut found = Vec::new();
    list(&home.paths().firecracker_releases(), &mut found);
    list(&home.paths().downloads(), &mut found);
    found.sort();
    found
}

const WHOLE: [&str; 4] = ["current", "firecracker", "jailer", "manifest.json"];

#[tokio::test]
async fn an_engine_is_installed_shown_and_removed() {
    let home = Home::new();
    let bytes = archive("1.16.1");
    let daemon = start(&home, &serve(bytes.clone(), Answers::Wholly)).await;
    if let Some(path) = engine(&daemon).await.path {
        eprintln!("skipped: this host has a Firecracker of its own at {path}");
        return;
    }
    let done = download(&daemon, Some(sha256(&bytes))).await;
    succeeded(&done);
    assert_eq!(done.kind, OperationKind::InstallEngine);
    assert_eq!(files(&home), WHOLE);
    let shown = engine(&daemon).await;
    assert_eq!(shown.version.as_deref(), Some("1.16.1"));
    assert_eq!(shown.origin, Some(ProgramOrigin::Installed));
    let installed = shown.installed.unwrap();
    assert_eq!(installed.sha256, sha256(&bytes));
    assert!(installed.jailer.is_some());
    // It is still there after the daemon has ended.
    daemon.stop().await;
    let daemon = home.start().await;
    assert!(engine(&daemon).await.installed.is_some());
    let removing = daemon.client.uninstall_engine(FIRECRACKER).await.unwrap();
    succeeded(&daemon.end(&removing.id).await);
    assert_eq!(engine(&daemon).await.installed, None);
    assert_eq!(files(&home), [""; 0]);
    let again = daemon.client.uninstall_engine(FIRECRACKER).await.unwrap();
    let again = daemon.end(&again.id).await;
    assert_eq!(again.error.unwrap().kind, ErrorKind::NotFound);
}

#[tokio::test]
async fn a_mirror_gives_what_is_pinned_or_nothing() {
    let home = Home::new();
    let daemon = start(&home, &serve(archive("1.16.1"), Answers::Wholly)).await;
    let said = failure(&download(&daemon, None).await);
    // Too short or of another hash: in no case it is unpacked.
    assert!(
        said.starts_with("could not install Firecracker: "),
        "{said}"
    );
    let said = failure(&download(&daemon, Some("0".repeat(64))).await);
    assert!(
        said.ends_with("does not have the hash that it should have"),
        "{said}"
    );
    assert_eq!(engine(&daemon).await.installed, None);
    let left = files(&home);
    assert!(left.iter().all(|file| file.ends_with(".part")), "{left:?}");
}

#[tokio::test]
async fn a_file_is_installed_and_one_that_is_refused_leaves_nothing() {
    let home = Home::new();
    let daemon = start(&home, "http://127.0.0.1:1/none").await;
    let bytes = archive("1.15.0");
    let unknown = send(&daemon, bytes.clone(), None).await;
    let said = failure(&unknown);
    assert!(
        said.contains("the archive is not that of Firecracker 1.16.1"),
        "{said}"
    );
    let hint = unknown.error.unwrap().hint.unwrap();
    assert!(
        hint.contains(&format!("--sha256 {}", sha256(&bytes))),
        "{hint}"
    );
    let said = failure(&send(&daemon, b"hello".to_vec(), None).await);
    assert!(
        said.contains("the program does not work on this host"),
        "{said}"
    );
    let said = failure(&send(&daemon, script("1.9.0"), None).await);
    assert!(said.contains("banger needs 1.10 or later"), "{said}");
    assert_eq!(files(&home), [""; 0]);
    succeeded(&send(&daemon, bytes.clone(), Some(&sha256(&bytes))).await);
    assert_eq!(files(&home), WHOLE);
    succeeded(&send(&daemon, script("1.16.1"), None).await);
    let installed = engine(&daemon).await.installed.unwrap();
    assert_eq!(
        (installed.version.as_str(), installed.jailer),
        ("1.16.1", None)
    );
}

#[tokio::test]
async fn a_client_that_goes_away_in_the_middle_of_a_file_leaves_nothing() {
    let home = Home::new();
    let daemon = start(&home, "http://127.0.0.1:1/none").await;
    let broken = stream::iter([
        Ok(Bytes::from_static(b"#!/bin/sh\n")),
        Err(io::Error::other("the user pressed Ctrl-C")),
    ]);
    let outcome = daemon.client.install_engine_from(FIRECRACKER, None, broken);
    assert!(matches!(
        soon(outcome).await,
        Err(ClientError::Transport { .. })
    ));
    assert_eq!(files(&home), [""; 0]);
    assert_eq!(daemon.client.operations().await.unwrap(), []);
}

#[tokio::test]
async fn a_download_that_is_called_off_leaves_what_the_next_one_goes_on_with() {
    let home = Home::new();
    let bytes = archive("1.16.1");
    let daemon = start(&home, &serve(bytes.clone(), Answers::ByHalf)).await;
    let request = InstallEngine {
        sha256: Some(sha256(&bytes)),
    };
    let begun = daemon.client.install_engine(FIRECRACKER, &request).await;
    let begun = begun.unwrap();
    daemon.reach(&begun.id, "install").await;
    daemon.client.cancel_operation(&begun.id).await.unwrap();
    let ended = daemon.end(&begun.id).await;
    assert_eq!(ended.error.unwrap().kind, ErrorKind::Cancelled);
    assert_eq!(engine(&daemon).await.installed, None);
    let left = files(&home);
    assert!(left.iter().all(|file| file.ends_with(".part")), "{left:?}");
    // The file goes in while that download may still be ending.
    succeeded(&send(&daemon, bytes.clone(), Some(&sha256(&bytes))).await);
    assert!(engine(&daemon).await.installed.is_some());
}

#[tokio::test]
async fn only_what_banger_can_install_is_installed() {
    let home = Home::new();
    let daemon = home.start().await;
    let install = async |engine, sha256| {
        let request = InstallEngine { sha256 };
        match daemon.client.install_engine(engine, &request).await {
            Err(ClientError::Api(error)) => (error.message, error.causes, error.hint),
            other => panic!("{other:?}"),
        }
    };
    insta::assert_debug_snapshot!([
        install(EngineKind::Qemu, None).await,
        install(EngineKind::Fake, None).await,
        install(FIRECRACKER, Some("12".to_owned())).await,
        install(FIRECRACKER, Some("12".repeat(32))).await,
    ]);
    let names: Vec<EngineKind> = daemon
        .client
        .engines()
        .await
        .unwrap()
        .iter()
        .map(|engine| engine.name)
        .collect();
    assert_eq!(names, [FIRECRACKER, EngineKind::Qemu]);
}

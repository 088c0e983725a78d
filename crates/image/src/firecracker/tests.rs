//! Installations from files and from a server on the loopback. The programs are scripts that
//! tell a version, and each test says itself what their archive must hash to.

use std::os::unix::fs::PermissionsExt as _;

use super::unpack::tests::{ARCH, packed, path};
use super::*;
use crate::download::server::{Answer, Server};

struct Home {
    directory: tempfile::TempDir,
    installer: Installer,
}

impl Home {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let installer = open(directory.path());
        Self {
            directory,
            installer,
        }
    }

    async fn install(&self, source: Source) -> Result<Installed, InstallError> {
        self.installer.install(source, &Reporter::silent()).await
    }

    async fn give(
        &self,
        bytes: &[u8],
        sha256: Option<Sha256Sum>,
    ) -> Result<Installed, InstallError> {
        let mut file = self.installer.upload().await?;
        for piece in bytes.chunks(1000) {
            file.write(piece).await?;
        }
        self.install(Source::File { file, sha256 }).await
    }

    /// Everything that is there, except what a download may leave for the next one.
    fn files(&self) -> Vec<String> {
        let mut found = Vec::new();
        list(self.directory.path(), Path::new(""), &mut found);
        found.sort();
        found
    }
}

/// An installer whose judge runs the program and takes the last word of what it prints.
fn open(home: &Path) -> Installer {
    let judge = |program: &Path| -> Result<String, AnyError> {
        let output = banger_process::command(program).arg("--version").output()?;
        let printed = String::from_utf8(output.stdout)?;
        let version = printed.trim().strip_prefix("Firecracker v");
        Ok(version.ok_or("it is something else")?.to_owned())
    };
    Installer::open(InstallerConfig {
        directory: home.join("engines/firecracker"),
        downloads: home.join("downloads"),
        judge: Arc::new(judge),
    })
}

fn list(root: &Path, below: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(root.join(below)).unwrap() {
        let entry = entry.unwrap();
        let path = below.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => list(root, &path, found),
            false => found.push(path.display().to_string()),
        }
    }
}

fn script(version: &str) -> Vec<u8> {
    format!("#!/bin/sh\necho Firecracker v{version}\n").into_bytes()
}

/// The archive of a release.
fn archive(version: &str) -> Vec<u8> {
    packed(&[
        (&path("firecracker", version, ARCH), &script(version)),
        (&path("jailer", version, ARCH), b"#!/bin/sh\n"),
    ])
}

fn sum(bytes: &[u8]) -> Sha256Sum {
    Sha256Sum(Sha256::digest(bytes).into())
}

/// A release of which the server has `bytes`.
fn release(server: &Server, bytes: &[u8]) -> Release {
    Release {
        version: None,
        url: server.url.clone(),
        sha256: sum(bytes),
        size: Some(bytes.len() as u64),
    }
}

const WHOLE: [&str; 4] = [
    "engines/firecracker/1.16.1/firecracker",
    "engines/firecracker/1.16.1/jailer",
    "engines/firecracker/1.16.1/manifest.json",
    "engines/firecracker/current",
];

#[tokio::test]
async fn a_release_is_downloaded_and_can_be_run() {
    let home = Home::new();
    let bytes = archive("1.16.1");
    let server = Server::start(bytes.clone(), vec![Answer::Whole]).await;
    assert_eq!(home.installer.installed(), None);
    let installed = home.install(Source::Download(release(&server, &bytes)));
    let installed = installed.await.unwrap();
    assert_eq!(home.files(), WHOLE);
    assert_eq!(installed.version, "1.16.1");
    assert_eq!(installed.source, server.url);
    assert_eq!(installed.sha256, sum(&bytes));
    assert_eq!(home.installer.installed(), Some(installed.clone()));
    for program in [installed.program, installed.jailer.unwrap()] {
        let mode = program.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
    }
}

#[tokio::test]
async fn a_download_goes_on_where_it_broke_off() {
    let home = Home::new();
    let bytes = archive("1.16.1");
    let answers = vec![Answer::Cut(100), Answer::Range];
    let server = Server::start(bytes.clone(), answers).await;
    let source = Source::Download(release(&server, &bytes));
    home.install(source).await.unwrap();
    assert_eq!(server.ranges(), [None, Some(100)]);
    assert_eq!(home.files(), WHOLE);
}

#[tokio::test]
async fn the_server_is_asked_for_a_length_that_is_not_known() {
    let home = Home::new();
    let bytes = archive("1.17.0-dev");
    let server = Server::start(bytes.clone(), vec![Answer::Whole, Answer::Whole]).await;
    let source = Source::Download(Release::at(server.url.clone(), sum(&bytes)));
    assert_eq!(home.install(source).await.unwrap().version, "1.17.0-dev");
}

#[tokio::test]
async fn what_is_not_what_it_should_be_leaves_nothing() {
    let good = archive("1.16.1");
    let no_program = packed(&[(&path("jailer", "1.16.1", ARCH), b"x")]);
    let other = packed(&[(
        &path("firecracker", "1.16.1", ARCH),
        b"#!/bin/sh\necho hello\n",
    )]);
    let rubbish = packed(&[(&path("firecracker", "1.16.1", ARCH), b"\x7fELF")]);
    let evil = packed(&[(
        &path("firecracker", "1.16.1", ARCH),
        b"#!/bin/sh\necho Firecracker v../../1\n",
    )]);
    let truncated = &good[..good.len() / 2];
    let mut said = String::new();
    for (what, bytes, hash) in [
        ("wrong hash", &good[..], sum(b"another")),
        ("truncated before it was hashed", truncated, sum(truncated)),
        ("no program", &no_program, sum(&no_program)),
        ("another program", &other, sum(&other)),
        ("for another machine", &rubbish, sum(&rubbish)),
        ("a version that leads elsewhere", &evil, sum(&evil)),
    ] {
        let home = Home::new();
        let server = Server::start(bytes.to_vec(), vec![Answer::Whole]).await;
        let mut release = release(&server, bytes);
        release.sha256 = hash;
        let error = home.install(Source::Download(release)).await.unwrap_err();
        let text = told(&error)
            .replace(&server.url, "URL")
            .replace(ARCH, "ARCH");
        said.push_str(&format!("{what}:\n{text}\n"));
        assert_eq!(home.installer.installed(), None, "{what}");
        // An archive that has its hash is kept for whoever asks again.
        let left = home.files();
        let is_download = |file: &String| file == &format!("downloads/{hash}");
        assert!(left.iter().all(is_download), "{what}: {left:?}");
    }
    insta::assert_snapshot!(said);
}

/// An error with its kind, causes and hint.
fn told(error: &InstallError) -> String {
    let api = banger_proto::error::ApiError::new(error.kind(), "").caused_by(error);
    format!(
        "  {:?}\n  {}\n  hint: {:?}",
        api.kind,
        api.causes.join("\n  "),
        error.hint()
    )
}

#[tokio::test]
async fn what_was_installed_stays_until_another_is() {
    let home = Home::new();
    let first = archive("1.15.0");
    home.give(&first, Some(sum(&first))).await.unwrap();
    let before = home.files();
    let error = home.give(b"#!/bin/sh\nexit 1\n", None).await;
    error.unwrap_err();
    assert_eq!(home.files(), before);
    let second = archive("1.16.1");
    home.give(&second, Some(sum(&second))).await.unwrap();
    assert_eq!(home.files(), WHOLE);
    // The same version from elsewhere, without a jailer.
    home.give(&script("1.16.1"), None).await.unwrap();
    assert_eq!(home.files(), [WHOLE[0], WHOLE[2], WHOLE[3]]);
    let removed = home.installer.remove().await.unwrap().unwrap();
    assert_eq!(removed.version, "1.16.1");
    assert_eq!(home.files(), [""; 0]);
    assert_eq!(home.installer.remove().await.unwrap(), None);
}

#[tokio::test]
async fn a_file_is_believed_only_as_far_as_the_user_says() {
    let home = Home::new();
    let bytes = archive("1.15.0");
    let refused = |error: InstallError| told(&error).replace(&sum(&bytes).to_string(), "HASH");
    let other = sum(b"another");
    let mut said = vec![
        refused(home.give(&bytes, None).await.unwrap_err()),
        refused(home.give(&bytes, Some(other)).await.unwrap_err()),
    ];
    let program = script("1.15.0");
    let wrong = home.give(&program, Some(other)).await.unwrap_err();
    said.push(told(&wrong));
    if ARCH == "x86_64" {
        insta::assert_snapshot!(said.join("\n"));
    }
    assert_eq!(home.files(), [""; 0]);
    let installed = home.give(&program, None).await.unwrap();
    assert_eq!(
        (installed.version.as_str(), installed.jailer),
        ("1.15.0", None)
    );
}

#[tokio::test]
async fn two_installations_share_one_download() {
    let home = Home::new();
    let bytes = archive("1.16.1");
    let server = Server::start(bytes.clone(), vec![Answer::Whole]).await;
    let install = || home.install(Source::Download(release(&server, &bytes)));
    let (first, second) = tokio::join!(install(), install());
    assert_eq!(first.unwrap(), second.unwrap());
    assert_eq!(server.ranges().len(), 1);
    assert_eq!(home.files(), WHOLE);
}

#[tokio::test(flavor = "multi_thread")]
async fn installations_of_different_files_do_not_disturb_each_other() {
    let home = Home::new();
    let (first, second) = (archive("1.15.0"), archive("1.16.1"));
    let (one, other) = tokio::join!(
        home.give(&first, Some(sum(&first))),
        home.give(&second, Some(sum(&second)))
    );
    // One of them came later, and only that one is there.
    let installed = home.installer.installed().unwrap();
    assert!([one, other].into_iter().flatten().any(|it| it == installed));
    assert_eq!(home.files().len(), WHOLE.len());
}

#[tokio::test]
async fn an_installation_that_is_called_off_leaves_what_the_next_one_goes_on_with() {
    let home = Home::new();
    let bytes = archive("1.16.1");
    let hold = Server::start(bytes.clone(), vec![Answer::Hold(100)]).await;
    let (told, mut was_told) = tokio::sync::mpsc::unbounded_channel();
    let reporter = Reporter::new(move |_| {
        let _ = told.send(());
    });
    let installing = {
        let (installer, release) = (home.installer.clone(), release(&hold, &bytes));
        tokio::spawn(async move {
            installer
                .install(Source::Download(release), &reporter)
                .await
        })
    };
    was_told.recv().await.unwrap();
    installing.abort();
    assert!(installing.await.unwrap_err().is_cancelled());
    // The reporter goes when the work has ended.
    while was_told.recv().await.is_some() {}
    let part = format!("downloads/{}.part", sum(&bytes));
    assert_eq!(home.files(), [part]);
    let server = Server::start(bytes.clone(), vec![Answer::Range]).await;
    let source = Source::Download(release(&server, &bytes));
    home.install(source).await.unwrap();
    assert_eq!(server.ranges(), [Some(100)]);
    assert_eq!(home.files(), WHOLE);
}

#[test]
fn what_dead_makers_left_is_removed_at_the_next_start() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("engines/firecracker");
    for name in ["1.15.0", "1.16.1", ".banger-draft-dead", "mine"] {
        fs::create_dir_all(directory.join(name)).unwrap();
    }
    std::os::unix::fs::symlink("1.16.1", directory.join(CURRENT)).unwrap();
    open(home.path());
    let mut left: Vec<_> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["1.16.1", "current", "mine"]);
}

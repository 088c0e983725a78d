//! Claims about file trees.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use hyper::StatusCode;

use crate::client::full;
use crate::process::TestAgent;

#[tokio::test]
async fn a_tree_goes_out_and_in() {
    let agent = TestAgent::start().await;
    let mut client = agent.connect().await;
    let directory = agent.directory.path();
    let tree = directory.join("a tree");
    fs::create_dir_all(tree.join("deep/er")).unwrap();
    fs::write(tree.join("deep/er/script"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(
        tree.join("deep/er/script"),
        PermissionsExt::from_mode(0o750),
    )
    .unwrap();
    fs::write(tree.join("big"), vec![42; 5_000_000]).unwrap();

    let path = tree.display().to_string().replace(' ', "%20");
    let (status, archive) = client
        .call("GET", &format!("/v1/files?path={path}"), "")
        .await;
    assert_eq!(status, StatusCode::OK);
    let target = directory.join("copy");
    let put = format!("/v1/files?path={}", target.display());
    // Padded as GNU tar pads.
    let padded = [&archive[..], &[0; 9216]].concat();
    let (status, body) = client.call("PUT", &put, padded).await;
    assert_eq!(status, StatusCode::NO_CONTENT, "{body:?}");
    let script = fs::metadata(target.join("a tree/deep/er/script")).unwrap();
    assert_eq!(script.permissions().mode() & 0o7777, 0o750);
    assert_eq!(
        fs::read(target.join("a tree/big")).unwrap(),
        vec![42; 5_000_000]
    );
}

#[tokio::test]
async fn an_archive_that_leads_out_is_refused() {
    let agent = TestAgent::start().await;
    let mut client = agent.connect().await;
    let target = agent.directory.path().join("target");
    let mut header = tar::Header::new_gnu();
    let name = b"../evil";
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
    header.set_size(0);
    header.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header, std::io::empty()).unwrap();
    let put = format!("/v1/files?path={}", target.display());
    let (status, body) = client
        .call("PUT", &put, builder.into_inner().unwrap())
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(
        String::from_utf8_lossy(&body).contains("leads out of the target"),
        "{body:?}"
    );
    assert!(!agent.directory.path().join("evil").exists());
}

#[tokio::test]
async fn what_is_not_to_be_had_is_refused_in_the_systems_words() {
    let agent = TestAgent::start().await;
    let mut client = agent.connect().await;
    let directory = agent.directory.path().display().to_string();
    fs::write(format!("{directory}/file"), "x").unwrap();
    let empty = tar::Builder::new(Vec::new()).into_inner().unwrap();
    for (method, path, expected, words) in [
        (
            "GET",
            format!("{directory}/none"),
            StatusCode::NOT_FOUND,
            "No such file",
        ),
        (
            "GET",
            format!("{directory}/file/x"),
            StatusCode::CONFLICT,
            "Not a directory",
        ),
        (
            "PUT",
            format!("{directory}/file"),
            StatusCode::CONFLICT,
            "File exists",
        ),
        (
            "PUT",
            format!("{directory}/file/x"),
            StatusCode::CONFLICT,
            "Not a directory",
        ),
        (
            "PUT",
            "relative".to_owned(),
            StatusCode::BAD_REQUEST,
            "not an absolute path",
        ),
    ] {
        let (status, body) = client
            .call(method, &format!("/v1/files?path={path}"), empty.clone())
            .await;
        let body = String::from_utf8_lossy(&body);
        assert_eq!(status, expected, "{method} {path}: {body}");
        assert!(body.contains(words), "{method} {path}: {body}");
    }
}

#[tokio::test]
async fn the_answer_says_what_the_path_leads_to() {
    let agent = TestAgent::start().await;
    let mut client = agent.connect().await;
    let directory = agent.directory.path();
    fs::write(directory.join("file"), "x").unwrap();
    symlink(directory, directory.join("link")).unwrap();
    symlink("/no/where", directory.join("lost")).unwrap();
    for (name, kind) in [
        (".", "directory"),
        ("file", "file"),
        ("link", "directory"),
        ("lost", "other"),
    ] {
        let path = format!("/v1/files?path={}/{name}", directory.display());
        let response = client.send("GET", &path, full("")).await;
        assert_eq!(response.headers()["x-banger-file-kind"], kind, "{name}");
    }
}

//! Claims about file trees.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use hyper::StatusCode;

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

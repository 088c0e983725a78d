//! What the API lets nobody do to images, and what it must not get in the way of.

#![expect(clippy::disallowed_methods, reason = "tests start what they test")]

mod support;

use std::fs::{self, File};
use std::process::Command;

use banger_proto::api::{BuildImage, CommitVm, RegisterImage};
use banger_proto::error::ErrorKind;
use support::{Home, succeeded};

#[tokio::test]
async fn an_image_may_be_called_what_can_be_done_to_images() {
    let Some(mke2fs) = banger_process::find("mke2fs") else {
        eprintln!("skipped: `mke2fs` is not installed");
        return;
    };
    let home = Home::new();
    let disk = home.path().join("disk");
    File::create(&disk).unwrap().set_len(8 << 20).unwrap();
    let mut format = Command::new(mke2fs);
    let formatted = format.args(["-q", "-F", "-t", "ext4"]).arg(&disk).status();
    assert!(formatted.unwrap().success());
    let daemon = home.start().await;
    for name in ["archive", "build", "import", "prune", "pull", "register"] {
        let image = RegisterImage {
            name: name.parse().unwrap(),
            rootfs: disk.display().to_string(),
            work_seed: None,
            kernel: None,
        };
        daemon.client.register_image(&image).await.unwrap();
        daemon.client.delete_image(name).await.unwrap();
        assert_eq!(daemon.client.images().await.unwrap(), [], "{name}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_vm_without_a_system_of_its_own_makes_no_image() {
    let home = Home::new();
    fs::create_dir_all(home.paths().config).unwrap();
    fs::write(home.paths().config_file(), "vmm = \"fake\"\n").unwrap();
    let daemon = home.start().await;
    daemon.run("box").await;
    succeeded(&daemon.stop_vm("box").await);
    let commit = CommitVm {
        name: "made".parse().unwrap(),
        replace: false,
    };
    let build = BuildImage {
        name: "made".parse().unwrap(),
        from: "base".parse().unwrap(),
        docker: false,
        packages: vec!["jq".to_owned()],
        scripts: Vec::new(),
        size: None,
        replace: false,
    };
    let commit = daemon.client.commit_vm("box", &commit).await.unwrap();
    let build = daemon.client.build_image(&build).await.unwrap();
    for begun in [commit, build] {
        let error = daemon.end(&begun.id).await.error.unwrap();
        assert_eq!(error.kind, ErrorKind::Precondition, "{error:?}");
        let why = "VMs of the engine `fake` have no system of their own";
        assert_eq!(error.causes, [why]);
    }
    let vms = daemon.client.vms().await.unwrap();
    assert_eq!(vms.len(), 1, "a copy or a builder is left: {vms:?}");
    succeeded(&daemon.delete_vm("box").await);
    daemon.stop().await;
    home.assert_clean();
}

//! Images that are made of VMs: by `vm commit` and by `image build`.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use banger_e2e::{Home, IMAGE, skip};

/// An emulated guest reads all of its files for an image.
const CAPTURE_LIMIT: Duration = Duration::from_secs(900);
/// It also installs packages, each with an emulated processor.
const BUILD_LIMIT: Duration = Duration::from_secs(3600);

/// The root file system of the image `name`.
fn rootfs_of(home: &Home, name: &str) -> PathBuf {
    let listed = home.banger(["image", "list", "--json"]).run().json();
    let images = listed.as_array().into_iter().flatten();
    let ids: Vec<&str> = images
        .filter(|image| image["name"] == name)
        .filter_map(|image| image["id"].as_str())
        .collect();
    let [id] = ids[..] else { panic!("{listed:#}") };
    let all = home.files_named("rootfs.ext4");
    let of = |path: &&PathBuf| path.parent().is_some_and(|parent| parent.ends_with(id));
    all.iter().find(of).expect("an image has its file").clone()
}

fn debugfs(home: &Home, disk: &PathBuf, request: &str) -> String {
    let output = home
        .command("debugfs")
        .args(["-R", request])
        .arg(disk)
        .output();
    let output = output.expect("debugfs is installed");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_committed_vm_is_an_image_with_all_that_it_had_and_nothing_of_its_own() {
    let Some(home) = Home::with_vms() else { return };
    let make = "set -e
        echo kept >/etc/kept
        ln /etc/kept /opt/linked
        ln -s /etc/kept /opt/symbolic
        mkdir -m 1777 /srv/sticky
        truncate -s 3G /opt/holes
        echo end >>/opt/holes
        rm /etc/issue
        echo gone >/tmp/gone
        echo mine >/root/mine
        cat /etc/machine-id >/opt/machine-id
        chown 1234:5678 /opt/symbolic -h";
    home.banger(["vm", "run", "--name", "box", "--", "sh", "-c", make])
        .run()
        .exited_with(0);
    home.banger(["vm", "commit", "box", "made"])
        .run()
        .exited_with(1)
        .says("not stopped");
    home.banger(["vm", "stop", "box"]).run().exited_with(0);
    home.banger(["vm", "commit", "box", IMAGE])
        .run()
        .exited_with(1)
        .says("already");
    home.banger(["vm", "commit", "box", "made"])
        .limit(CAPTURE_LIMIT)
        .run()
        .exited_with(0);
    let vms = home.banger(["vm", "list", "--quiet"]).run().text();
    assert_eq!(vms.trim(), "box", "the copy is gone");

    let rootfs = rootfs_of(&home, "made");
    let check = home.command("e2fsck").arg("-fn").arg(&rootfs).status();
    assert!(check.expect("e2fsck is installed").success());
    let base = rootfs_of(&home, IMAGE);
    for disk in [&base, &rootfs] {
        let attributes = debugfs(&home, disk, "ea_list /usr/bin/ping");
        assert!(attributes.contains("security.capability"), "{attributes}");
    }
    let shown = home.banger(["image", "show", "made"]).run().text();
    assert!(shown.contains("VM `box`"), "{shown}");

    let look = "set -e
        test kept = \"$(cat /etc/kept)\"
        test /etc/kept -ef /opt/linked
        test \"$(readlink /opt/symbolic)\" = /etc/kept
        test \"$(stat -c %u:%g /opt/symbolic)\" = 1234:5678
        test \"$(stat -c %a /srv/sticky)\" = 1777
        test \"$(stat -c %s /opt/holes)\" = 3221225476
        test \"$(stat -c %b /opt/holes)\" -lt 1000
        test \"$(tail -c 4 /opt/holes)\" = end
        test ! -e /etc/issue
        test ! -e /tmp/gone
        test \"$(stat -c %a /tmp)\" = 1777
        test mine = \"$(cat /root/mine)\"
        test \"$(cat /etc/machine-id)\" != \"$(cat /opt/machine-id)\"
        test -s /etc/machine-id";
    home.banger([
        "vm", "run", "--rm", "--image", "made", "--", "sh", "-c", look,
    ])
    .run()
    .exited_with(0);
    // The VM itself is as it was.
    home.banger(["vm", "start", "box"]).run().exited_with(0);
    home.banger(["vm", "exec", "box", "--", "test", "-e", "/root/mine"])
        .run()
        .exited_with(0);
    home.banger(["vm", "delete", "box"]).run().exited_with(0);
    home.wait_for_no_vm();
}

#[test]
fn a_build_runs_its_scripts_and_one_that_fails_leaves_only_its_log() {
    let Some(home) = Home::with_vms() else { return };
    let script = |name: &str, text: &str| {
        let path = home.path().join(name);
        fs::write(&path, text).expect("the home can be written to");
        path.display().to_string()
    };
    let good = script("good.sh", "echo from the script\necho built >/etc/built\n");
    let bad = script("bad.sh", "#!/bin/sh\necho about to fail >&2\nexit 7\n");
    let base = ["image", "build", "--from-image", IMAGE, "--name"];

    let words = ["broken", "--script", &good, "--script", &bad];
    home.banger(base.into_iter().chain(words))
        .run()
        .exited_with(1)
        .says("about to fail")
        .says("`bad.sh` failed: exit status 7")
        .says("logs/builds");
    assert_eq!(home.banger(["vm", "list", "--quiet"]).run().text(), "");
    assert_eq!(home.files_named("rootfs.ext4").len(), 1);
    let operations = home.banger(["operation", "list", "--json"]).run().json();
    let builds = operations.as_array().into_iter().flatten();
    let build = builds
        .into_iter()
        .find(|operation| operation["kind"] == "build_image")
        .expect("it is remembered");
    let id = build["id"].as_str().expect("an operation has an id");
    let logs = home.banger(["operation", "logs", id]).run().text();
    assert!(logs.contains("from the script"), "{logs}");

    let words = ["devbox", "--script", &good];
    home.banger(base.into_iter().chain(words))
        .limit(CAPTURE_LIMIT)
        .run()
        .exited_with(0);
    let run = [
        "vm",
        "run",
        "--rm",
        "--image",
        "devbox",
        "--",
        "cat",
        "/etc/built",
    ];
    assert_eq!(home.banger(run).run().text(), "built");
    home.wait_for_no_vm();
}

#[test]
fn a_build_that_the_daemons_death_cuts_short_leaves_nothing() {
    let Some(home) = Home::with_vms() else { return };
    let script = home.path().join("slow.sh");
    fs::write(&script, "echo at work\nsleep 1000\n").expect("the home can be written to");
    let script = script.display().to_string();
    let build = ["image", "build", "--from-image", IMAGE, "--name", "never"];
    let words = ["--script", &script];
    let mut client = home.banger(build.into_iter().chain(words)).start();
    client.expect_stderr("at work");
    home.kill_daemon();
    client.wait().exited_with(1);
    // The next daemon deletes what hung on the build.
    home.banger(["vm", "list"]).run().exited_with(0);
    home.wait_for_no_vm();
    assert_eq!(home.files_named("rootfs.ext4").len(), 1);
}

#[test]
fn a_dockerfile_is_built_by_buildah() {
    let Some(home) = Home::with_vms() else { return };
    if home.command("buildah").arg("--version").output().is_err() {
        skip("buildah is not installed");
        return;
    }
    let Ok(busybox) = fs::read("/bin/busybox") else {
        skip("busybox-static is not installed");
        return;
    };
    let context = home.path().join("context");
    fs::create_dir(&context).expect("the home can be written to");
    fs::write(context.join("busybox"), busybox).expect("the home can be written to");
    let dockerfile = context.join("Dockerfile");
    let text = "FROM scratch\nARG WORD\nCOPY --chmod=755 busybox /bin/sh\n\
        ENV WORD=$WORD\nCMD [\"/bin/sh\"]\n";
    fs::write(&dockerfile, text).expect("the home can be written to");
    home.hand_over();
    let (file, context) = (
        dockerfile.display().to_string(),
        context.display().to_string(),
    );
    let build = ["image", "build", "--name", "app", "-f", &file];
    let words = ["--build-arg", "WORD=hello", &context];
    home.banger(build.into_iter().chain(words))
        .run()
        .exited_with(0);
    let run = ["vm", "run", "--rm", "--image", "app", "--"];
    let words = ["/bin/sh", "-c", "echo $WORD"];
    let said = home.banger(run.into_iter().chain(words)).run();
    assert_eq!(said.text(), "hello");
    home.wait_for_no_vm();
}

#[test]
fn a_build_from_the_archive_has_docker_packages_and_what_its_script_made() {
    if std::env::var_os("BANGER_TEST_SLOW").is_none() {
        skip(
            "BANGER_TEST_SLOW is not set: an emulated guest takes many minutes for Docker's packages",
        );
        return;
    }
    let Some(home) = Home::with_vms() else { return };
    let script = home.path().join("script.sh");
    // It needs what was asked for, and finds systemd at rest.
    let text = "set -e\njq --version >/opt/jq\nsystemctl is-system-running >/opt/state || true\n";
    fs::write(&script, text).expect("the home can be written to");
    let script = script.display().to_string();
    let base = ["image", "build", "--from-image", IMAGE, "--name"];

    let words = ["broken", "--package", "no-such-package-anywhere"];
    home.banger(base.into_iter().chain(words))
        .limit(BUILD_LIMIT)
        .run()
        .exited_with(1)
        .says("Unable to locate package no-such-package-anywhere")
        .says("logs/builds");
    assert_eq!(home.banger(["vm", "list", "--quiet"]).run().text(), "");
    assert_eq!(home.files_named("rootfs.ext4").len(), 1);

    let words = ["devbox", "--docker", "--package", "jq", "--script", &script];
    home.banger(base.into_iter().chain(words))
        .limit(BUILD_LIMIT)
        .run()
        .exited_with(0);
    let rootfs = rootfs_of(&home, "devbox");
    let check = home.command("e2fsck").arg("-fn").arg(&rootfs).status();
    assert!(check.expect("e2fsck is installed").success());
    let look = "set -e
        test \"$(cat /opt/jq)\" = \"$(jq --version)\"
        grep -qE '^(running|degraded)$' /opt/state
        test \"$(systemctl is-enabled docker.service)\" = enabled
        until systemctl is-system-running --wait 2>&1 | grep -qE '^(running|degraded)'
        do sleep 0.2; done
        docker info --format '{{.Driver}}'";
    let run = ["vm", "run", "--rm", "--image", "devbox", "--", "sh", "-c"];
    let said = home
        .banger(run.into_iter().chain([look]))
        .limit(BUILD_LIMIT)
        .run();
    assert_eq!(said.exited_with(0).text(), "overlay2");
    home.wait_for_no_vm();
}

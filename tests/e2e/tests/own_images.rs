//! Images and kernels of the user's own: recorded where they are, taken over, carried, removed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use banger_e2e::{Home, IMAGE, archive, busybox, has_busybox};

/// The root file system of the shared image, in a place that is not banger's.
fn rootfs(home: &Home) -> PathBuf {
    let from = home.files_named("rootfs.ext4").remove(0);
    let to = home.path().join("mine.ext4");
    fs::copy(from, &to).expect("the home can be written to");
    home.hand_over();
    to
}

#[test]
fn a_registered_image_boots_is_promoted_and_survives_its_file() {
    let Some(home) = Home::with_vms() else { return };
    let rootfs = rootfs(&home);
    let path = rootfs.display().to_string();
    home.banger(["image", "register", "--name", "mine", "--rootfs", &path])
        .run()
        .exited_with(0);
    home.banger([
        "vm",
        "run",
        "--name",
        "vm",
        "--image",
        "mine",
        "--",
        "touch",
        "/root/kept",
    ])
    .run()
    .exited_with(0);
    home.banger(["image", "delete", "mine"])
        .run()
        .exited_with(1)
        .says("VM `vm` uses it");
    home.banger(["vm", "stop", "vm"]).run().exited_with(0);

    let away = home.path().join("away.ext4");
    fs::rename(&rootfs, &away).expect("the home can be written to");
    home.banger(["vm", "start", "vm"])
        .run()
        .exited_with(1)
        .says("mine.ext4");
    let listed = home.banger(["image", "list", "--json"]).run().json();
    let mine = listed.as_array().into_iter().flatten();
    let mine: Vec<_> = mine.filter(|image| image["name"] == "mine").collect();
    assert!(mine[0]["problem"].is_string(), "{listed:#}");
    fs::rename(&away, &rootfs).expect("the home can be written to");

    home.banger(["image", "promote", "mine"])
        .run()
        .exited_with(0);
    fs::remove_file(&rootfs).expect("the home can be written to");
    home.banger(["vm", "start", "vm"]).run().exited_with(0);
    home.banger(["vm", "exec", "vm", "--", "test", "-e", "/root/kept"])
        .run()
        .exited_with(0);
    home.banger(["vm", "delete", "vm"]).run().exited_with(0);
    home.wait_for_no_vm();
}

#[test]
fn an_image_is_carried_from_store_to_store_and_removed() {
    let Some(home) = Home::new() else { return };
    let bundle = home.path().join("image.tar.zst").display().to_string();
    home.banger(["image", "export", IMAGE, &bundle])
        .run()
        .exited_with(0);
    home.banger(["image", "import", &bundle])
        .run()
        .exited_with(1)
        .says("already");
    home.banger(["image", "import", "--name", "carried", &bundle])
        .run()
        .exited_with(0);
    let disks = home.files_named("rootfs.ext4");
    let [one, other] = &disks[..] else {
        panic!("{disks:?}")
    };
    let read = |path| fs::read(path).expect("a disk can be read");
    assert!(read(one) == read(other), "the disks are not the same");
    home.banger(["image", "rename", "carried", "moved"])
        .run()
        .exited_with(0);
    home.banger(["image", "delete", "moved"])
        .run()
        .exited_with(0);
    assert_eq!(home.files_named("rootfs.ext4").len(), 1);
}

#[test]
fn the_work_disk_of_a_new_vm_has_come_with_its_image_and_grown() {
    let Some(home) = Home::with_vms() else { return };
    if !has_busybox() {
        return;
    }
    let image = archive(&home, |root| {
        busybox(root);
        fs::write(root.join("root/.profile"), "export FROM=image\n").expect("it can be written");
        symlink(".profile", root.join("root/link")).expect("it can be written");
    });
    let source = format!("docker-archive:{}", image.display());
    home.banger(["image", "pull", &source, "--name", "seeded"])
        .run()
        .exited_with(0);
    let image = home
        .banger(["image", "show", "seeded", "--json"])
        .run()
        .json();
    let id = image["id"].as_str().expect("an image has an id");
    let mut seeds = home.files_named("work-seed.ext4").into_iter();
    assert!(seeds.any(|seed| seed.parent().is_some_and(|image| image.ends_with(id))));
    let made = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("it is later than 1970")
        .as_secs();
    let create = ["vm", "create", "--name", "vm", "--image", "seeded"];
    home.banger(create.into_iter().chain(["--disk-size", "2G"]))
        .run()
        .exited_with(0);
    let exec = |words: &[&str]| {
        let command = ["vm", "exec", "vm", "--"].iter().chain(words).copied();
        home.banger(command).run().exited_with(0).text()
    };
    assert_eq!(exec(&["cat", "/root/link"]), "export FROM=image");
    // Its inode is of the time when the image was made, and not of the boot.
    let changed: u64 = exec(&["stat", "-c", "%Z", "/root/.profile"])
        .parse()
        .expect("a number of seconds");
    assert!(changed <= made, "{changed} > {made}");
    let room = exec(&["df", "-k", "/root"]);
    let room: u64 = room
        .split_ascii_whitespace()
        .rev()
        .nth(4)
        .and_then(|word| word.parse().ok())
        .unwrap_or_else(|| panic!("{room}"));
    assert!(room > 1_800_000, "{room} KiB");
    home.banger(["vm", "delete", "vm"]).run().exited_with(0);

    let small = create.into_iter().chain(["--disk-size", "100M"]);
    home.banger(small)
        .run()
        .exited_with(1)
        .says("--disk-size 256M");
    home.wait_for_no_vm();
}

#[test]
fn the_older_kernel_of_the_catalog_boots() {
    let Some(home) = Home::with_vms() else { return };
    let path = rootfs(&home).display().to_string();
    let register = ["image", "register", "--name", "older", "--rootfs", &path];
    home.banger(register.into_iter().chain(["--kernel-ref", "generic-6.1"]))
        .run()
        .exited_with(0);
    let release = home
        .banger(["vm", "run", "--rm", "--image", "older", "--", "uname", "-r"])
        .run()
        .text();
    assert!(release.starts_with("6.1."), "{release}");
    home.wait_for_no_vm();
}

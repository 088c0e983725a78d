//! banger as an ordinary user of this host, from an empty home on: no root, no setup.
//!
//! `cargo xtask test` makes such a user and names it; where the tests run as an ordinary user
//! anyway, these are the same again.

use std::time::Duration;

use banger_e2e::{Home, IMAGE, skip};

/// A home of an ordinary user's.
fn home_of_user(home: fn() -> Option<Home>) -> Option<Home> {
    let home = home()?;
    if home.is_roots() {
        skip("root runs these tests, and BANGER_TEST_USER names nobody else");
        return None;
    }
    Some(home)
}

#[test]
fn an_ordinary_user_gets_the_image_and_a_command_in_a_vm() {
    let Some(home) = home_of_user(Home::empty) else {
        return;
    };
    let pulled = home
        .banger(["image", "pull", IMAGE])
        .limit(Duration::from_secs(900))
        .run()
        .exited_with(0);
    assert!(!pulled.stderr.is_empty(), "a long step shows how far it is");
    let images = home.banger(["image", "list", "--json"]).run().json();
    assert_eq!(images[0]["name"], IMAGE);
    let kernels = home.banger(["kernel", "list", "--json"]).run().json();
    assert_eq!(kernels[0]["name"], "generic-6.12");

    let told = home
        .banger([
            "vm",
            "run",
            "--rm",
            "--",
            "sh",
            "-c",
            "uname -r; id -u; stat -c %u /usr/bin/su",
        ])
        .run()
        .text();
    assert!(
        told.starts_with("6.12.") && told.ends_with("\n0\n0"),
        "{told}"
    );
    home.wait_for_no_vm();
    home.assert_no_vm_known();
}

#[test]
fn an_ordinary_users_vm_reaches_the_outside_and_keeps_its_data() {
    let Some(home) = home_of_user(Home::with_vms) else {
        return;
    };
    let update = ["apt-get", "-o", "APT::Update::Error-Mode=any", "update"];
    home.banger(
        ["vm", "run", "--name", "mine", "--"]
            .into_iter()
            .chain(update),
    )
    .limit(Duration::from_secs(400))
    .run()
    .exited_with(0);
    home.banger([
        "vm",
        "exec",
        "mine",
        "--",
        "sh",
        "-c",
        "echo kept >/root/kept",
    ])
    .run()
    .exited_with(0);
    home.banger(["vm", "stop", "mine"]).run().exited_with(0);
    home.banger(["vm", "start", "mine"]).run().exited_with(0);
    let kept = home
        .banger(["vm", "exec", "mine", "--", "cat", "/root/kept"])
        .run()
        .text();
    assert_eq!(kept, "kept");

    home.kill_daemon();
    home.banger(["vm", "exec", "mine", "--", "true"])
        .run()
        .exited_with(0);
    home.banger(["vm", "ssh", "mine", "--", "exit 6"])
        .run()
        .exited_with(6);
    home.banger(["vm", "delete", "mine"]).run().exited_with(0);
    home.assert_no_vm_left();
    home.assert_no_vm_known();
}

#[test]
fn doctor_finds_nothing_amiss_for_an_ordinary_user() {
    let Some(home) = home_of_user(Home::empty) else {
        return;
    };
    home.banger(["doctor"]).run().exited_with(0);
}

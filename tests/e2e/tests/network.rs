//! The guest reaches the outside, or does not if told so. That the host's own network stays
//! as it was, every test's end asserts.

use std::time::Duration;

use banger_e2e::{Home, Terminal};

/// What apt may take where software does the processor's work.
const APT_LIMIT: Duration = Duration::from_secs(400);

#[test]
fn apt_gets_an_editor_which_works() {
    let Some(home) = Home::with_vms() else { return };
    let update = ["apt-get", "-o", "APT::Update::Error-Mode=any", "update"];
    home.banger(
        ["vm", "run", "--name", "editor", "--"]
            .into_iter()
            .chain(update),
    )
    .limit(APT_LIMIT)
    .run()
    .exited_with(0);
    let install = [
        "apt-get",
        "-q",
        "--yes",
        "--no-install-recommends",
        "install",
        "vim-tiny",
    ];
    home.banger(["vm", "exec", "editor", "--"].into_iter().chain(install))
        .limit(APT_LIMIT)
        .run()
        .exited_with(0);

    let command = home.banger(["vm", "exec", "editor", "--", "vi", "/root/note"]);
    let mut vi = Terminal::start(command, 80, 24);
    vi.expect("/note");
    vi.send("ihello from vi");
    vi.expect("hello from vi");
    vi.send("\x1b:wq\r");
    let (status, screen) = vi.wait();
    assert_eq!(status.code(), Some(0), "{screen}");
    let note = ["vm", "exec", "editor", "--", "cat", "/root/note"];
    assert_eq!(home.banger(note).run().text(), "hello from vi");
    home.banger(["vm", "delete", "editor"]).run().exited_with(0);
    home.assert_no_vm_left();
}

#[test]
fn without_nat_a_vm_reaches_nothing_outside() {
    let Some(home) = Home::with_vms() else { return };
    let script = "ip -o -4 addr show scope global | wc -l; \
                  timeout 20 apt-get -o APT::Update::Error-Mode=any -o Acquire::Retries=0 update \
                  >/dev/null 2>&1 && echo out || echo in";
    let told = home
        .banger(["vm", "run", "--rm", "--no-nat", "--", "sh", "-c", script])
        .run()
        .text();
    assert_eq!(told, "1\nin");
    home.wait_for_no_vm();
}

#[test]
fn two_vms_have_addresses_of_their_own_and_do_not_reach_each_other() {
    let Some(home) = Home::with_vms() else { return };
    let address = |name: &str| {
        let vm = home
            .banger(["vm", "create", "--name", name, "--json"])
            .run()
            .json();
        vm["ip"].as_str().expect("it has an address").to_owned()
    };
    let (one, two) = (address("one"), address("two"));
    assert_ne!(one, two);
    let ping = |target: &str| {
        home.banger([
            "vm", "exec", "one", "--", "ping", "-c", "1", "-W", "3", target,
        ])
        .run()
        .status
        .code()
    };
    assert_eq!(ping(&one), Some(0), "a VM reaches itself");
    assert_eq!(ping(&two), Some(1), "a VM does not reach another");
    home.banger(["vm", "delete", "one", "two"])
        .run()
        .exited_with(0);
    home.assert_no_vm_left();
}

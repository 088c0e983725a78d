//! `banger vm run` and `vm exec` on a terminal: a shell as if it were here.

use banger_e2e::{Home, Terminal};

#[test]
fn a_shell_has_a_terminal_that_resizes_and_takes_control_keys() {
    let Some(home) = Home::new() else { return };
    let mut shell = Terminal::start(home.banger(["vm", "run", "--name", "shell"]), 91, 17);
    shell.send("echo size $(stty size); tty; echo $TERM\n");
    shell.expect("size 17 91");
    shell.expect("/dev/pts/");
    shell.expect("xterm");
    assert!(!shell.is_cooked(), "keys go to the guest one by one");

    shell.resize(120, 40);
    // The new size arrives on its own: ask until it is there, for a bounded time.
    shell.send(
        "for i in $(seq 100); do [ \"$(stty size)\" = '40 120' ] && break; sleep 0.1; done\n",
    );
    shell.send("echo size $(stty size)\n");
    shell.expect("size 40 120");

    // Not before the command runs and not before the prompt is back: a shell that is just
    // changing the terminal's modes loses keys, here as anywhere.
    shell.send("sh -c 'echo sl\"\"eeping; exec sleep 600'\n");
    shell.expect("sleeping");
    shell.send("\x03");
    shell.expect("^C");
    shell.expect("# ");
    shell.send("echo status $?\n");
    shell.expect("status 130");

    shell.expect("# ");
    shell.send("exit 5\n");
    let (status, talk) = shell.wait();
    assert_eq!(status.code(), Some(5), "{talk}");
    // A kept VM says how to come back.
    assert!(talk.contains("vm delete shell"), "{talk}");

    let again = home.banger(["vm", "exec", "shell", "--", "bash", "--norc"]);
    let mut shell = Terminal::start(again, 80, 24);
    shell.expect("# ");
    shell.send("\x04");
    let (status, talk) = shell.wait();
    assert_eq!(status.code(), Some(0), "Ctrl-D ends the shell: {talk}");

    home.banger(["vm", "delete", "shell"]).run().exited_with(0);
    home.assert_no_vm_left();
}

#[test]
fn the_terminal_is_as_before_after_a_lost_vm() {
    let Some(home) = Home::new() else { return };
    let mut shell = Terminal::start(home.banger(["vm", "run", "--name", "lost"]), 80, 24);
    shell.send("echo $((40 + 2)) ready\n");
    shell.expect("42 ready");
    assert!(!shell.is_cooked());
    home.banger(["vm", "delete", "lost"]).run().exited_with(0);
    shell.expect("error:");
    let (_, _, cooked) = shell.wait_and_look();
    assert!(cooked, "raw mode is left behind");
    home.assert_no_vm_left();
}

#[test]
fn a_closed_terminal_deletes_a_vm_of_rm() {
    let Some(home) = Home::new() else { return };
    let mut shell = Terminal::start(home.banger(["vm", "run", "--rm"]), 80, 24);
    shell.send("echo $((40 + 2)) ready\n");
    shell.expect("42 ready");
    shell.close();
    home.wait_for_no_vm();
    home.assert_no_vm_known();
}

#[test]
fn a_program_that_owns_the_screen_works() {
    let Some(home) = Home::with_vms() else { return };
    home.banger(["vm", "create", "--name", "screen"])
        .run()
        .exited_with(0);
    let top = home.banger(["vm", "exec", "screen", "--", "top"]);
    let mut top = Terminal::start(top, 100, 30);
    top.expect("load average");
    top.expect("COMMAND");
    top.send("q");
    let (status, screen) = top.wait();
    assert_eq!(status.code(), Some(0), "{screen}");
    home.banger(["vm", "delete", "screen"]).run().exited_with(0);
    home.assert_no_vm_left();
}

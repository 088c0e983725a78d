//! The harness itself: what it would miss, no other test could find.

#![expect(clippy::disallowed_methods, reason = "tests start what they test")]

use std::process::Command;
use std::time::Duration;

use banger_config::Paths;
use banger_e2e::{Invocation, Terminal, inventory};
use banger_proto::id::InstanceId;

fn shell(script: &str) -> Invocation {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    Invocation::new(command)
}

#[test]
fn a_leaked_process_is_found_by_its_home_and_by_its_mark() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path();
    let instance = InstanceId::new();
    std::fs::create_dir(home.join("state")).unwrap();
    std::fs::write(home.join("state/instance"), instance.as_str()).unwrap();
    let paths = Paths::resolve(|name| (name == "BANGER_HOME").then(|| home.into()), 1000).unwrap();
    assert_eq!(inventory::processes(&paths, home), []);

    let by_home = shell("read line")
        .env("BANGER_HOME", home)
        .open_stdin()
        .start();
    let mark = format!("{instance}/1/vm");
    let by_mark = shell("read line")
        .env("BANGER_MARK", mark)
        .open_stdin()
        .start();
    let mut found: Vec<_> = inventory::processes(&paths, home)
        .iter()
        .map(|process| u32::try_from(process.pid).unwrap())
        .collect();
    found.sort_unstable();
    let mut started = [by_home.pid(), by_mark.pid()];
    started.sort_unstable();
    assert_eq!(found, started);

    for mut process in [by_home, by_mark] {
        process.close_stdin();
        process.wait();
    }
    assert_eq!(inventory::processes(&paths, home), []);
}

#[test]
#[should_panic(expected = "it did not end within")]
fn a_command_that_hangs_fails_its_test() {
    let limit = Duration::from_millis(200);
    shell("read line").open_stdin().limit(limit).run();
}

#[test]
fn a_terminal_shows_types_resizes_and_hangs_up() {
    let script = "stty -a; read line; stty size; read line; stty raw; read line; exit 3";
    let mut terminal = Terminal::start(shell(script), 91, 17);
    terminal.expect("rows 17; columns 91");
    assert!(terminal.is_cooked());
    terminal.resize(50, 20);
    terminal.send("\n");
    terminal.expect("20 50");
    terminal.send("\n");
    terminal.send("\n");
    let (status, _) = terminal.wait();
    assert_eq!(status.code(), Some(3));

    let script = "trap 'exit 4' HUP; echo ready; read line";
    let mut terminal = Terminal::start(shell(script), 80, 24);
    terminal.expect("ready");
    assert_eq!(terminal.close().code(), Some(4));
}

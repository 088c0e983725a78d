//! Engines: what is listed, and what is asked of the daemon to install one.

use banger_proto::api::Engine;

use crate::daemon::{Daemon, Deed};
use crate::process::run;

#[test]
fn engines_are_a_table_with_the_choice_beside_it_or_json() {
    let daemon = Daemon::start();
    let said = run(daemon.home(), &["engine", "list"]);
    assert_eq!(said.status, Some(0));
    let lines: Vec<&str> = said.stdout().lines().collect();
    assert!(lines[0].starts_with("NAME"), "{}", lines[0]);
    assert!(lines[1].starts_with("firecracker  no"), "{}", lines[1]);
    assert_eq!(
        said.stderr,
        "new VMs get qemu: not Firecracker: the CPU shows neither vmx nor svm\n"
    );
    let said = run(daemon.home(), &["engine", "ls", "--json"]);
    let engines: Vec<Engine> = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!((engines.len(), said.stderr.as_str()), (2, ""));
    let said = run(daemon.home(), &["engine", "show", "firecracker"]);
    assert!(said.stdout().starts_with("name       firecracker\n"));
}

#[test]
fn an_engine_is_downloaded_or_its_file_sent() {
    let daemon = Daemon::start();
    let file = daemon.home().join("firecracker");
    std::fs::write(&file, "a program").unwrap();
    let file = file.to_str().unwrap();
    let hash = "AB".repeat(32);
    for (flags, asked) in [
        (&[][..], "POST firecracker/install? {}".to_owned()),
        (
            &["--from", file],
            "PUT firecracker/install? a program".to_owned(),
        ),
        (
            &["--from", file, "--sha256", &hash],
            format!(
                "PUT firecracker/install?sha256={} a program",
                hash.to_lowercase()
            ),
        ),
    ] {
        let words = [&["engine", "install", "firecracker"], flags].concat();
        let said = run(daemon.home(), &words);
        assert_eq!(said.status, Some(0), "{}", said.stderr);
        assert_eq!(daemon.deed(), Deed::Asked(asked));
        let believed = said.stderr.contains("believed because you named it");
        assert_eq!(believed, flags.len() == 2, "{}", said.stderr);
        assert!(
            said.stderr.contains("it cannot be used here"),
            "{}",
            said.stderr
        );
    }
    let said = run(daemon.home(), &["engine", "uninstall", "firecracker", "-q"]);
    assert_eq!((said.status, said.stderr.as_str()), (Some(0), ""));
    let asked = "DELETE firecracker/install? ".to_owned();
    assert_eq!(daemon.deed(), Deed::Asked(asked));
}

#[test]
fn a_file_that_is_none_is_refused_before_anything_is_asked() {
    let daemon = Daemon::start();
    let home = daemon.home().to_str().unwrap();
    let missing = format!("{home}/none");
    let mut told = String::new();
    for file in [home, &missing] {
        let said = run(
            daemon.home(),
            &["engine", "install", "firecracker", "--from", file],
        );
        assert_eq!(said.status, Some(1));
        told.push_str(&said.stderr.replace(home, "HOME"));
    }
    insta::assert_snapshot!(told);
    assert!(daemon.nothing_was_done());
}

//! The network with real parts: the real holder, pasta, nft, taps and guests' packets.
//!
//! ```text
//!  runner ─ unshare(net, mount, pid) ─> stage: a host of its own    (root there)
//!                                        ├─ world: what is outside  (a namespace more)
//!                                        └─ case: the test itself   (root or ordinary user)
//!                                            ├─ net-holder
//!                                            └─ guest: packets through a tap
//! ```
//!
//! All of these are this executable. The machine's own network is not touched, and what a
//! case leaves behind goes with the stage's PID namespace, after the case has looked.

#![expect(
    clippy::disallowed_methods,
    reason = "each part of a test is a process with a status"
)]

mod cases;
mod guest;
mod leftovers;
mod stage;
mod world;

use std::path::Path;
use std::process::{Command, exit};

use libtest_mimic::{Arguments, Failed, Trial};

/// Whom a case runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum User {
    Root,
    Ordinary,
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["net-holder", ..] => {
            let arguments = std::env::args_os().skip(2);
            banger_net::holder::run(arguments).map_err(|error| error.to_string())
        }
        ["stage", case, user] => stage::set(case, user),
        ["world"] => world::serve(),
        ["case", case, directory] => cases::run(case, Path::new(directory)),
        ["guest", ..] => guest::run(&words[1..]),
        _ => run_trials(),
    };
    if let Err(message) = result {
        eprintln!("{message}");
        exit(1);
    }
}

fn run_trials() -> ! {
    let arguments = Arguments::from_args();
    let lack = stage::lack();
    if let Some(lack) = &lack {
        eprintln!("skipped: {lack}");
    } else if !stage::is_root() {
        eprintln!("skipped: only root can run a case as another user");
    }
    let trial = |case: &'static cases::Case, user: User| {
        let name = match user {
            User::Root => case.name.to_owned(),
            User::Ordinary => format!("{}::as_an_ordinary_user", case.name),
        };
        let skipped = lack.is_some() || user == User::Ordinary && !stage::is_root();
        Trial::test(name, move || run_case(case.name, user)).with_ignored_flag(skipped)
    };
    let trials = cases::CASES.iter().flat_map(|case| {
        let users: &[User] = match case.root_only {
            true => &[User::Root],
            false => &[User::Root, User::Ordinary],
        };
        users.iter().map(move |user| trial(case, *user))
    });
    libtest_mimic::run(&arguments, trials.collect()).exit()
}

fn run_case(case: &str, user: User) -> Result<(), Failed> {
    let own = std::env::current_exe()?;
    let mut unshare = Command::new("unshare");
    if !stage::is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    let output = unshare
        .args([
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--",
        ])
        .arg(own)
        .args(["stage", case, &format!("{user:?}")])
        .output()?;
    let words = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => {
            eprint!("{words}");
            Ok(())
        }
        false => Err(format!("{}\n{words}", output.status).into()),
    }
}

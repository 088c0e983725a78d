//! `ssh-config`: what it does to a user's files, and what ssh makes of that.

#![expect(clippy::disallowed_methods, reason = "tests start what they test")]

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{Running, Said, banger};

/// A user with a home, in which banger has its own.
struct User(tempfile::TempDir);

impl User {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn ssh_config(&self, words: &[&str]) -> Said {
        let mut command = banger(&self.path("banger"), &[&["ssh-config"], words].concat());
        command.env("HOME", self.0.path());
        Running::start(command).wait()
    }

    /// What it says, with its own paths under names that stay.
    fn says(&self, words: &[&str]) -> String {
        let said = self.ssh_config(words);
        assert_eq!(said.status, Some(0), "{said:?}");
        said.stderr.replace(&*self.0.path().to_string_lossy(), "~")
    }

    fn config(&self) -> Vec<u8> {
        fs::read(self.path(".ssh/config")).unwrap()
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_users_file_gets_its_lines_once_and_loses_them_without_a_trace() {
    let user = User::new();
    let before = b"Host work\n    User me\n# no newline at the end";
    fs::create_dir(user.path(".ssh")).unwrap();
    fs::write(user.path("dotfile"), before).unwrap();
    fs::set_permissions(user.path("dotfile"), fs::Permissions::from_mode(0o640)).unwrap();
    symlink("../dotfile", user.path(".ssh/config")).unwrap();

    insta::assert_snapshot!(user.says(&["--install"]), @"`ssh NAME.vm` reaches your VMs now: `~/.ssh/config` includes `~/banger/config/ssh/config`");
    let with = user.config();
    assert!(with.ends_with(before));
    insta::assert_snapshot!(user.says(&["--install"]), @"`ssh NAME.vm` reaches your VMs already");
    assert_eq!(user.config(), with);
    assert_eq!(mode(&user.path("dotfile")), 0o640);
    assert_eq!(mode(&user.path("banger/config/ssh/config")), 0o600);

    insta::assert_snapshot!(user.says(&["--uninstall"]), @"`~/.ssh/config` no longer names banger's VMs");
    assert_eq!(user.config(), before);
    assert!(user.path(".ssh/config").is_symlink());
    assert!(!user.path("banger/config/ssh/config").exists());
    insta::assert_snapshot!(user.says(&["--uninstall"]), @"it was not installed");
}

#[test]
fn a_file_that_was_made_goes_again_and_one_that_was_empty_stays() {
    let user = User::new();
    user.says(&["--install"]);
    assert_eq!(mode(&user.path(".ssh")), 0o700);
    assert_eq!(mode(&user.path(".ssh/config")), 0o600);
    user.says(&["--install"]);
    user.says(&["--uninstall"]);
    assert!(!user.path(".ssh/config").exists());

    fs::write(user.path(".ssh/config"), "").unwrap();
    user.says(&["--install"]);
    user.says(&["--uninstall"]);
    assert_eq!(user.config(), b"");
}

#[test]
fn ssh_understands_it_for_vms_and_for_nothing_else() {
    let user = User::new();
    fs::create_dir(user.path(".ssh")).unwrap();
    fs::write(
        user.path(".ssh/config"),
        "Host *\n    User me\n    Port 2222\n",
    )
    .unwrap();
    user.says(&["--install"]);
    let options = |host: &str| {
        let mut ssh = Command::new("ssh");
        ssh.arg("-G")
            .arg("-F")
            .arg(user.path(".ssh/config"))
            .arg(host);
        let Ok(output) = ssh.output() else {
            eprintln!("skipped: there is no `ssh`");
            return None;
        };
        assert!(output.status.success(), "{output:?}");
        Some(String::from_utf8(output.stdout).unwrap())
    };
    let Some(vm) = options("calm-otter.vm") else {
        return;
    };
    let banger = env!("CARGO_BIN_EXE_banger");
    let home = user.path("banger");
    let home = home.display();
    for line in [
        "user root".to_owned(),
        format!("proxycommand env BANGER_HOME='{home}' '{banger}' ssh-proxy %h"),
        format!("identityfile {home}/config/ssh/id_ed25519"),
        format!("userknownhostsfile {home}/state/ssh_known_hosts"),
        "stricthostkeychecking true".to_owned(),
        // What it does not say is still the user's own.
        "port 2222".to_owned(),
    ] {
        assert!(vm.lines().any(|found| found == line), "no `{line}` in {vm}");
    }
    let other = options("example.org").unwrap();
    assert!(
        other.contains("user me\n") && !other.contains("proxycommand"),
        "{other}"
    );
}

#[test]
fn it_is_printed_for_who_puts_it_elsewhere() {
    let user = User::new();
    let said = user.ssh_config(&[]);
    assert!(said.stdout().starts_with("Host *.vm\n"), "{said:?}");
    assert!(!user.path(".ssh").exists());
}

#[test]
fn what_cannot_be_written_is_an_error_that_changes_nothing() {
    let user = User::new();
    fs::write(user.path(".ssh"), "no directory").unwrap();
    let said = user.ssh_config(&["--install"]);
    assert_eq!(said.status, Some(1));
    assert!(said.stderr.contains("could not read `"), "{said:?}");
    assert!(!user.path("banger/config/ssh/config").exists());
}

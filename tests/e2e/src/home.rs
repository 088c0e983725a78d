//! A banger of a test's own: a temporary `BANGER_HOME` with the shared image in it, and the
//! assertion at its end that nothing of it is left on the host.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use banger_config::Paths;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::guard::Guard;
use crate::inventory::{self, HostNetwork, Process};
use crate::invocation::{Invocation, patience, pid_exits_within};
use crate::user::{User, is_root, open_tun_to_everyone};
use crate::{files, skip, user};

/// The image that the tests boot; the default one of every [`Home`].
pub const IMAGE: &str = "debian-bookworm-slim";

/// How long what goes by itself may take to be gone.
fn gone_limit() -> Duration {
    Duration::from_secs(30) * patience()
}

/// A banger of its own. When it goes, it must have left nothing.
#[derive(Debug)]
pub struct Home {
    directory: TempDir,
    programs: PathBuf,
    paths: Paths,
    user: Option<User>,
    network: HostNetwork,
    /// Directories that this test's thread covered with a mount.
    covered: RefCell<Vec<PathBuf>>,
    _guard: Guard,
}

impl Home {
    /// A banger that has the image and the kernel, run by the user of `BANGER_TEST_USER`.
    ///
    /// `None`, after saying why, if this run cannot have one.
    pub fn new() -> Option<Self> {
        let home = Self::empty()?;
        let Some(artifacts) = std::env::var_os("BANGER_TEST_ARTIFACTS") else {
            skip("BANGER_TEST_ARTIFACTS is not set: run `cargo xtask test --only vms`");
            return None;
        };
        for kind in ["images", "kernels"] {
            let (from, to) = (
                Path::new(&artifacts).join(kind),
                home.paths.state.join(kind),
            );
            match &home.user {
                None => files::share_tree(&from, &to),
                // A file that belongs to two users cannot be shared.
                Some(_) => files::copy_tree(&from, &to),
            }
        }
        home.hand_over();
        Some(home)
    }

    /// The same, for what only Firecracker has.
    pub fn with_firecracker() -> Option<Self> {
        if Self::engine() != "firecracker" {
            skip("it is about Firecracker; BANGER_TEST_ENGINE is another engine");
            return None;
        }
        Self::new()
    }

    /// The same, for what the `fake` engine cannot show.
    pub fn with_vms() -> Option<Self> {
        if Self::engine() == "fake" {
            skip("the fake engine has no virtual machine");
            return None;
        }
        Self::new()
    }

    /// A banger that has to get its image itself.
    pub fn empty() -> Option<Self> {
        let Some(programs) = std::env::var_os("BANGER_TEST_BIN").map(PathBuf::from) else {
            skip("BANGER_TEST_BIN is not set: run `cargo xtask test --only vms`");
            return None;
        };
        let user = match std::env::var("BANGER_TEST_USER") {
            Err(_) => None,
            Ok(_) if !is_root() => {
                skip("only root can run banger as another user");
                return None;
            }
            Ok(name) => Some(User::find(&name).unwrap_or_else(|| panic!("no user `{name}`"))),
        };
        Some(Self::make(programs, user))
    }

    fn make(programs: PathBuf, user: Option<User>) -> Self {
        // Not $TMPDIR: the paths of sockets must be short.
        let directory = tempfile::Builder::new()
            .prefix("bgr-")
            .tempdir_in("/tmp")
            .expect("/tmp can be written to");
        let path = directory.path().to_owned();
        let paths = Paths::resolve(
            |name| (name == "BANGER_HOME").then(|| path.clone().into()),
            user.as_ref().map_or(0, |user| user.uid),
        )
        .expect("a short absolute path will do");
        for made in [&paths.config, &paths.state, &path.join("home")] {
            fs::create_dir_all(made).expect("the home can be written to");
        }
        let mut home = Self {
            network: HostNetwork::read(),
            _guard: Guard::of(&paths, directory.path()),
            directory,
            programs,
            paths,
            user,
            covered: RefCell::default(),
        };
        home.configure(&format!("default_image_name = \"{IMAGE}\"\n"));
        if home.user.is_some() {
            // What the tests were built into may lie below a directory of root's.
            let copies = home.path().join("bin");
            files::copy_tree(&home.programs, &copies);
            home.programs = copies;
            open_tun_to_everyone(home.path());
            home.hand_over();
        }
        home
    }

    /// Its directory, the `BANGER_HOME`.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Where it keeps its things.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// The engine that its VMs run on.
    pub fn engine() -> String {
        std::env::var("BANGER_TEST_ENGINE").unwrap_or_else(|_| "qemu".to_owned())
    }

    /// Adds to its config file; before its daemon starts.
    pub fn configure(&self, lines: &str) {
        let file = self.paths.config_file();
        let mut text =
            fs::read_to_string(&file).unwrap_or_else(|_| format!("vmm = \"{}\"\n", Self::engine()));
        text.push_str(lines);
        fs::write(&file, text).expect("the home can be written to");
        self.hand_over();
    }

    /// `banger` with these arguments, in this home.
    pub fn banger<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Invocation {
        let mut command = self.command(self.programs.join("banger"));
        command.args(arguments);
        Invocation::new(command)
    }

    /// One of banger's other programs, in this home.
    pub fn program(&self, name: &str) -> Invocation {
        Invocation::new(self.command(self.programs.join(name)))
    }

    /// Any program, run as this home's user and in its environment.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(program);
        command
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("LANG", "C.UTF-8")
            .env("HOME", self.path().join("home"))
            .env("BANGER_HOME", self.path())
            .env("BANGER_LOG_LEVEL", "debug")
            .current_dir(self.path());
        if Self::engine() == "fake" {
            command.env("BANGER_TEST_FAKE", "1");
        }
        if let Some(user) = &self.user {
            // The standard library drops the supplementary groups with this.
            command.uid(user.uid).gid(user.gid);
            command.env("USER", &user.name).env("LOGNAME", &user.name);
        }
        command
    }

    /// Its programs: `banger`, `bangerd` and `banger-vsock-agent`.
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// The processes that belong to it now, those of its VMs included.
    pub fn processes(&self) -> Vec<Process> {
        inventory::processes(&self.paths, self.path())
    }

    /// Its processes whose command line holds `words`.
    pub fn processes_of(&self, words: &str) -> Vec<Process> {
        let mut processes = self.processes();
        processes.retain(|process| process.command.contains(words));
        processes
    }

    /// The processes of its VMs' engines.
    pub fn engines(&self) -> Vec<Process> {
        let program = match Self::engine().as_str() {
            "qemu" => "qemu-system",
            "firecracker" => "firecracker ",
            engine => panic!("what is called {engine} has no program of its own"),
        };
        self.processes_of(program)
    }

    /// The daemon's process, if it runs.
    pub fn daemon(&self) -> Option<Pid> {
        let daemons = self.processes();
        let daemon = daemons.iter().find(|process| {
            let mut words = process.command.split_whitespace();
            words
                .next()
                .is_some_and(|program| program.ends_with("/bangerd"))
                && words.next() != Some("net-holder")
        })?;
        Pid::from_raw(daemon.pid)
    }

    /// Kills the daemon in the middle of whatever it does, and returns once it is gone.
    pub fn kill_daemon(&self) {
        let daemon = self.daemon().expect("the daemon runs");
        kill_process(daemon, Signal::KILL).expect("it is ours to kill");
        assert!(
            pid_exits_within(daemon, gone_limit()),
            "SIGKILL ends a process"
        );
    }

    /// Whether root is its user.
    pub fn is_roots(&self) -> bool {
        self.user.is_none() && is_root()
    }

    /// Its files of this name.
    pub fn files_named(&self, name: &str) -> Vec<PathBuf> {
        let mut found = files::list(&self.paths.state);
        found.retain(|path| path.file_name().is_some_and(|found| found == name));
        assert!(!found.is_empty(), "there is no {name}");
        found
    }

    /// Asks the daemon, which must run, over its socket.
    pub fn get(&self, path: &str) -> serde_json::Value {
        self.ask(path).run().json()
    }

    /// The same, for what is no JSON.
    pub fn page(&self, path: &str) -> String {
        self.ask(path).run().text()
    }

    fn ask(&self, path: &str) -> Invocation {
        let mut curl = self.command("curl");
        curl.args([
            "--silent",
            "--show-error",
            "--fail-with-body",
            "--max-time",
            "30",
        ]);
        curl.arg("--unix-socket").arg(self.paths.socket());
        curl.arg(format!("http://banger{path}"));
        Invocation::new(curl)
    }

    /// Gives `directory` a file system of so little room, for what this test starts.
    /// False, after saying why, if this run cannot.
    pub fn limit_size(&self, directory: &Path, size: &str) -> bool {
        let owner = self
            .user
            .as_ref()
            .map_or((0, 0), |user| (user.uid, user.gid));
        user::can_mount() && {
            fs::create_dir_all(directory).expect("the home can be written to");
            user::mount_small(directory, size, owner);
            self.covered.borrow_mut().push(directory.to_owned());
            true
        }
    }

    /// Lets nothing that this test starts write to `directory`. False, after saying why, if
    /// this run cannot.
    pub fn make_read_only(&self, directory: &Path) -> bool {
        user::can_mount() && {
            user::mount_read_only(directory);
            self.covered.borrow_mut().push(directory.to_owned());
            true
        }
    }

    /// Waits until a VM is in a state that it comes to by itself.
    #[track_caller]
    pub fn wait_for_state(&self, vm: &str, state: &str) {
        let deadline = Instant::now() + gone_limit();
        loop {
            let shown = self.banger(["vm", "show", vm, "--json"]).run().json();
            if shown["state"] == state {
                return;
            }
            assert!(Instant::now() < deadline, "not {state}: {shown:#}");
        }
    }

    /// Waits until the VMs that are being deleted are gone, and asserts that they left nothing.
    #[track_caller]
    pub fn wait_for_no_vm(&self) {
        for directory in [self.paths.vms(), self.paths.runtime.join("vms")] {
            files::wait_until_empty(&directory, gone_limit());
        }
        self.assert_no_vm_left();
        // The daemon forgets a VM last, when nothing is left of it.
        let is_known = || {
            let listed = self.banger(["vm", "list", "--json"]).run().json();
            listed != serde_json::json!([])
        };
        let deadline = Instant::now() + gone_limit();
        while is_known() {
            assert!(Instant::now() < deadline, "banger still knows a VM");
        }
    }

    /// Asserts that no VM has anything on this host: no process, file or directory. The
    /// daemon may run.
    #[track_caller]
    pub fn assert_no_vm_left(&self) {
        let allowed = self.daemon().map(|pid| pid.as_raw_nonzero().get());
        let left: Vec<_> = gone_by_themselves(self.processes(), allowed)
            .into_iter()
            .filter(|left| self.processes().contains(left))
            .collect();
        assert!(left.is_empty(), "processes are left: {left:#?}");
        let mut files = files::list(&self.paths.vms());
        files.extend(files::list(&self.paths.runtime.join("vms")));
        assert!(files.is_empty(), "files of VMs are left: {files:#?}");
        let interfaces = inventory::interfaces(&self.paths);
        assert!(interfaces.is_empty(), "interfaces are left: {interfaces:?}");
        let mounts = inventory::mounts(self.path());
        assert!(mounts.is_empty(), "mounts are left: {mounts:#?}");
        assert_eq!(
            HostNetwork::read(),
            self.network,
            "the host's network changed"
        );
    }

    /// Asserts that banger knows no VM.
    #[track_caller]
    pub fn assert_no_vm_known(&self) {
        let listed = self.banger(["vm", "list", "--json"]).run().json();
        assert_eq!(listed, serde_json::json!([]), "VMs are left");
    }

    /// Gives everything in it to its user, after a test put something there.
    pub fn hand_over(&self) {
        if let Some(user) = &self.user {
            files::give_tree(self.path(), user);
        }
    }

    /// Removes this test's mounts, which would hold the directory.
    fn uncover(&self) {
        for directory in self.covered.take() {
            user::unmount(&directory);
        }
    }

    /// What a person would look at after a failure.
    fn show_logs(&self) {
        for file in files::list(self.path()) {
            if file.extension().is_some_and(|extension| extension == "log") {
                let text = fs::read(&file).unwrap_or_default();
                let end = &text[text.len().saturating_sub(8192)..];
                eprintln!("--- {}\n{}", file.display(), String::from_utf8_lossy(end));
            }
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
            inventory::kill(&self.paths, self.path());
            self.uncover();
            if std::env::var_os("BANGER_TEST_KEEP").is_some() {
                self.directory.disable_cleanup(true);
            }
            return;
        }
        if self.daemon().is_some() {
            self.banger(["daemon", "stop"]).run().exited_with(0);
        }
        let left = gone_by_themselves(self.processes(), None);
        inventory::kill(&self.paths, self.path());
        assert!(left.is_empty(), "processes are left at the end: {left:#?}");
        self.uncover();
        self.assert_no_vm_left();
    }
}

/// Waits for the end of `processes` but `allowed`, and returns those that it did not see.
fn gone_by_themselves(processes: Vec<Process>, allowed: Option<i32>) -> Vec<Process> {
    processes
        .into_iter()
        .filter(|process| Some(process.pid) != allowed)
        .filter(|process| {
            Pid::from_raw(process.pid).is_some_and(|pid| !pid_exits_within(pid, gone_limit()))
        })
        .collect()
}

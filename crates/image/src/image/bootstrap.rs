//! Running mmdebstrap: its arguments, its stages, and its end, however it comes.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use banger_process::{ProcessFailure, RunError};
use banger_proto::name::ArtifactName;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use super::{GRACE, ImageError, LIMIT};
use crate::catalog::Recipe;
use crate::debian::policy::Policy;
use crate::debian::sources::Source;
use crate::draft::{self, Draft};
use crate::progress::Reporter;
use crate::tool::{MMDEBSTRAP, NPM, TIMEOUT, ToolError, UNSHARE};

/// Installs npm's packages; mmdebstrap runs it.
const NPM_SCRIPT: &str = include_str!("npm.sh");
/// Longest time that npm may take to tell its configuration.
const NPM_LIMIT: Duration = Duration::from_secs(30);
/// Lines of mmdebstrap's talk that an error repeats.
const LAST_LINES: usize = 12;
/// Documentation and translations, which guests seldom need; licences stay.
const LEFT_OUT: [&str; 8] = [
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/gnome/help/*",
];
/// What mmdebstrap says when a stage begins, and the stage in our words.
const STAGES: [(&str, &str); 7] = [
    ("running apt-get update", "fetch the package lists"),
    ("downloading packages", "download packages"),
    ("extracting archives", "unpack the essential packages"),
    (
        "installing essential packages",
        "install the essential packages",
    ),
    (
        "installing remaining packages",
        "install the other packages",
    ),
    ("cleaning package lists", "clean up"),
    ("creating tarball", "write the file system"),
];

/// One run of mmdebstrap.
pub(super) struct Bootstrap<'a> {
    pub(super) recipe: &'a Recipe,
    pub(super) sources: &'a [Source],
    pub(super) keyring: PathBuf,
    pub(super) policy: Policy,
    /// Where it makes its tree.
    pub(super) scratch: &'a Path,
}

impl Bootstrap<'_> {
    /// Runs it and hands its tar stream to `take`. If both fail, mmdebstrap's failure is told,
    /// as the stream's is then its consequence.
    pub(super) fn run<T>(
        &self,
        processes: &Processes,
        report: &StageReporter,
        take: impl FnOnce(&mut dyn Read) -> Result<T, ImageError>,
    ) -> Result<T, ImageError> {
        if !self.recipe.npm.is_empty() {
            write_hook(&self.npm_hook()).map_err(super::step("write the script that runs npm"))?;
        }
        let mut child = self.start(processes)?;
        let mut stdout = child.stdout.take().expect("stdout is a pipe");
        let stderr = child.stderr.take().expect("stderr is a pipe");
        let (taken, last_lines) = std::thread::scope(|scope| {
            let listener = scope.spawn(|| listen(stderr, report));
            let taken = take(&mut stdout);
            // Nobody reads any more: a writer that still writes is told so.
            drop(stdout);
            if taken.is_err() {
                processes.stop();
            }
            (taken, listener.join().unwrap_or_default())
        });
        let status = processes.reap(&mut child).map_err(|source| {
            ToolError::from(RunError::Wait {
                command: MMDEBSTRAP.name.to_owned(),
                source,
            })
        })?;
        match taken {
            Ok(value) if status.success() => Ok(value),
            // It was us who stopped it, for what went wrong with the stream.
            Err(error) if !is_stream_error(&error) => Err(error),
            _ => Err(ImageError::Bootstrap(ProcessFailure {
                command: MMDEBSTRAP.name.to_owned(),
                status: banger_process::status(status),
                stderr: last_lines,
            })),
        }
    }

    fn start(&self, processes: &Processes) -> Result<Child, ImageError> {
        // `timeout` passes the signal that it gets when this process is killed on to the
        // whole group, which mmdebstrap does not.
        let mut command = match rustix::process::geteuid().is_root() {
            // What root mounts must not be seen outside, and must go with the processes.
            true => {
                let mut command = UNSHARE.command()?;
                command
                    .args(["--mount", "--propagation", "private", "--"])
                    .arg(TIMEOUT.find()?);
                command
            }
            false => TIMEOUT.command()?,
        };
        command
            .arg(format!("--kill-after={}s", GRACE.as_secs()))
            .arg(format!("{}s", LIMIT.as_secs()))
            .arg(MMDEBSTRAP.find()?)
            .args(self.arguments())
            .envs(self.npm_environment())
            .env("TMPDIR", self.scratch)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let started = processes.start(&mut command).map_err(|source| {
            ToolError::from(RunError::Start {
                command: MMDEBSTRAP.name.to_owned(),
                source,
            })
        });
        Ok(started?)
    }

    fn npm_hook(&self) -> PathBuf {
        self.scratch.join("npm.sh")
    }

    /// What the script that runs npm is told: the packages, and the registry that the host's own
    /// npm uses, if it has one.
    fn npm_environment(&self) -> Vec<(&'static str, String)> {
        if self.recipe.npm.is_empty() {
            return Vec::new();
        }
        let registry = NPM.command().ok().and_then(|mut npm| {
            npm.args(["config", "get", "registry"]);
            let printed = banger_process::run(&mut npm, Some(NPM_LIMIT)).ok()?;
            let registry = String::from_utf8(printed).ok()?.trim().to_owned();
            registry.starts_with("http").then_some(registry)
        });
        let mut environment = vec![("BANGER_NPM", self.recipe.npm.join(" "))];
        environment.extend(registry.map(|registry| ("npm_config_registry", registry)));
        environment
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            "--variant=minbase".to_owned(),
            // For root too: its processes are in a namespace of their own, and none is left.
            "--mode=unshare".to_owned(),
            "--format=tar".to_owned(),
            format!("--include={}", self.recipe.packages.join(",")),
            format!("--keyring={}", self.keyring.display()),
        ];
        arguments.extend(LEFT_OUT.map(|option| format!("--dpkgopt={option}")));
        if !self.policy.check_valid_until {
            arguments.push("--aptopt=Acquire::Check-Valid-Until \"false\"".to_owned());
        }
        if !self.policy.check_date {
            arguments.push("--aptopt=Acquire::Check-Date \"false\"".to_owned());
        }
        if !self.recipe.npm.is_empty() {
            arguments.push(format!("--customize-hook={}", self.npm_hook().display()));
        }
        arguments.push(self.recipe.release.clone());
        arguments.push("-".to_owned());
        let components = self.recipe.components.join(" ");
        arguments.extend(
            self.sources
                .iter()
                .map(|source| format!("deb {} {} {components}", source.uri, source.suite)),
        );
        arguments
    }
}

/// mmdebstrap executes it itself, as the root of its own user namespace.
fn write_hook(path: &Path) -> io::Result<()> {
    std::fs::write(path, NPM_SCRIPT)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755))
}

/// An archive that ends early is the consequence of a process that did.
fn is_stream_error(error: &ImageError) -> bool {
    use crate::tarball::TarError;
    let ImageError::Step { source, .. } = error else {
        return false;
    };
    matches!(
        source.downcast_ref::<TarError>(),
        Some(TarError::Truncated | TarError::Header)
    )
}

/// Reads stderr to its end, reports the stages in it, and returns the last lines.
fn listen(stderr: impl Read, report: &StageReporter) -> Vec<String> {
    let mut last: VecDeque<String> = VecDeque::with_capacity(LAST_LINES);
    let mut lines = BufReader::new(stderr);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        match lines.by_ref().take(4096).read_until(b'\n', &mut bytes) {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        tracing::debug!(line, "mmdebstrap");
        report.line(&line);
        if last.len() == LAST_LINES {
            last.pop_front();
        }
        last.push_back(line);
    }
    last.into()
}

/// Tells which stage mmdebstrap is at.
pub(super) struct StageReporter<'a> {
    what: String,
    progress: &'a Reporter,
}

impl<'a> StageReporter<'a> {
    pub(super) fn new(name: &ArtifactName, progress: &'a Reporter) -> Self {
        Self {
            what: format!("build the image {name}"),
            progress,
        }
    }

    fn line(&self, line: &str) {
        let Some((number, stage)) = stage_of(line) else {
            return;
        };
        let what = format!("{}: {stage}", self.what);
        self.progress
            .items(&what, number, Some(STAGES.len() as u64));
    }
}

/// The stage that a line of mmdebstrap's begins: its number from 1, and its name.
fn stage_of(line: &str) -> Option<(u64, &'static str)> {
    let line = line.strip_prefix("I: ")?;
    (1..)
        .zip(STAGES)
        .find(|(_, (said, _))| line.starts_with(said))
        .map(|(number, (_, stage))| (number, stage))
}

/// The process group of the run, as long as there is one. Shared with whoever may stop it.
#[derive(Clone, Debug, Default)]
pub(super) struct Processes(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    group: Option<Pid>,
    stopped: bool,
}

impl Processes {
    /// Asks all to clean up and end.
    pub(super) fn stop(&self) {
        self.signal(Signal::TERM);
    }

    /// Kills all.
    pub(super) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.stopped = true;
        if let Some(group) = state.group {
            // It fails when all have ended, which is what is wanted.
            let _ = rustix::process::kill_process_group(group, signal);
        }
    }

    /// Starts a process in a group of its own, which is told to end when the calling thread
    /// does: that is, when this process is killed.
    fn start(&self, command: &mut Command) -> io::Result<Child> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.stopped {
            return Err(io::ErrorKind::Interrupted.into());
        }
        command.process_group(0);
        // SAFETY: the closure makes one system call, and allocates nothing.
        unsafe {
            command.pre_exec(|| {
                Ok(rustix::process::set_parent_process_death_signal(Some(
                    Signal::TERM,
                ))?)
            });
        }
        let child = command.spawn()?;
        state.group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        Ok(child)
    }

    /// Waits until the group's leader has ended. Its number is given back only after nobody
    /// can send signals to it any more.
    fn reap(&self, child: &mut Child) -> io::Result<ExitStatus> {
        let leader = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        if let Some(leader) = leader {
            rustix::process::waitid(
                WaitId::Pid(leader),
                WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
            )?;
        }
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(group) = state.group.take() {
            // Whoever it left behind ends too; mostly nobody.
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        child.wait()
    }
}

/// Where mmdebstrap makes its tree: beside the image if the users that it maps can get
/// there, else in `/var/tmp`.
pub(super) struct Scratch {
    path: PathBuf,
    _elsewhere: Option<Draft>,
}

impl Scratch {
    pub(super) fn new(draft: &Path) -> io::Result<Self> {
        if rustix::process::geteuid().is_root() || is_open_to_others(draft) {
            let path = draft.join("build");
            std::fs::create_dir(&path)?;
            std::fs::set_permissions(draft, PermissionsExt::from_mode(0o711))?;
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o711))?;
            return Ok(Self {
                path,
                _elsewhere: None,
            });
        }
        let draft = Draft::new(Path::new(draft::SHARED))?;
        std::fs::set_permissions(draft.path(), PermissionsExt::from_mode(0o711))?;
        let path = draft.path().join("build");
        std::fs::create_dir(&path)?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o711))?;
        Ok(Self {
            path,
            _elsewhere: Some(draft),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        draft::remove(&self.path);
    }
}

/// Whether everybody may pass through all directories above `path`.
fn is_open_to_others(path: &Path) -> bool {
    path.ancestors().skip(1).all(|directory| {
        std::fs::metadata(directory).is_ok_and(|found| found.permissions().mode() & 0o001 != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::debian::mirror::Family;

    fn bootstrap(policy: Policy) -> Vec<String> {
        with_npm(policy, &[])
    }

    fn with_npm(policy: Policy, npm: &[&str]) -> Vec<String> {
        let sources = [Source {
            uri: "http://mirror.example/debian".to_owned(),
            suite: "bookworm".to_owned(),
            components: vec!["main".to_owned()],
            signed_by: None,
            check_valid_until: None,
        }];
        let recipe = Recipe {
            family: Family::Debian,
            release: "bookworm".to_owned(),
            components: vec!["main".to_owned(), "contrib".to_owned()],
            packages: vec!["a".to_owned(), "b".to_owned()],
            programs: Vec::new(),
            npm: npm.iter().map(ToString::to_string).collect(),
        };
        Bootstrap {
            recipe: &recipe,
            sources: &sources,
            keyring: PathBuf::from("/keys.gpg"),
            policy,
            scratch: Path::new("/scratch"),
        }
        .arguments()
    }

    #[test]
    fn the_hosts_policy_on_dates_is_passed_on() {
        let strict = bootstrap(Policy::default());
        assert!(
            !strict
                .iter()
                .any(|argument| argument.starts_with("--aptopt"))
        );
        assert_eq!(
            strict[strict.len() - 3..],
            [
                "bookworm",
                "-",
                "deb http://mirror.example/debian bookworm main contrib"
            ]
        );
        let lax = bootstrap(Policy {
            check_valid_until: false,
            check_date: false,
        });
        assert!(lax.contains(&"--aptopt=Acquire::Check-Valid-Until \"false\"".to_owned()));
        assert!(lax.contains(&"--aptopt=Acquire::Check-Date \"false\"".to_owned()));
    }

    #[test]
    fn npm_runs_only_where_it_has_something_to_install() {
        let hook = "--customize-hook=/scratch/npm.sh".to_owned();
        assert!(!bootstrap(Policy::default()).contains(&hook));
        assert!(with_npm(Policy::default(), &["node@24.21.0"]).contains(&hook));
    }

    #[test]
    fn stages_are_found_in_what_mmdebstrap_says() {
        assert_eq!(
            stage_of("I: running apt-get update..."),
            Some((1, "fetch the package lists"))
        );
        assert_eq!(
            stage_of("I: creating tarball..."),
            Some((7, "write the file system"))
        );
        assert_eq!(stage_of("Get:1 creating tarball"), None);
        assert_eq!(stage_of("I: something new"), None);
    }
}

//! How an image is built: a VM of the base gets packages and runs scripts, and an image is made of
//! what it has become.
//!
//! ```text
//! base ── create ──> builder ── packages, docker, scripts ──> stop ──> capture ──> image
//!                       └── what is printed: the operation's output, and a log file
//! ```
//!
//! The builder hangs on a lease of the build's own, so that it is deleted in every case, also by
//! the next daemon. A build that fails leaves nothing but its log.

mod log;
mod steps;

use std::sync::Arc;
use std::time::Duration;

use banger_image::Taken;
use banger_proto::agent::ExecRequest;
use banger_proto::api::{BuildImage, BuildScript, CreateVm};
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::exit::ExitStatus;
use banger_proto::id::OperationId;
use bytes::Bytes;
use futures_util::stream;

use self::log::Log;
use self::steps::{Manager, SCRIPTS, Step};
use crate::capture::{self, Borrowed, Errand, within};
use crate::fleet::Fleet;
use crate::guest::Guest;
use crate::guest::command::{self, Ended};
use crate::vm::task::{Ask, Handle};

/// Longest text of a script.
const SCRIPT_MAX: usize = 1 << 20;
/// Most scripts of one build.
const SCRIPTS_MAX: usize = 64;
/// Most packages of one build.
const PACKAGES_MAX: usize = 1024;
/// Longest line of what is printed that is kept whole.
const LINE_MAX: usize = 64 << 10;
/// How long the guest's init may take to come to rest before work begins, with hardware
/// virtualisation. One that never does is not waited for longer.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);
/// How long it has until it is asked again.
const SETTLE_PAUSE: Duration = Duration::from_secs(1);

/// Builds an image.
///
/// # Errors
/// The request makes no sense, the base is not to be had, a step fails, or it is called off.
pub async fn build(
    fleet: &Arc<Fleet>,
    operation: &OperationId,
    wanted: BuildImage,
    errand: &Errand,
) -> Result<(), ApiError> {
    let message = format!("could not build the image `{}`", wanted.name);
    let log = Log::create(fleet.host().paths.logs(), operation).await;
    let log = log.map_err(|error| ApiError::new(ErrorKind::Failed, &*message).caused_by(&error))?;
    let builder = Builder {
        fleet,
        wanted,
        errand,
        message,
        log,
    };
    let built = builder.run().await;
    built.map_err(|error| builder.with_log(error))
}

/// Refuses what cannot be built, before anything is made.
///
/// # Errors
/// What is wrong with it.
pub fn check(wanted: &BuildImage) -> Result<(), ApiError> {
    let wrong = |why: String, hint: &str| {
        let message = format!("could not build the image `{}`", wanted.name);
        let mut error = ApiError::new(ErrorKind::Invalid, message);
        error.causes.push(why);
        Err(error.with_hint(hint))
    };
    if wanted.scripts.len() > SCRIPTS_MAX || wanted.packages.len() > PACKAGES_MAX {
        return wrong(
            format!("it has more than {SCRIPTS_MAX} scripts or {PACKAGES_MAX} packages"),
            "put them into one script",
        );
    }
    let is_option = |package: &&String| package.is_empty() || package.starts_with('-');
    if let Some(package) = wanted.packages.iter().find(is_option) {
        return wrong(
            format!("`{package}` is not the name of a package"),
            "name packages as the image's package manager does",
        );
    }
    let is_long = |script: &&BuildScript| script.text.len() > SCRIPT_MAX;
    if let Some(script) = wanted.scripts.iter().find(is_long) {
        return wrong(
            format!(
                "the script `{}` is longer than {SCRIPT_MAX} bytes",
                script.name
            ),
            "have it fetch what it needs",
        );
    }
    Ok(())
}

/// A build that goes on.
struct Builder<'a> {
    fleet: &'a Arc<Fleet>,
    wanted: BuildImage,
    errand: &'a Errand,
    message: String,
    log: Log,
}

impl Builder<'_> {
    async fn run(&self) -> Result<(), ApiError> {
        let taken = self.taken();
        let (images, name) = (self.fleet.host().images.clone(), self.wanted.name.clone());
        let admitted = crate::blocking(move || images.admit_name(&name, taken)).await;
        admitted.map_err(|error| {
            let mut api = ApiError::new(error.kind(), &*self.message).caused_by(&error);
            api.hint = error.hint();
            api
        })?;
        let engine = self.fleet.host().engines.choose(None).await.kind;
        capture::require_system(engine, &self.message)?;
        let mark = self.errand.report.stage("builder");
        let borrowed = Borrowed::new(self.fleet);
        let request = CreateVm {
            image: Some(self.wanted.from.clone()),
            system_size: self.wanted.size,
            labels: [("banger.builds".to_owned(), self.wanted.name.to_string())].into(),
            lease: Some(borrowed.lease()),
            ..CreateVm::default()
        };
        let created = self
            .fleet
            .create(request, None, self.errand.request_id.clone());
        let created = created
            .await
            .map_err(|error| within(&self.message, error))?;
        let vm = created.vm.expect("a create has its VM from the beginning");
        let vm = self.fleet.find(vm.as_str())?;
        let built = async {
            let up = async {
                let up = vm.up().await;
                up.map_err(|error| capture::not_up(self.fleet, &self.message, &vm, &error))
            };
            let guest = self.errand.unless_called_off(&self.message, up).await?;
            mark.done();
            self.work(&vm, &guest).await?;
            drop(guest);
            self.stop(&vm).await?;
            let source = format!("built of the image `{}`", self.wanted.from);
            let name = self.wanted.name.clone();
            capture::capture(
                self.fleet,
                &vm,
                name,
                taken,
                source,
                self.errand,
                &self.message,
            )
            .await
        };
        let built = built.await;
        borrowed.give_back(&vm).await;
        built
    }

    fn taken(&self) -> Taken {
        match self.wanted.replace {
            true => Taken::Superseded,
            false => Taken::Keeps,
        }
    }

    /// Does to the guest what is wanted.
    async fn work(&self, vm: &Handle, guest: &Guest) -> Result<(), ApiError> {
        // Nobody else uses it, and nobody shall think that it is unused.
        let _in_use = vm.hold();
        let work = async {
            let mark = self.errand.report.stage("settle");
            self.settle(vm, guest).await;
            mark.done();
            if self.wanted.docker || !self.wanted.packages.is_empty() {
                let mark = self.errand.report.stage("packages");
                self.packages(guest).await?;
                mark.done();
            }
            if !self.wanted.scripts.is_empty() {
                let mark = self.errand.report.stage("scripts");
                self.scripts(guest).await?;
                mark.done();
            }
            Ok(())
        };
        self.errand.unless_called_off(&self.message, work).await
    }

    /// Waits until systemd has come to rest: units that start meanwhile would be in the way of
    /// package managers. Other inits do not say when they have.
    async fn settle(&self, vm: &Handle, guest: &Guest) {
        let health = guest.health().await;
        if health.is_ok_and(|health| health.init != "systemd") {
            return;
        }
        let engine = vm.look(|status| status.row.engine);
        let patience = self.fleet.host().engines.patience(engine);
        let settled = async {
            // Its own `--wait` ends at once where the bus is not there yet, or never will be.
            while !is_settled(guest).await {
                tokio::time::sleep(SETTLE_PAUSE).await;
            }
        };
        let _ = tokio::time::timeout(SETTLE_LIMIT * patience, settled).await;
    }

    async fn packages(&self, guest: &Guest) -> Result<(), ApiError> {
        let mut manager = None;
        for candidate in Manager::ALL {
            let probe = command::run(guest, exec(&candidate.probe()), drop).await;
            if matches!(probe, Ok(Ended::Exit(ExitStatus::Code(0)))) {
                manager = Some(candidate);
                break;
            }
        }
        let manager = manager.ok_or_else(|| {
            let mut error = ApiError::new(ErrorKind::Invalid, &*self.message);
            let why = format!("`{}` has none of {}", self.wanted.from, Manager::names());
            error.causes.push(why);
            error.with_hint("install what is needed by `--script`")
        })?;
        for step in manager.install(&self.wanted.packages, self.wanted.docker) {
            self.step(guest, &step).await?;
        }
        if self.wanted.docker {
            let health = guest.health().await;
            let init = health.map(|health| health.init).unwrap_or_default();
            for step in steps::enable_docker(&init) {
                self.step(guest, &step).await?;
            }
        }
        Ok(())
    }

    async fn scripts(&self, guest: &Guest) -> Result<(), ApiError> {
        let archive = steps::archive(&self.wanted.scripts)
            .map_err(|error| ApiError::new(ErrorKind::Invalid, &*self.message).caused_by(&error))?;
        let pieces = stream::iter([Ok(Bytes::from(archive))]);
        let written = guest.write_files(SCRIPTS, pieces).await;
        written
            .map_err(|error| ApiError::new(ErrorKind::Failed, &*self.message).caused_by(&error))?;
        for (number, script) in self.wanted.scripts.iter().enumerate() {
            self.step(guest, &steps::script(number, script)).await?;
        }
        self.step(guest, &Step::quiet(&["rm", "-r", SCRIPTS])).await
    }

    /// Runs one command, and tells what it prints.
    async fn step(&self, guest: &Guest, step: &Step) -> Result<(), ApiError> {
        let shown = step.shown();
        if !step.quiet {
            self.print(format!("$ {shown}\n"));
        }
        let request = ExecRequest {
            env: step.env.clone(),
            user: Some("root".to_owned()),
            cwd: Some("/".to_owned()),
            ..exec(&step.command)
        };
        let mut lines = Lines::default();
        let print = |bytes: Bytes| {
            if let Some(whole) = lines.take(&bytes) {
                self.print(whole);
            }
        };
        let failed = |why: String| {
            let mut error = ApiError::new(ErrorKind::Failed, &*self.message);
            error.causes.push(format!("`{shown}` failed: {why}"));
            Err(error)
        };
        let ended = command::run(guest, request, print).await;
        if let Some(last) = lines.rest() {
            self.print(last);
        }
        match ended {
            Ok(Ended::Exit(ExitStatus::Code(0))) => Ok(()),
            Ok(Ended::Exit(ExitStatus::Code(code))) => failed(format!("exit status {code}")),
            Ok(Ended::Exit(ExitStatus::Signal(signal))) => failed(format!("signal {signal}")),
            Ok(Ended::Refused(refused)) => failed(refused.message),
            Err(error) => failed(error.to_string()),
        }
    }

    fn print(&self, text: String) {
        self.log.write(text.as_bytes());
        self.errand.report.output(text);
    }

    async fn stop(&self, vm: &Handle) -> Result<(), ApiError> {
        let mark = self.errand.report.stage("stop");
        let asked = vm.ask(Ask::Stop, self.errand.request_id.clone()).await;
        asked
            .map_err(|error| ApiError::new(ErrorKind::Failed, &*self.message).caused_by(&error))?;
        let stopped = async {
            vm.at_rest().await;
            Ok(())
        };
        self.errand
            .unless_called_off(&self.message, stopped)
            .await?;
        mark.done();
        Ok(())
    }

    /// The error of a build that has printed something says where that stands.
    fn with_log(&self, mut error: ApiError) -> ApiError {
        if error.hint.is_none() && self.log.holds_something() {
            error.hint = Some(format!(
                "all that it printed is in {}",
                self.log.path().display()
            ));
        }
        error
    }
}

/// Whether the guest's systemd has done all that it does at its start. One unit that fails is no
/// obstacle; neither is one that cannot be asked at all: the next command tells of that.
async fn is_settled(guest: &Guest) -> bool {
    let mut said = Vec::new();
    let ask = exec(&["systemctl", "is-system-running"]);
    let asked = command::run(guest, ask, |bytes| said.extend_from_slice(&bytes)).await;
    match asked {
        Ok(Ended::Exit(_)) => tells_of_rest(&said),
        Ok(Ended::Refused(_)) | Err(_) => true,
    }
}

/// Whether this is what `systemctl is-system-running` says of a systemd that is up. Before, it is
/// `initializing`, `starting`, or that it cannot be reached.
fn tells_of_rest(said: &[u8]) -> bool {
    let said = String::from_utf8_lossy(said);
    matches!(
        said.trim(),
        "running" | "degraded" | "maintenance" | "stopping"
    )
}

/// Makes lines of what comes in pieces.
#[derive(Debug, Default)]
struct Lines {
    begun: Vec<u8>,
}

impl Lines {
    /// The lines that are whole now. One that does not end is cut.
    fn take(&mut self, piece: &[u8]) -> Option<String> {
        self.begun.extend_from_slice(piece);
        let end = match self.begun.iter().rposition(|byte| *byte == b'\n') {
            Some(last) => last + 1,
            None if self.begun.len() > LINE_MAX => self.begun.len(),
            None => return None,
        };
        let whole: Vec<u8> = self.begun.drain(..end).collect();
        Some(String::from_utf8_lossy(&whole).into_owned())
    }

    /// What has no end.
    fn rest(self) -> Option<String> {
        let rest = String::from_utf8_lossy(&self.begun);
        (!rest.is_empty()).then(|| format!("{rest}\n"))
    }
}

fn exec<S: AsRef<str>>(command: &[S]) -> ExecRequest {
    ExecRequest {
        command: command
            .iter()
            .map(|word| word.as_ref().to_owned())
            .collect(),
        ..ExecRequest::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_is_up_when_it_says_so() {
        for up in ["running\n", "degraded\n", "maintenance\n"] {
            assert!(tells_of_rest(up.as_bytes()), "{up}");
        }
        let unreached = "System has not been booted with systemd as init system (PID 1). Can't operate.\n\
            Failed to connect to bus: Host is down\n";
        for before in ["", "offline\n", "initializing\n", "starting\n", unreached] {
            assert!(!tells_of_rest(before.as_bytes()), "{before}");
        }
    }

    #[test]
    fn what_comes_in_pieces_is_told_in_lines() {
        let mut lines = Lines::default();
        assert_eq!(lines.take(b"one\ntw"), Some("one\n".to_owned()));
        assert_eq!(lines.take(b"o"), None);
        assert_eq!(lines.take(b"\nthree\n"), Some("two\nthree\n".to_owned()));
        assert_eq!(lines.take(b"four"), None);
        assert_eq!(lines.rest(), Some("four\n".to_owned()));
    }

    #[test]
    fn what_cannot_be_built_is_refused_with_the_reason() {
        let wanted = |change: fn(&mut BuildImage)| {
            let mut wanted = BuildImage {
                name: "devbox".parse().unwrap(),
                from: "base".parse().unwrap(),
                docker: false,
                packages: Vec::new(),
                scripts: Vec::new(),
                size: None,
                replace: false,
            };
            change(&mut wanted);
            let refused = check(&wanted);
            refused
                .map_err(|error| format!("{error}; {}", error.hint.as_deref().unwrap_or_default()))
        };
        assert_eq!(
            wanted(|wanted| wanted.packages.push("jq".to_owned())),
            Ok(())
        );
        let refused = [
            wanted(|wanted| wanted.packages.push("--force".to_owned())),
            wanted(|wanted| wanted.packages = vec!["x".to_owned(); PACKAGES_MAX + 1]),
            wanted(|wanted| {
                wanted.scripts.push(BuildScript {
                    name: "setup".to_owned(),
                    text: "x".repeat(SCRIPT_MAX + 1),
                });
            }),
        ];
        let refused: Vec<String> = refused.map(Result::unwrap_err).into();
        insta::assert_snapshot!(refused.join("\n"));
    }
}

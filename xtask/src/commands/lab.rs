//! `cargo xtask lab`: the tests with real VMs once more, on Firecracker, on a host without
//! KVM too.
//!
//! Firecracker needs KVM. So banger runs a VM whose processor has it, by emulation if it must
//! be, and the same tests run in there with the real Firecracker. The tests, the programs and
//! the image are copied in; nothing is built in there, and the VM goes when the run ends. With
//! `--bench` it is the release build and the benchmarks, beside the bare Firecracker.
//!
//! ```text
//! this host -> banger -> QEMU: the VM `lab` -> banger -> Firecracker: the VMs of the tests
//! ```

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use lexopt::{Arg, ValueExt};
use tempfile::TempDir;

use crate::bench::home::Home;
use crate::commands::{build, test};
use crate::summary::{Outcome, Summary, Tests};
use crate::workspace::{Profile, Workspace};
use crate::{artifacts, junit, process};

/// The VM that the tests run in.
const VM: &str = "lab";
/// What the tests need and the image has not.
const PACKAGES: &str = "passt nftables uidmap e2fsprogs openssh-client iproute2 curl procps \
    expect socat python3 kmod acl mmdebstrap";
/// The ordinary user of the VM.
const USER: &str = "tester";
/// Nobody else than whoever runs the tests.
const ROOT: &str = "";
/// Makes a host of the VM, once its init, which is up later than the agent, has set the modes of
/// its devices. Fails where the VM's processor has no virtualisation.
const PREPARE: &str = "until [ -S /run/systemd/private ]; do sleep 0.1; done
systemctl is-system-running --wait >/dev/null
modprobe kvm_amd 2>/dev/null || modprobe kvm_intel || exit 1
set -e
modprobe tun
getent group kvm >/dev/null || groupadd --system kvm
chgrp kvm /dev/kvm
chmod 660 /dev/kvm
user=$1
shift
dpkg-query --show \"$@\" >/dev/null 2>&1 || {
    apt-get -q -o Acquire::Languages=none update
    DEBIAN_FRONTEND=noninteractive apt-get -q install --yes --no-install-recommends \"$@\"
}
id -u \"$user\" >/dev/null 2>&1 || useradd --create-home --user-group \"$user\"
# As a host does that gives its devices to whoever is logged in.
setfacl --modify \"user:$user:rw\" /dev/kvm";
/// Runs the tests: `$1` is the workspace, whose path in the VM is the one that the tests were
/// built with, `$2` is whose banger is tested, if not root's, and what follows are words for
/// nextest.
const RUN: &str = "cd \"$1\"
[ -z \"$2\" ] || export BANGER_TEST_USER=\"$2\"
shift 2
export BANGER_TEST_ENGINE=firecracker BANGER_TEST_PATIENCE=3
export BANGER_TEST_BIN=/root/lab/bin BANGER_TEST_ARTIFACTS=/root/lab/store
exec /root/lab/cargo-nextest nextest run --archive-file /root/lab/tests.tar.zst \
    --config-file /root/lab/nextest.toml --no-tests=pass \"$@\"";
/// Runs the benchmarks that tell of the engine: `$1` is the workspace, and what follows are words
/// for `bench all`.
const BENCH: &str = "mkdir -p \"$1/target\"
ln -sfn /root/lab/store \"$1/target/test-store\"
cd \"$1\"
shift
exec /root/lab/xtask bench all --programs /root/lab/bin --json /root/lab/bench.json \
    --only B1 --only B2 --only B11 \"$@\"";
/// nextest's config in the VM. Everything in a VM in a VM takes its time. One test at a time: QEMU's
/// emulation of a processor with virtualisation does not bear virtual CPUs on two of its own (the
/// kernel around them panics with a stack that has overflowed).
const CONFIG: &str = "[profile.default]
fail-fast = false
slow-timeout = { period = \"300s\", terminate-after = 6 }
[profile.default.junit]
path = \"junit.xml\"
store-success-output = true
[test-groups.vm]
max-threads = 1
[[profile.default.overrides]]
filter = \"all()\"
test-group = \"vm\"
";
/// QEMU whose emulated processor has virtualisation too: what KVM needs, and what banger
/// itself has no use for.
const QEMU: &str = "#!/bin/bash
words=()
for word in \"$@\"; do
    [ \"$word\" = max,-erms,-fsrm ] && word=max,+svm,+npt
    words+=(\"$word\")
done
exec qemu-system-x86_64 \"${words[@]}\"
";

/// What was asked for.
#[derive(Default)]
struct Options {
    firecracker: Option<PathBuf>,
    /// The VM stays, and is used again by the next run that says the same.
    keep: bool,
    /// banger is an ordinary user's.
    user: bool,
    /// Benchmarks of the release build, instead of tests.
    bench: bool,
    /// Words for nextest, or for `bench all`.
    words: Vec<String>,
}

/// Runs it and prints the summary.
pub fn run(workspace: &Workspace, arguments: lexopt::Parser) -> Result<ExitCode> {
    let options = options(arguments)?;
    let firecracker = options.firecracker.as_deref();
    let firecracker = firecracker.context("which Firecracker? Say --firecracker PATH")?;
    if !firecracker.is_file() {
        bail!("there is no Firecracker at `{}`", firecracker.display());
    }
    test::ensure_nextest(workspace)?;
    let programs = match options.bench {
        true => build::build(workspace)?,
        false => {
            let agent = workspace.build_agent()?;
            let built = workspace.build_host_programs(Profile::Dev)?;
            artifacts::programs(workspace, &built, &agent)?
        }
    };
    let lab = || match options.keep {
        true => Lab::kept(workspace, &programs),
        false => Lab::new(workspace, &programs),
    };
    if options.bench {
        lab()?.benchmarks(workspace, &programs, firecracker, &options.words)?;
        return Ok(ExitCode::SUCCESS);
    }
    let user = match options.user {
        true => USER,
        false => ROOT,
    };
    let mut summary = Summary::default();
    let begin = Instant::now();
    let outcome = lab().and_then(|lab| {
        lab.copy_in(
            &Parts::gather(workspace, &programs, firecracker)?,
            workspace,
        )?;
        lab.tests(workspace, user, &options.words)
            .map(Outcome::Tests)
    });
    summary.add("firecracker", begin.elapsed(), outcome);
    print!("{summary}");
    Ok(match summary.is_good() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn options(mut arguments: lexopt::Parser) -> Result<Options> {
    let mut options = Options::default();
    while let Some(argument) = arguments.next()? {
        match argument {
            Arg::Long("firecracker") => {
                options.firecracker = Some(PathBuf::from(arguments.value()?));
            }
            Arg::Long("keep") => options.keep = true,
            Arg::Long("user") => options.user = true,
            Arg::Long("bench") => options.bench = true,
            // What stands behind `--`, all of it.
            Arg::Value(word) => {
                options.words.push(word.string()?);
                for word in arguments.raw_args()? {
                    options.words.push(word.string()?);
                }
            }
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(options)
}

/// All tests on this Firecracker, and once more those of banger as an ordinary user's.
pub fn tests(workspace: &Workspace, programs: &Path, firecracker: &Path) -> Result<Outcome> {
    if !firecracker.is_file() {
        bail!("there is no Firecracker at `{}`", firecracker.display());
    }
    let lab = Lab::new(workspace, programs)?;
    lab.copy_in(&Parts::gather(workspace, programs, firecracker)?, workspace)?;
    let mut tests = lab.tests(workspace, ROOT, &[])?;
    let of_user = ["-E", "binary(user) + binary(firecracker)"].map(str::to_owned);
    tests.add(lab.tests(workspace, USER, &of_user)?);
    Ok(Outcome::Tests(tests))
}

/// The VM that the tests run in, with the banger around it.
struct Lab {
    home: Home,
    store: PathBuf,
}

impl Lab {
    /// One that goes with this value.
    fn new(workspace: &Workspace, programs: &Path) -> Result<Self> {
        let store = artifacts::store(workspace, programs)?;
        let home = Home::new(programs, &store, artifacts::IMAGE)?;
        let lab = Self { home, store };
        let qemu = lab.home.path().join("qemu");
        fs::write(&qemu, QEMU)?;
        fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755))?;
        // The tests in there have the network that every banger has by default, so the VM
        // around them is to be in another one.
        lab.home.configure(&format!(
            "vmm = \"qemu\"\nqemu_bin = \"{}\"\ncidr = \"10.77.0.0/24\"\n",
            qemu.display()
        ))?;
        let size = ["--vcpu=2", "--memory=6G", "--disk-size=24G"];
        let create = ["vm", "create", "--name", VM];
        process::run(lab.home.banger(&create).args(size))?;
        lab.prepare()?;
        Ok(lab)
    }

    /// The one that an earlier run has kept, or one that is kept.
    fn kept(workspace: &Workspace, programs: &Path) -> Result<Self> {
        let note = workspace.target.join("lab");
        if let Ok(directory) = fs::read_to_string(&note) {
            let home = Home::kept(directory.into(), programs);
            let show = ["vm", "show", "--json", VM];
            if let Ok(vm) = home.json(&show) {
                let store = artifacts::store(workspace, programs)?;
                let lab = Self { home, store };
                if vm["state"] != "running" {
                    process::run(&mut lab.home.banger(&["vm", "start", VM]))?;
                    lab.prepare()?;
                }
                return Ok(lab);
            }
        }
        let mut lab = Self::new(workspace, programs)?;
        lab.home.keep();
        let directory = lab.home.path();
        fs::write(note, directory.to_string_lossy().as_bytes())?;
        eprintln!(
            "the lab is kept: BANGER_HOME={} {} vm ssh {VM}",
            directory.display(),
            lab.home.program("banger").display()
        );
        Ok(lab)
    }

    /// Makes a host of the VM.
    fn prepare(&self) -> Result<()> {
        let mut prepare = self.exec(PREPARE);
        process::run(prepare.arg(USER).args(PACKAGES.split_whitespace()))
            .context("the VM could not be made a host")
    }

    /// The tests on the Firecracker that was copied in, with banger as `user`'s; `words` are for
    /// nextest and choose among them.
    fn tests(&self, workspace: &Workspace, user: &str, words: &[String]) -> Result<Tests> {
        let mut run = self.exec(RUN);
        let ran = process::run(run.arg(&workspace.root).arg(user).args(words));
        let results = workspace.root.join("target/nextest/default/junit.xml");
        let read = ["vm", "exec", VM, "--", "cat", &results.to_string_lossy()];
        let Ok(xml) = self.home.text(&read) else {
            ran?;
            bail!("nextest left no results");
        };
        let tests = junit::parse(&xml)?;
        if tests.failed.is_empty() {
            // A failure that is no test's.
            ran?;
        }
        Ok(tests)
    }

    /// The benchmarks that tell of the engine, on this Firecracker and these programs.
    fn benchmarks(
        &self,
        workspace: &Workspace,
        programs: &Path,
        firecracker: &Path,
        words: &[String],
    ) -> Result<()> {
        let parts = Parts::without_tests(programs, firecracker, workspace)?;
        fs::copy(std::env::current_exe()?, parts.0.path().join("xtask"))?;
        self.copy_in(&parts, workspace)?;
        process::run(self.exec(BENCH).arg(&workspace.root).args(words))
    }

    /// A script in the VM, which gets the arguments that are added.
    fn exec(&self, script: &str) -> Command {
        self.home
            .banger(&["vm", "exec", VM, "--", "sh", "-c", script, "lab"])
    }

    fn copy_in(&self, parts: &Parts, workspace: &Workspace) -> Result<()> {
        self.pour("/root/lab", parts.0.path(), &["."])?;
        // A lab that is kept has it.
        if process::run(&mut self.exec("test -e /root/lab/store/whole")).is_err() {
            self.pour("/root/lab/store", &self.store, &["."])?;
            process::run(&mut self.exec("touch /root/lab/store/whole"))?;
        }
        let mut list = Command::new("git");
        let listed = process::output(list.arg("-C").arg(&workspace.root).arg("ls-files"))?;
        let files: Vec<&str> = listed.lines().collect();
        self.pour(&workspace.root.to_string_lossy(), &workspace.root, &files)?;
        let install = "cd /root/lab && install -t /usr/local/bin firecracker";
        process::run(&mut self.exec(install))
    }

    /// Puts `files` of the directory `from` into a directory of the VM.
    fn pour(&self, directory: &str, from: &Path, files: &[&str]) -> Result<()> {
        let mut tar = Command::new("tar");
        tar.args(["--create", "--sparse", "--owner=0", "--group=0"]);
        tar.arg("--directory").arg(from).args(files);
        let mut tar = tar
            .stdout(Stdio::piped())
            .spawn()
            .context("could not start `tar`")?;
        let stream = tar.stdout.take().context("its output is piped")?;
        let unpack = "mkdir -p \"$1\" && exec tar --extract --sparse --directory \"$1\"";
        let unpacked = process::run(self.exec(unpack).arg(directory).stdin(stream));
        let status = tar.wait()?;
        unpacked?;
        match status.success() {
            true => Ok(()),
            false => bail!("`tar` failed: {status}"),
        }
    }
}

/// What is copied into the VM beside the image and the sources.
struct Parts(TempDir);

impl Parts {
    fn gather(workspace: &Workspace, programs: &Path, firecracker: &Path) -> Result<Self> {
        let parts = Self::without_tests(programs, firecracker, workspace)?;
        let root = parts.0.path();
        let archive = root.join("tests.tar.zst");
        let words = [
            "nextest",
            "archive",
            "--package=banger-e2e",
            "--archive-file",
        ];
        process::run(workspace.cargo(&words).arg(&archive))?;
        fs::copy(nextest()?, root.join("cargo-nextest"))?;
        fs::write(root.join("nextest.toml"), CONFIG)?;
        Ok(parts)
    }

    fn without_tests(programs: &Path, firecracker: &Path, workspace: &Workspace) -> Result<Self> {
        let parts = Self(TempDir::with_prefix_in("lab-", &workspace.target)?);
        let root = parts.0.path();
        fs::create_dir(root.join("bin"))?;
        for entry in fs::read_dir(programs)? {
            let program = entry?.path();
            let to = root
                .join("bin")
                .join(program.file_name().context("it is listed")?);
            // Nobody debugs in there, and a hundred MB less are to be copied.
            process::run(Command::new("strip").arg("-o").arg(&to).arg(&program))?;
        }
        fs::copy(firecracker, root.join("firecracker"))?;
        Ok(parts)
    }
}

/// The program behind `cargo nextest`, which runs without cargo.
fn nextest() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo/bin"));
    std::env::split_paths(&path)
        .chain(home)
        .map(|directory| directory.join("cargo-nextest"))
        .find(|program| program.is_file())
        .context("cargo-nextest is not in PATH")
}

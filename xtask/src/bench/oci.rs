//! B5: an image of another maker, of some 500 MB, made into one that boots: against `umoci` and
//! `mke2fs`, and in what memory; and whether it is made while it comes.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::home::Home;
use super::link::Link;
use super::report::{Aim, Peer, Row};
use super::timing::{median, timed};
use crate::process;

/// What the Debian is made of.
const PACKAGES: &str = "systemd-sysv,openssh-server,git,build-essential";
const RELEASE: &str = "bookworm";
/// What the image is called in the store.
const NAME: &str = "bench-b5";
/// Room on the disk that the peer makes.
const PEER_DISK: &str = "4G";

/// Measures it. Ours and the peer's take turns.
pub fn measure(home: &Home, target: &Path, runs: usize) -> Result<Vec<Row>> {
    let debian = Debian::made(&target.join("bench"))?;
    let work = tempfile::tempdir_in(target)?;
    let archive = format!("oci-archive:{}", debian.archive.display());
    let mut peak: f64 = 0.0;
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        // A daemon that has just been started, so that no earlier run counts.
        home.text(&["daemon", "restart"])?;
        let daemon = home.json(&["daemon", "status", "--json"])?["pid"].as_u64();
        let daemon = daemon.context("the daemon has a process")?;
        ours.push(seconds(pull(home, &archive)?));
        peak = peak.max(peak_mib(daemon)?);
        peer.push(seconds(unpack_and_format(&debian.layout, work.path())?));
    }
    let time = median(ours).context("no runs")?;
    Ok(vec![
        Row {
            id: "B5",
            what: format!(
                "`image pull oci-archive:…` of a Debian of {} MB",
                debian.unpacked / 1_000_000
            ),
            value: time,
            unit: "s",
            peer: Some(Peer {
                what: "`umoci unpack` and `mke2fs -d`".to_owned(),
                value: median(peer).context("no runs")?,
            }),
            aim: Aim::RatioAtMost(0.5),
        },
        Row {
            id: "B5",
            what: "the daemon's peak of resident memory meanwhile".to_owned(),
            value: peak,
            unit: "MiB",
            peer: None,
            aim: Aim::AtMost(64.0),
        },
        overlap(home, &debian, work.path())?,
    ])
}

/// A pull over a link that takes as long for the layers as their conversion does: done one after
/// the other it would take the sum of both.
fn overlap(home: &Home, debian: &Debian, work: &Path) -> Result<Row> {
    let registry = Registry::start(work)?;
    registry.push(&debian.layout)?;
    let direct = format!("{}/bench/debian:1", registry.address);
    pull(home, &direct)?; // the layers are in the cache then
    let conversion = seconds(pull(home, &direct)?);
    fs::remove_dir_all(home.path().join("cache/oci"))?;
    fs::create_dir(home.path().join("cache/oci"))?;
    let stored = size(&debian.layout.join("blobs/sha256"))?;
    let link = Link::to(registry.address, stored as f64 / conversion)?;
    let over_link = format!("{}/bench/debian:1", link.address);
    let download = seconds(timed(
        Command::new("skopeo")
            .args(["copy", "--quiet", "--src-tls-verify=false"])
            .arg(format!("docker://{over_link}"))
            .arg(format!("dir:{}", work.join("download").display())),
    )?);
    let both = seconds(pull(home, &over_link)?);
    Ok(Row {
        id: "B5",
        what: format!("a pull over a link on which the layers take {download:.1} s"),
        value: both,
        unit: "s",
        peer: Some(Peer {
            what: "download alone and conversion alone".to_owned(),
            value: download + conversion,
        }),
        aim: Aim::RatioAtMost(0.75),
    })
}

/// How long it takes until the image could be booted. It is removed again.
fn pull(home: &Home, reference: &str) -> Result<Duration> {
    let mut pull = home.banger(&["image", "pull", "--quiet", "--name", NAME, reference]);
    let took = timed(&mut pull)?;
    home.text(&["image", "delete", NAME])?;
    Ok(took)
}

/// What the peer needs for a disk of the same files.
fn unpack_and_format(layout: &Path, work: &Path) -> Result<Duration> {
    let (bundle, disk) = (work.join("bundle"), work.join("peer.ext4"));
    let unpacked = timed(
        Command::new("umoci")
            .args(["unpack", "--image"])
            .arg(format!("{}:latest", layout.display()))
            .arg(&bundle),
    )?;
    let formatted = timed(
        Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-d"])
            .arg(bundle.join("rootfs"))
            .arg(&disk)
            .arg(PEER_DISK),
    )?;
    fs::remove_dir_all(&bundle)?;
    fs::remove_file(&disk)?;
    Ok(unpacked + formatted)
}

/// A Debian as an image layout, and the same as an archive of one.
struct Debian {
    layout: PathBuf,
    archive: PathBuf,
    /// Bytes of its files as a tar archive.
    unpacked: u64,
}

impl Debian {
    /// The one in `directory`, made first if it is not there: some minutes.
    fn made(directory: &Path) -> Result<Self> {
        let (layout, archive) = (directory.join("debian"), directory.join("debian.tar"));
        // Written last.
        let length = directory.join("debian.bytes");
        if let Ok(unpacked) = fs::read_to_string(&length) {
            return Ok(Self {
                layout,
                archive,
                unpacked: unpacked.trim().parse()?,
            });
        }
        fs::create_dir_all(directory)?;
        let draft = tempfile::tempdir_in(directory)?;
        let tar = draft.path().join("root.tar");
        process::run(
            Command::new("mmdebstrap")
                .args(["--quiet", "--mode=unshare", "--variant=minbase"])
                .args([&format!("--include={PACKAGES}"), RELEASE])
                .arg(&tar),
        )?;
        let made = draft.path().join("debian");
        let tagged = format!("{}:latest", made.display());
        process::run(Command::new("umoci").args(["init", "--layout"]).arg(&made))?;
        process::run(Command::new("umoci").args(["new", "--image", &tagged]))?;
        process::run(
            Command::new("umoci")
                .args(["raw", "add-layer", "--image", &tagged])
                .arg(&tar),
        )?;
        // What the steps before have left in it goes.
        process::run(Command::new("umoci").args(["gc", "--layout"]).arg(&made))?;
        if layout.exists() {
            fs::remove_dir_all(&layout)?;
        }
        fs::rename(&made, &layout)?;
        let packed = draft.path().join("debian.tar");
        process::run(
            Command::new("skopeo")
                .args(["copy", "--quiet"])
                .arg(format!("oci:{}:latest", layout.display()))
                .arg(format!("oci-archive:{}", packed.display())),
        )?;
        fs::rename(&packed, &archive)?;
        let unpacked = fs::metadata(&tar)?.len();
        fs::write(&length, unpacked.to_string())?;
        Ok(Self {
            layout,
            archive,
            unpacked,
        })
    }
}

/// A `docker-registry` on the loopback, which ends with its value.
struct Registry {
    process: Child,
    address: SocketAddr,
}

impl Registry {
    fn start(directory: &Path) -> Result<Self> {
        let config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: 127.0.0.1:0}}\n",
            directory.join("registry").display()
        );
        let file = directory.join("registry.yml");
        fs::write(&file, config)?;
        let mut process = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("could not start docker-registry")?;
        let mut log = BufReader::new(process.stderr.take().context("its errors are piped")?);
        let mut line = String::new();
        let address = loop {
            line.clear();
            if log.read_line(&mut line)? == 0 {
                bail!("docker-registry ended");
            }
            if let Some((_, rest)) = line.split_once("listening on ") {
                let end = rest.find(|c: char| !c.is_ascii_digit() && !".:".contains(c));
                break rest[..end.unwrap_or(rest.len())].parse()?;
            }
        };
        // Whatever else it says is of no interest, and must not fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Ok(Self { process, address })
    }

    fn push(&self, layout: &Path) -> Result<()> {
        process::run(
            Command::new("skopeo")
                .args(["copy", "--quiet", "--dest-tls-verify=false"])
                .arg(format!("oci:{}:latest", layout.display()))
                .arg(format!("docker://{}/bench/debian:1", self.address)),
        )
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill(); // it may have ended by itself
        let _ = self.process.wait();
    }
}

/// `VmHWM` of a process (proc_pid_status(5)).
fn peak_mib(pid: u64) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    let kib: f64 = number.context("a process has a VmHWM")?.parse()?;
    Ok(kib / 1024.0)
}

/// Bytes of the files in a directory.
fn size(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

//! The bare engine where that is Firecracker: the same program with the same machine, kernel,
//! initramfs and disks, configured by a file, with nothing of banger around it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::bare::{LIMIT, say_hello};
use super::home::Home;
use crate::process;

/// The network device of the bare machine. Nobody is at its other end.
const TAP: &str = "bgr-bench";
/// The agent's port (`banger_proto::agent::VSOCK_PORT`).
const PORT: u32 = banger_proto::agent::VSOCK_PORT;

/// A machine that can be started again and again.
pub struct BareFirecracker {
    program: PathBuf,
    /// The disks that a guest writes to: pristine, and where a run's copy goes.
    writable: Vec<(PathBuf, PathBuf)>,
    directory: PathBuf,
}

impl BareFirecracker {
    /// Takes the machine of the Firecracker process `pid` of the only VM of `home`, with
    /// `pristine` (a directory of disks that no guest has written to) in place of its writable
    /// disks. Files of its own go to `directory`.
    pub fn like(home: &Home, pid: u64, pristine: &Path, directory: &Path) -> Result<Self> {
        let shown = home.json(&["engine", "show", "firecracker", "--json"])?;
        let program = shown["path"].as_str().context("it has a path")?.into();
        let mut bare = Self {
            program,
            writable: Vec::new(),
            directory: directory.to_owned(),
        };
        let described = describe(&api_of(home)?)?;
        let open = open_files(pid)?;
        let config = bare.config(&described, &open, pristine)?;
        fs::write(bare.at("config.json"), config.to_string())?;
        let _ = process::run_quietly(Command::new("ip").args(["link", "delete", TAP]));
        process::run_quietly(Command::new("ip").args(["tuntap", "add", TAP, "mode", "tap"]))?;
        Ok(bare)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// What the file says: what the machine says of itself, with paths for descriptors.
    fn config(
        &mut self,
        described: &Value,
        open: &BTreeMap<String, PathBuf>,
        pristine: &Path,
    ) -> Result<Value> {
        let path = |value: &Value| -> Result<PathBuf> {
            let text = value.as_str().context("a path is a text")?;
            let fd = text.rsplit('/').next().context("it has a last part")?;
            let path = open
                .get(fd)
                .context("Firecracker keeps what it was given")?;
            Ok(path.clone())
        };
        let boot = &described["boot-source"];
        let mut drives = Vec::new();
        for drive in described["drives"].as_array().context("it has disks")? {
            let mut file = path(&drive["path_on_host"])?;
            if drive["is_read_only"] == false {
                let name = file.file_name().context("a file has a name")?.to_owned();
                let copy = self.directory.join(&name);
                self.writable.push((pristine.join(&name), copy.clone()));
                file = copy;
            }
            let mut drive = drive.clone();
            drive["path_on_host"] = json!(file);
            let fields = drive.as_object_mut().context("a disk is an object")?;
            fields.retain(|_, value| !value.is_null());
            drives.push(drive);
        }
        let machine = &described["machine-config"];
        Ok(json!({
            "machine-config": {
                "vcpu_count": machine["vcpu_count"],
                "mem_size_mib": machine["mem_size_mib"],
            },
            "boot-source": {
                "kernel_image_path": path(&boot["kernel_image_path"])?,
                "initrd_path": path(&boot["initrd_path"])?,
                "boot_args": boot["boot_args"],
            },
            "drives": drives,
            "network-interfaces": [{ "iface_id": "net", "host_dev_name": TAP }],
            "vsock": { "guest_cid": 3, "uds_path": self.at("link") },
            "entropy": {},
        }))
    }

    /// Starts it, and returns the time from the process's start to the agent's first byte.
    pub fn boot(&self) -> Result<Duration> {
        for (pristine, copy) in &self.writable {
            process::run_quietly(
                Command::new("cp")
                    .args(["--sparse=always", "--reflink=auto"])
                    .args([pristine, copy]),
            )?;
        }
        let knock = self.at(&format!("link_{PORT}"));
        for socket in [&self.at("link"), &knock] {
            let _ = fs::remove_file(socket); // of the run before
        }
        let door = UnixListener::bind(&knock)?;
        let mut command = Command::new(&self.program);
        command.args(["--no-api", "--config-file"]);
        command.arg(self.at("config.json"));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let begin = Instant::now();
        let mut engine = command.spawn().context("could not start Firecracker")?;
        let answered = first_byte(&door, &self.at("link"));
        let took = begin.elapsed();
        let _ = engine.kill(); // it may have ended by itself
        engine.wait()?;
        answered.context("the bare engine's agent did not answer")?;
        Ok(took)
    }
}

impl Drop for BareFirecracker {
    fn drop(&mut self) {
        let removed = process::run_quietly(Command::new("ip").args(["link", "delete", TAP]));
        if let Err(error) = removed {
            eprintln!("warning: {error:#}");
        }
    }
}

/// The socket of the API of the only machine that runs.
fn api_of(home: &Home) -> Result<PathBuf> {
    let vms = fs::read_dir(home.path().join("run/vms"))?;
    let mut sockets = vms.flatten().map(|vm| vm.path().join("fc/api"));
    let found = sockets.find(|socket| socket.exists());
    found.context("no Firecracker runs")
}

fn describe(api: &Path) -> Result<Value> {
    let mut ask = Command::new("curl");
    ask.args(["--silent", "--show-error", "--fail", "--unix-socket"]);
    ask.arg(api).arg("http://localhost/vm/config");
    Ok(serde_json::from_str(&process::quiet_output(&mut ask)?)?)
}

fn open_files(pid: u64) -> Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        files.insert(name, fs::read_link(entry.path())?);
    }
    Ok(files)
}

/// Waits for the agent's knock, connects, says hello, and waits for the first byte of its answer.
fn first_byte(door: &UnixListener, link: &Path) -> Result<()> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let limit = Timespec {
        tv_sec: LIMIT.as_secs().cast_signed(),
        tv_nsec: 0,
    };
    if poll(&mut [PollFd::new(door, PollFlags::IN)], Some(&limit))? == 0 {
        bail!("it did not knock within {LIMIT:?}");
    }
    door.accept()?;
    let mut agent = UnixStream::connect(link)?;
    agent.set_read_timeout(Some(LIMIT))?;
    agent.write_all(format!("CONNECT {PORT}\n").as_bytes())?;
    let mut byte = [0];
    while byte != *b"\n" {
        agent.read_exact(&mut byte)?;
    }
    say_hello(&mut agent)
}

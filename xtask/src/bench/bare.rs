//! The bare engine where that is QEMU: the one that banger starts, with the same arguments, kernel, initramfs
//! and disks, but nothing of banger around it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use banger_proto::hello::{Kind, Message, PROTOCOL_VERSION, RESYNC_LEN, nonce};
use rustix::io::{FdFlags, fcntl_setfd};

use crate::process;

/// How long a guest may take before the benchmark gives up.
pub(super) const LIMIT: Duration = Duration::from_secs(120);

/// A command line of QEMU's that can be started again and again.
pub struct BareEngine {
    arguments: Vec<String>,
    /// The disks that a guest writes to: pristine, and where a run's copy goes.
    writable: Vec<(PathBuf, PathBuf)>,
    directory: PathBuf,
}

impl BareEngine {
    /// Takes the command line of the QEMU process `pid`, with `pristine` (a directory of
    /// disks that no guest has written to) in place of its writable disks. Files of its own
    /// go to `directory`.
    pub fn like(pid: u64, pristine: &Path, directory: &Path) -> Result<Self> {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let line = fs::read(process.join("cmdline")).context("the VM's QEMU is gone")?;
        let words: Vec<String> = line
            .split(|byte| *byte == 0)
            .filter(|word| !word.is_empty())
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        let open_files = open_files(&process.join("fd"))?;

        let mut bare = Self {
            arguments: vec![words[0].clone()],
            writable: Vec::new(),
            directory: directory.to_owned(),
        };
        let mut words = words[1..].iter().map(String::as_str).peekable();
        while let Some(word) = words.next() {
            if word == "-add-fd" {
                // The bare one opens its files by their paths.
                words.next().context("-add-fd has a value")?;
                continue;
            }
            let mut text = word.to_owned();
            if let Some(fd) = word.strip_prefix("/proc/self/fd/") {
                let path = open_files.get(fd).context("QEMU keeps what it was given")?;
                text = path.display().to_string();
            }
            if let Some((before, rest)) = word.split_once("/dev/fdset/") {
                let (_, after) = rest.split_at(rest.find(',').unwrap_or(rest.len()));
                // QEMU keeps duplicates of a set's descriptors, so the number tells nothing.
                let name = file_in_set(word)?;
                let mut paths = open_files.values();
                let path = paths
                    .find(|path| path.file_name().is_some_and(|found| found == name))
                    .with_context(|| format!("QEMU has no `{name}` open"))?;
                let path = bare.own(path, word.contains("read-only=on"), pristine)?;
                text = format!("{before}{}{after}", path.display());
            }
            if word.starts_with("tap,") {
                "user,id=net,restrict=on".clone_into(&mut text);
            }
            bare.arguments.push(text);
        }
        Ok(bare)
    }

    /// A file that QEMU opens, or the copy that it opens instead.
    fn own(&mut self, path: &Path, read_only: bool, pristine: &Path) -> Result<PathBuf> {
        if read_only {
            return Ok(path.to_owned());
        }
        let name = path.file_name().context("a file has a name")?;
        let copy = self.directory.join(name);
        let original = pristine.join(name);
        if original.is_file() {
            self.writable.push((original, copy.clone()));
        }
        Ok(copy)
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
        let sockets = [self.directory.join("agent"), self.directory.join("control")];
        let mut listeners = Vec::new();
        for socket in &sockets {
            let _ = fs::remove_file(socket); // of the run before
            let listener = UnixListener::bind(socket)?;
            fcntl_setfd(&listener, FdFlags::empty())?; // QEMU inherits it
            listeners.push(listener);
        }
        let mut command = Command::new(&self.arguments[0]);
        for argument in &self.arguments[1..] {
            let listener = match argument.split(',').nth(1) {
                Some("id=agent") if argument.starts_with("socket,") => Some(&listeners[0]),
                Some("id=control") if argument.starts_with("socket,") => Some(&listeners[1]),
                _ => None,
            };
            command.arg(match listener {
                Some(listener) => with_descriptor(argument, listener.as_raw_fd()),
                None => argument.clone(),
            });
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());

        let begin = Instant::now();
        let mut engine = command.spawn().context("could not start QEMU")?;
        let answered = first_byte(&sockets[0]);
        let took = begin.elapsed();
        let _ = engine.kill(); // it may have ended by itself
        engine.wait()?;
        answered.context("the bare engine's agent did not answer")?;
        Ok(took)
    }
}

/// What a process has open, by the descriptor's number.
fn open_files(descriptors: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let entries = fs::read_dir(descriptors).context("QEMU's descriptors cannot be looked at")?;
    let mut files = BTreeMap::new();
    for entry in entries {
        let entry = entry?;
        // One may have been closed meanwhile.
        if let Ok(path) = fs::read_link(entry.path()) {
            files.insert(entry.file_name().to_string_lossy().into_owned(), path);
        }
    }
    Ok(files)
}

/// The name of the file that stands for the descriptor set in an argument.
fn file_in_set(argument: &str) -> Result<&'static str> {
    let is = |part: &str| argument.split(',').any(|found| found == part);
    [
        ("node-name=base", "rootfs.ext4"),
        ("node-name=system", "system.ext4"),
        ("node-name=modules", "modules.ext4"),
        ("node-name=work", "work.ext4"),
        ("id=console", "console.log"),
    ]
    .into_iter()
    .find_map(|(part, file)| is(part).then_some(file))
    .with_context(|| format!("`{argument}` is for none of banger's files"))
}

/// Says hello to the agent, and waits for the first byte of its answer.
fn first_byte(socket: &Path) -> Result<()> {
    let mut agent = UnixStream::connect(socket)?;
    agent.set_read_timeout(Some(LIMIT))?;
    agent.set_write_timeout(Some(LIMIT))?;
    say_hello(&mut agent)
}

/// The same over a connection that stands.
pub(super) fn say_hello(agent: &mut UnixStream) -> Result<()> {
    let hello = Message {
        kind: Kind::Hello,
        nonce: nonce(),
        version: PROTOCOL_VERSION,
    };
    agent.write_all(&[0; RESYNC_LEN])?;
    agent.write_all(&hello.encode())?;
    agent.read_exact(&mut [0])?;
    Ok(())
}

/// `argument` with another descriptor's number in it.
fn with_descriptor(argument: &str, fd: i32) -> String {
    let parts = argument
        .split(',')
        .map(|part| match part.starts_with("fd=") {
            true => format!("fd={fd}"),
            false => part.to_owned(),
        });
    parts.collect::<Vec<_>>().join(",")
}

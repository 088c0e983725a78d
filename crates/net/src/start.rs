//! How the daemon starts a holder, and what it clears away of one that was killed.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::fs::FlockOperation;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use crate::config::NetworkConfig;
use crate::holder::{self, Arguments, Place};
use crate::protocol::{Failure, Started, decode};

/// How long a holder may take to be ready. It takes less than 0.1 s.
const READY_MAX: Duration = Duration::from_secs(15);

/// Why no holder was started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A directory of the network is not to be had.
    #[error("could not use the directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The log is not to be opened.
    #[error("could not open the log {}", path.display())]
    Log {
        /// The log's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The program is not to be executed.
    #[error("could not execute {}", program.display())]
    Execute {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended without a word.
    #[error("{} ended without becoming a network's holder: {status}", program.display())]
    Silent {
        /// The program.
        program: PathBuf,
        /// How it ended.
        status: ExitStatus,
    },
    /// It was not ready in time.
    #[error("it was not ready within {seconds} s")]
    Timeout {
        /// How long was waited.
        seconds: u64,
    },
    /// It says itself why it failed.
    #[error(transparent)]
    Failed(Failure),
}

/// Starts a holder and waits until it listens. With `open` it opens the way out meanwhile.
pub(crate) async fn start(config: &NetworkConfig, open: bool) -> Result<(), StartError> {
    make_directory(&config.runtime_dir)?;
    make_directory(&config.log_dir)?;
    let log = open_log(config)?;
    let (program, first) = config
        .holder
        .split_first()
        .expect("a checked config has a program");
    let executing = |source| StartError::Execute {
        program: program.into(),
        source,
    };
    let mut holder = banger_process::command(program);
    holder
        .args(first)
        .args(Arguments::Hold(place(config, open)).render())
        // A process that lives so long shall keep nothing of the daemon's environment.
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("LC_ALL", "C.UTF-8")
        .stdout(Stdio::piped())
        .stderr(log);
    let mut process = Command::from(holder)
        .kill_on_drop(true)
        .spawn()
        .map_err(executing)?;
    let output = process.stdout.take().expect("standard output is piped");
    let ready = async {
        let mut line = String::new();
        BufReader::new(output)
            .read_line(&mut line)
            .await
            .map_err(executing)?;
        // The process that was started forks the holder and ends.
        let status = process.wait().await.map_err(executing)?;
        match decode(line.as_bytes()) {
            Ok(Started::Ready) => Ok(()),
            Ok(Started::Failed(failure)) => Err(StartError::Failed(failure)),
            Err(_) => Err(StartError::Silent {
                program: program.into(),
                status,
            }),
        }
    };
    match timeout(READY_MAX, ready).await {
        Ok(result) => result,
        Err(_) => Err(StartError::Timeout {
            seconds: READY_MAX.as_secs(),
        }),
    }
}

/// Removes the socket of a holder that was killed. Whether one lives is for the lock to say.
pub(crate) fn sweep(config: &NetworkConfig) {
    let free = || {
        let lock = holder::open_lock(&config.lock())?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok::<File, io::Error>(lock)
    };
    let socket = config.socket();
    if !socket.exists() {
        return;
    }
    match free() {
        Ok(_lock) => {
            if let Err(error) = fs::remove_file(&socket) {
                tracing::debug!(path = %socket.display(), %error, "the holder's socket stays");
            }
        }
        // A new holder is about to use it.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        Err(error) => tracing::warn!(%error, "could not lock the network"),
    }
}

fn place(config: &NetworkConfig, open: bool) -> Place {
    Place {
        instance: config.instance.clone(),
        bridge: config.bridge,
        runtime_dir: config.runtime_dir.clone(),
        log_dir: config.log_dir.clone(),
        open,
    }
}

fn make_directory(path: &Path) -> Result<(), StartError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| StartError::Directory {
        path: path.to_owned(),
        source,
    })
}

fn open_log(config: &NetworkConfig) -> Result<File, StartError> {
    let path = config.log_dir.join(holder::LOG);
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path);
    file.map_err(|source| StartError::Log { path, source })
}

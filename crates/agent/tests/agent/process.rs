//! An agent process for one test.

#![expect(clippy::disallowed_methods, reason = "tests start what they test")]

use std::path::PathBuf;
use std::process::Stdio;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use crate::client::Client;

/// An agent process of its own for one test.
pub struct TestAgent {
    pub process: Child,
    pub directory: TempDir,
    _log: JoinHandle<()>,
}

impl TestAgent {
    pub async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_banger-vsock-agent"))
            .args(["serve", "--unix"])
            .arg(directory.path().join("agent.sock"))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        loop {
            let line = log
                .next_line()
                .await
                .unwrap()
                .expect("the agent ended at its start");
            if line.contains("listening") {
                break;
            }
        }
        let log = tokio::spawn(async move {
            while let Ok(Some(line)) = log.next_line().await {
                eprintln!("agent: {line}");
            }
        });
        Self {
            process,
            directory,
            _log: log,
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    pub async fn connect(&self) -> Client {
        Client::connect(&self.socket()).await
    }
}

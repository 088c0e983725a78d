//! What the environment says, read once.

use std::path::PathBuf;
use std::time::Duration;

use banger_client::{Client, launch};
use banger_config::paths::companion;
use banger_config::{Config, ConfigError, Paths};
use banger_proto::error::{ApiError, ErrorKind};
use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use crate::failure::Failure;
use crate::ui::Ui;

/// How long a daemon that ended has to come back: `banger daemon restart` takes less.
const COME_BACK_LIMIT: Duration = Duration::from_secs(10);
/// How long to wait between two looks for it. There is no event to await: it was the daemon
/// that told them.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What every command needs to know.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Where banger keeps its things.
    pub(crate) paths: Paths,
    /// The daemon's program; without a slash it is looked for in `PATH`.
    pub(crate) daemon_program: PathBuf,
    /// Where talk goes.
    pub(crate) ui: Ui,
}

impl Settings {
    pub(crate) fn from_env() -> Result<Self, Failure> {
        let paths = Paths::from_env()
            .map_err(|error| ApiError::new(ErrorKind::Invalid, error.to_string()))?;
        Ok(Self {
            paths,
            daemon_program: companion("BANGER_DAEMON_BIN", "bangerd")
                .unwrap_or_else(|| PathBuf::from("bangerd")),
            ui: Ui::from_env(),
        })
    }

    /// What the config file says now.
    ///
    /// # Errors
    /// It cannot be read, or makes no sense.
    pub(crate) fn config(&self) -> Result<Config, ApiError> {
        Config::load(&self.paths.config_file()).map_err(|error| {
            let kind = match error {
                ConfigError::Read { .. } => ErrorKind::Failed,
                ConfigError::Value { .. } | ConfigError::UnknownKey { .. } => ErrorKind::Invalid,
            };
            let api = ApiError::new(kind, error.to_string());
            match std::error::Error::source(&error) {
                Some(source) => api.caused_by(source),
                None => api,
            }
        })
    }

    /// The daemon, started if none runs.
    pub(crate) async fn connect(&self) -> Result<Client, Failure> {
        let client = launch::connect_or_start(&self.paths.socket(), &self.daemon_program).await?;
        if let Some(notice) = client.version_notice() {
            self.ui.warn(&notice);
        }
        if self.config_is_newer(&client).await {
            self.ui.warn(
                "the config file has changed since the daemon started: run `banger daemon restart` to use it; VMs go on running",
            );
        }
        Ok(client)
    }

    /// Whether the config file was written after the daemon read it. What cannot be found out is
    /// no reason to disturb anyone.
    async fn config_is_newer(&self, client: &Client) -> bool {
        let written = std::fs::metadata(self.paths.config_file()).and_then(|file| file.modified());
        let Some(written) = written.ok().and_then(|time| Timestamp::try_from(time).ok()) else {
            return false;
        };
        match client.daemon_status().await {
            Ok(status) => {
                let started = status.started_at.parse::<Timestamp>();
                started.is_ok_and(|started| written > started)
            }
            Err(_) => false,
        }
    }

    /// The daemon, if one runs, of whatever version.
    pub(crate) async fn connect_if_running(&self) -> Result<Option<Client>, Failure> {
        Ok(launch::connect_if_running(&self.paths.socket()).await?)
    }

    /// Waits for the daemon after the one that ended. None is started: somebody may just have
    /// stopped it.
    pub(crate) async fn connect_to_next(&self) -> Result<Client, ApiError> {
        let deadline = Instant::now() + COME_BACK_LIMIT;
        while Instant::now() < deadline {
            if let Ok(Some(client)) = self.connect_if_running().await {
                return Ok(client);
            }
            sleep(LOOK_EVERY).await;
        }
        Err(ApiError::new(
            ErrorKind::Unavailable,
            "the daemon has ended",
        ))
    }
}

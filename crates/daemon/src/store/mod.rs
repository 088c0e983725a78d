//! What VMs there are: the durable rows, in SQLite.
//!
//! One thread owns the one connection and runs what it is sent in order, so that nothing
//! blocks the runtime and two changes never interleave. A row says what a VM is and which
//! phase it is in; what is momentarily true of it on the host (process, tap) is not here.

pub mod keys;
mod phase;
pub mod schema;
pub mod vms;

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use rusqlite::{Connection, ErrorCode};
use tokio::sync::oneshot;

use crate::faults::{Faults, Moment, Step};

pub use phase::Phase;
pub use vms::{InsertError, MalformedRow, NewVm, ReplaceError, Rows, VmRow};

/// What SQLite said. Its own error says the same again in its source.
#[derive(Debug)]
pub struct SqliteError(rusqlite::Error);

impl From<rusqlite::Error> for SqliteError {
    fn from(error: rusqlite::Error) -> Self {
        Self(error)
    }
}

impl fmt::Display for SqliteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for SqliteError {}

/// Why the database does not do what is asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened or made.
    #[error("could not open the database `{}`", .path.display())]
    Open {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: SqliteError,
    },
    /// It is no database, or a damaged one.
    #[error("the database `{}` is damaged", .path.display())]
    Corrupt {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: SqliteError,
    },
    /// A newer banger has written it.
    #[error(
        "the database `{}` has schema {found}, and this banger knows only {known}",
        .path.display()
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its schema's number.
        found: u32,
        /// The newest number that this build knows.
        known: u32,
    },
    /// An older banger has written it, and no daemon has migrated it yet.
    #[error("the database `{}` is of an older banger", .path.display())]
    Older {
        /// The database.
        path: PathBuf,
    },
    /// A file of the database cannot be given another name.
    #[error("could not rename `{}`", .path.display())]
    SetAside {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The copy that is made before a migration failed.
    #[error("could not back the database up to `{}` before changing its schema", .to.display())]
    BackUp {
        /// The copy.
        to: PathBuf,
        /// What SQLite said.
        #[source]
        source: SqliteError,
    },
    /// A migration failed; the database is as it was.
    #[error("could not bring the database to schema {to}")]
    Migrate {
        /// The schema's number.
        to: u32,
        /// What SQLite said.
        #[source]
        source: SqliteError,
    },
    /// A query failed.
    #[error("could not {what} in the database")]
    Query {
        /// What was being done, as a verb phrase.
        what: &'static str,
        /// What SQLite said.
        #[source]
        source: SqliteError,
    },
    /// The database's thread is gone; only at the daemon's end.
    #[error("the database is closed")]
    Closed,
}

impl StoreError {
    /// What the user can do, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Newer { .. } => {
                Some("use the newer banger again, or install its version here".to_owned())
            }
            Self::Corrupt { .. } => Some(
                "`banger daemon restart` keeps it under another name and brings the VMs back \
                 from their own records"
                    .to_owned(),
            ),
            Self::Open { source, .. }
            | Self::BackUp { source, .. }
            | Self::Migrate { source, .. }
            | Self::Query { source, .. } => match source.0.sqlite_error_code() {
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Some(
                    "`banger daemon restart` keeps the damaged database under another name and \
                     brings the VMs back from their own records; VMs that run go on"
                        .to_owned(),
                ),
                Some(ErrorCode::DiskFull) => Some("free some space on the disk".to_owned()),
                Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
                    Some("banger's state directory must be writable for you".to_owned())
                }
                _ => None,
            },
            Self::Older { .. } => Some("`banger daemon start` brings it up to date".to_owned()),
            Self::SetAside { .. } => {
                Some("banger's state directory must be writable for you".to_owned())
            }
            Self::Closed => None,
        }
    }

    /// The error of a query that was made to `what`, a verb phrase.
    pub(crate) fn query(what: &'static str) -> impl FnOnce(rusqlite::Error) -> Self + Copy {
        move |source| Self::Query {
            what,
            source: source.into(),
        }
    }
}

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// The open database. Cheap to clone; the last clone closes it.
#[derive(Clone, Debug)]
pub struct Database {
    jobs: mpsc::Sender<Job>,
    faults: Faults,
}

impl Database {
    /// Opens the database, making or migrating it as needed. A damaged one is kept under the
    /// other name that is returned. Blocks; call it before the daemon serves anything.
    ///
    /// # Errors
    /// It cannot be opened, is of a newer banger, or cannot be migrated.
    pub fn open(path: &Path) -> Result<(Self, Option<PathBuf>), StoreError> {
        let schema::Opened {
            mut connection,
            damaged,
        } = schema::open(path)?;
        let (jobs, queue) = mpsc::channel::<Job>();
        thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || {
                while let Ok(job) = queue.recv() {
                    job(&mut connection);
                }
            })
            .expect("the daemon can start a thread at its beginning");
        let faults = Faults::default();
        Ok((Self { jobs, faults }, damaged))
    }

    /// The same database, with what a test has planted.
    pub fn with_faults(self, faults: Faults) -> Self {
        Self { faults, ..self }
    }

    /// Changes the database: as [`Self::call`], with a fault point on either side.
    async fn change<T, E>(
        &self,
        job: impl FnOnce(&mut Connection) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let faults = self.faults.clone();
        self.call(move |connection| {
            if faults.step(Step::Row, Moment::Before) {
                let full = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL);
                let full = rusqlite::Error::SqliteFailure(full, None);
                return Err(StoreError::query("change what a test wanted unchanged")(full).into());
            }
            let done = job(connection);
            faults.step(Step::Row, Moment::HalfWay);
            done
        })
        .await
    }

    /// Runs `job` on the database's thread, after all that was sent before.
    ///
    /// Once sent, the job runs even if the returned future is dropped.
    async fn call<T, E>(
        &self,
        job: impl FnOnce(&mut Connection) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            // Nobody waits any more: the job is done all the same.
            let _ = reply.send(job(connection));
        });
        self.jobs.send(job).map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

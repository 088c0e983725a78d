//! How the database is opened, and how an older one becomes the present one.
//!
//! The schema's number is SQLite's `user_version`. Migrations go forward only, all of them in
//! one transaction, after the file was copied to `<name>.v<old number>.bak` and the copy was
//! read back.
//!
//! A damaged database is kept under another name, and a new one takes its place: what it said
//! of VMs is in their own directories as well ([`crate::vm::record`]).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, MAIN_DB, OpenFlags, ffi};

use super::{StoreError, vms};

/// What SQLite keeps beside the database.
const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// Each brings the schema from its index to its index + 1.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE vm (
        id            TEXT PRIMARY KEY NOT NULL,
        name          TEXT NOT NULL UNIQUE,
        slot          INTEGER NOT NULL UNIQUE CHECK (slot BETWEEN 1 AND 65535),
        phase         TEXT NOT NULL,
        failure       TEXT,
        image         TEXT NOT NULL,
        image_id      TEXT,
        kernel        TEXT,
        vcpu          INTEGER NOT NULL,
        memory        INTEGER NOT NULL,
        disk_size     INTEGER NOT NULL,
        system_size   INTEGER NOT NULL,
        engine        TEXT NOT NULL,
        engine_reason TEXT NOT NULL,
        nat           INTEGER NOT NULL,
        labels        TEXT NOT NULL,
        lease         TEXT,
        created_at    TEXT NOT NULL,
        started_at    TEXT,
        stages        TEXT NOT NULL
    ) STRICT;
",
    "
    ALTER TABLE vm ADD COLUMN expires_at TEXT;
",
    "
    ALTER TABLE vm ADD COLUMN reason TEXT;
    CREATE TABLE create_key (
        key         TEXT PRIMARY KEY NOT NULL,
        fingerprint TEXT NOT NULL,
        vm          TEXT NOT NULL REFERENCES vm (id) ON DELETE CASCADE,
        used_at     INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX create_key_of_vm ON create_key (vm);
",
];

/// The number of the schema that this build writes.
pub const VERSION: u32 = MIGRATIONS.len() as u32;

/// A database that is open, and what became of the one that was there.
#[derive(Debug)]
pub struct Opened {
    /// The connection.
    pub connection: Connection,
    /// Where the damaged one is, if it was damaged.
    pub damaged: Option<PathBuf>,
}

/// Opens the database at `path`, making or migrating it as needed. A damaged one is kept under
/// another name, and a new one is made.
///
/// # Errors
/// As [`super::Database::open`].
pub fn open(path: &Path) -> Result<Opened, StoreError> {
    match open_whole(path) {
        Ok(connection) => Ok(Opened {
            connection,
            damaged: None,
        }),
        Err(StoreError::Corrupt { source, .. }) => {
            let kept = set_aside(path)?;
            tracing::error!(
                error = %source, kept = %kept.display(), "the database is damaged: a new one is made"
            );
            Ok(Opened {
                connection: open_whole(path)?,
                damaged: Some(kept),
            })
        }
        Err(error) => Err(error),
    }
}

/// Opens the database for reading only: it is neither made nor migrated nor set aside. `None`
/// if there is none.
///
/// # Errors
/// It cannot be opened, is damaged, or is of another version.
pub fn open_to_read(path: &Path) -> Result<Option<Connection>, StoreError> {
    if !path.exists() {
        return Ok(None);
    }
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .map_err(|source| classify(path, source))?;
    connection
        .busy_timeout(BUSY_LIMIT)
        .map_err(|source| classify(path, source))?;
    match version(&connection, path)? {
        VERSION => Ok(Some(connection)),
        found if found > VERSION => Err(newer(path, found)),
        _ => Err(StoreError::Older {
            path: path.to_owned(),
        }),
    }
}

/// Where damaged databases of `path` are kept, the oldest first.
pub fn damaged_ones(path: &Path) -> Vec<PathBuf> {
    let prefix = format!("{}.damaged-", file_name(path));
    let entries = path.parent().and_then(|state| fs::read_dir(state).ok());
    let mut found: Vec<PathBuf> = entries
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = file_name(path);
            name.starts_with(&prefix) && !COMPANIONS.iter().any(|end| name.ends_with(end))
        })
        .collect();
    found.sort();
    found
}

fn open_whole(path: &Path) -> Result<Connection, StoreError> {
    let mut connection = connect(path)?;
    let found = version(&connection, path)?;
    if found > VERSION {
        return Err(newer(path, found));
    }
    keep_log(&connection, path, true)?;
    verify(&connection, path)?;
    keep_log(&connection, path, false)?;
    if found < VERSION {
        if found > 0 {
            back_up(&connection, path, found)?;
        }
        migrate(&mut connection, found)?;
    }
    // A schema whose number lies is found out now, and not by the first request.
    match vms::probe(&connection) {
        Ok(()) => Ok(connection),
        // What SQLite says of a table or column that is not there.
        Err(source) if source.sqlite_error_code() == Some(ErrorCode::Unknown) => {
            Err(StoreError::Corrupt {
                path: path.to_owned(),
                source: source.into(),
            })
        }
        Err(source) => Err(classify(path, source)),
    }
}

/// Moves a damaged database away with all that belongs to it. Nothing of it is lost.
fn set_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let time = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    let mut kept = beside(path, &format!(".damaged-{time}"));
    // Twice within a second.
    for number in 2.. {
        if !kept.exists() {
            break;
        }
        kept = beside(path, &format!(".damaged-{time}-{number}"));
    }
    let set_aside = |from: &Path, to: &Path| match fs::rename(from, to) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StoreError::SetAside {
            path: from.to_owned(),
            source: error,
        }),
        _ => Ok(()),
    };
    // The log of changes first: beside a new database it would be taken for that one's.
    for end in COMPANIONS {
        set_aside(&beside(path, end), &beside(&kept, end))?;
    }
    set_aside(path, &kept)?;
    Ok(kept)
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    PathBuf::from(name)
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn newer(path: &Path, found: u32) -> StoreError {
    StoreError::Newer {
        path: path.to_owned(),
        found,
        known: VERSION,
    }
}

/// How long a query waits for another program that holds the database.
const BUSY_LIMIT: Duration = Duration::from_secs(5);

/// Every connection gets these settings, because SQLite keeps most of them per connection.
/// `synchronous` is full: a row must be on the disk before the VM's first file is.
fn connect(path: &Path) -> Result<Connection, StoreError> {
    let settle = |connection: &Connection| -> rusqlite::Result<()> {
        connection.busy_timeout(BUSY_LIMIT)?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "full")?;
        connection.pragma_update(None, "foreign_keys", true)
    };
    if is_emptied(path) {
        return Err(StoreError::Corrupt {
            path: path.to_owned(),
            source: rusqlite::Error::SqliteFailure(
                ffi::Error::new(ffi::SQLITE_CORRUPT),
                Some("it is empty, and there is a log of its changes".to_owned()),
            )
            .into(),
        });
    }
    let connection = Connection::open(path).map_err(|source| classify(path, source))?;
    keep_log(&connection, path, true)?;
    settle(&connection).map_err(|source| classify(path, source))?;
    keep_log(&connection, path, false)?;
    Ok(connection)
}

/// Whether who closes the database leaves its log of changes as it is, instead of working it in
/// and removing it: of a damaged one nothing may be thrown away.
fn keep_log(connection: &Connection, path: &Path, keep: bool) -> Result<(), StoreError> {
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, keep)
        .map(|_| ())
        .map_err(|source| classify(path, source))
}

/// Whether the database was emptied while its log of changes was not: SQLite would throw the
/// log away.
fn is_emptied(path: &Path) -> bool {
    let length = |path: &Path| fs::metadata(path).map(|file| file.len());
    let empty = length(path).is_ok_and(|length| length == 0);
    empty && length(&beside(path, "-wal")).is_ok_and(|length| length > 0)
}

fn version(connection: &Connection, path: &Path) -> Result<u32, StoreError> {
    connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(|source| classify(path, source))
}

/// Reads all of it, which takes about a millisecond for each megabyte.
fn verify(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let verdict: String = connection
        .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
        .map_err(|source| classify(path, source))?;
    match verdict.as_str() {
        "ok" => Ok(()),
        _ => {
            let code = ffi::Error::new(ffi::SQLITE_CORRUPT);
            Err(classify(
                path,
                rusqlite::Error::SqliteFailure(code, Some(verdict)),
            ))
        }
    }
}

fn classify(path: &Path, source: rusqlite::Error) -> StoreError {
    let path = path.to_owned();
    let code = source.sqlite_error_code();
    let source = source.into();
    match code {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            StoreError::Corrupt { path, source }
        }
        _ => StoreError::Open { path, source },
    }
}

/// Copies the database. The copy gets its name when it was read back whole.
fn back_up(connection: &Connection, path: &Path, found: u32) -> Result<(), StoreError> {
    let to = beside(path, &format!(".v{found}.bak"));
    let draft = beside(&to, ".new");
    let copied = connection
        .backup(MAIN_DB, &draft, None::<fn(rusqlite::backup::Progress)>)
        .and_then(|()| Connection::open(&draft));
    let copy = copied.map_err(|source| StoreError::BackUp {
        to: to.clone(),
        source: source.into(),
    })?;
    verify(&copy, &draft)?;
    drop(copy);
    fs::rename(&draft, &to).map_err(|source| StoreError::SetAside {
        path: draft.clone(),
        source,
    })
}

fn migrate(connection: &mut Connection, from: u32) -> Result<(), StoreError> {
    let failed = |to| {
        move |source: rusqlite::Error| StoreError::Migrate {
            to,
            source: source.into(),
        }
    };
    let transaction = connection.transaction().map_err(failed(VERSION))?;
    for (to, migration) in (1..).zip(MIGRATIONS).skip(from as usize) {
        transaction.execute_batch(migration).map_err(failed(to))?;
    }
    transaction
        .pragma_update(None, "user_version", VERSION)
        .and_then(|()| transaction.commit())
        .map_err(failed(VERSION))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pragma(connection: &Connection, name: &str) -> String {
        connection
            .pragma_query_value(None, name, |row| {
                row.get::<_, rusqlite::types::Value>(0)
                    .map(|value| format!("{value:?}"))
            })
            .unwrap()
    }

    #[test]
    fn every_connection_has_the_settings() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        for _ in 0..2 {
            let connection = open(&path).unwrap().connection;
            assert_eq!(pragma(&connection, "journal_mode"), "Text(\"wal\")");
            assert_eq!(pragma(&connection, "foreign_keys"), "Integer(1)");
            assert_eq!(pragma(&connection, "synchronous"), "Integer(2)");
            assert_eq!(pragma(&connection, "busy_timeout"), "Integer(5000)");
            assert_eq!(
                pragma(&connection, "user_version"),
                format!("Integer({VERSION})")
            );
        }
    }

    #[test]
    fn a_newer_schema_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        open(&path)
            .unwrap()
            .connection
            .pragma_update(None, "user_version", 99)
            .unwrap();
        let error = open(&path).unwrap_err();
        assert!(
            matches!(error, StoreError::Newer { found: 99, .. }),
            "{error}"
        );
        assert!(error.hint().is_some());
        assert_eq!(version(&connect(&path).unwrap(), &path).unwrap(), 99);
    }

    /// A database as schema 1 wrote it, with one VM that runs.
    const OF_SCHEMA_1: &str = "
        INSERT INTO vm VALUES (
            '0123456789abcdef0123456789abcdef', 'calm-otter', 7, 'running', NULL,
            'debian-bookworm', NULL, NULL, 2, 536870912, 8589934592, 8589934592, 'qemu',
            'KVM is usable', 1, '{\"k\":\"v\"}', NULL, '2026-01-01T00:00:00Z',
            '2026-01-01T00:00:10Z', '[]');
        PRAGMA user_version = 1;
    ";

    fn schema_1(path: &Path) -> Connection {
        let connection = connect(path).unwrap();
        connection.execute_batch(MIGRATIONS[0]).unwrap();
        connection.execute_batch(OF_SCHEMA_1).unwrap();
        connection
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_database_of_schema_1_keeps_its_rows_and_is_copied_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        drop(schema_1(&path));
        let opened = open(&path).unwrap();
        assert_eq!(opened.damaged, None);
        let rows = vms::read_all(&opened.connection).unwrap();
        assert_eq!(rows.malformed, []);
        let [vm] = &rows.vms[..] else {
            panic!("{rows:?}");
        };
        assert_eq!((vm.name.as_str(), vm.slot), ("calm-otter", 7));
        assert_eq!(vm.labels["k"], "v");
        assert_eq!(vm.expires_at, None);
        assert_eq!(version(&opened.connection, &path).unwrap(), VERSION);
        drop(opened);
        assert_eq!(names(dir.path()), ["banger.db", "banger.db.v1.bak"]);

        let copy = connect(&dir.path().join("banger.db.v1.bak")).unwrap();
        assert_eq!(version(&copy, &path).unwrap(), 1);
        let name: String = copy
            .query_row("SELECT name FROM vm", [], |row| row.get(0))
            .unwrap();
        assert_eq!(name, "calm-otter");
    }

    #[test]
    fn a_migration_that_fails_leaves_the_database_and_its_copy_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        // The second migration adds this column itself.
        let old = schema_1(&path);
        old.execute_batch("ALTER TABLE vm ADD COLUMN expires_at TEXT")
            .unwrap();
        drop(old);
        let before = fs::read(&path).unwrap();
        for _ in 0..2 {
            let error = open(&path).unwrap_err();
            assert!(
                matches!(error, StoreError::Migrate { to: 2, .. }),
                "{error}"
            );
            assert_eq!(fs::read(&path).unwrap(), before);
            assert_eq!(names(dir.path()), ["banger.db", "banger.db.v1.bak"]);
            let copy = connect(&dir.path().join("banger.db.v1.bak")).unwrap();
            assert_eq!(version(&copy, &path).unwrap(), 1);
            assert!(verify(&copy, &path).is_ok());
        }
    }

    #[test]
    fn the_log_of_changes_of_a_damaged_database_is_kept_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let crashed = dir.path().join("crashed.db");
        // While it is open its changes are in the log.
        let running = open(&crashed).unwrap().connection;
        let whole = fs::read(beside(&crashed, "-wal")).unwrap();
        drop(running);
        let rubbish = b"rubbish ".repeat(1000);
        for (database, log) in [(&rubbish, &rubbish), (&Vec::new(), &whole)] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("banger.db");
            fs::write(&path, database).unwrap();
            fs::write(beside(&path, "-wal"), log).unwrap();
            let kept = open(&path).unwrap().damaged.unwrap();
            assert!(fs::read(beside(&kept, "-wal")).unwrap() == *log);
        }
    }

    #[test]
    fn a_damaged_database_is_kept_and_a_new_one_made() {
        let rubbish = |path: &Path| {
            fs::write(
                path,
                "this is no database, whatever it is called. ".repeat(100),
            )
            .unwrap();
        };
        let torn = |path: &Path| {
            drop(schema_1(path));
            let mut bytes = fs::read(path).unwrap();
            let page = bytes.len() / 2;
            bytes[page..].fill(0x5a);
            fs::write(path, bytes).unwrap();
        };
        let without_table = |path: &Path| {
            let connection = open(path).unwrap().connection;
            connection.execute_batch("DROP TABLE vm").unwrap();
        };
        let damages: [&dyn Fn(&Path); 3] = [&rubbish, &torn, &without_table];
        for damage in damages {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("banger.db");
            damage(&path);
            let before = fs::read(&path).unwrap();
            fs::write(beside(&path, "-shm"), "").unwrap();
            let opened = open(&path).unwrap();
            let kept = opened.damaged.unwrap();
            assert_eq!(damaged_ones(&path), std::slice::from_ref(&kept));
            assert_eq!(fs::read(&kept).unwrap(), before);
            assert_eq!(vms::read_all(&opened.connection).unwrap().vms, []);
            drop(opened.connection);
            // It is made once.
            assert_eq!(open(&path).unwrap().damaged, None);
        }
    }

    #[test]
    fn a_look_makes_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        assert!(open_to_read(&path).unwrap().is_none());
        assert_eq!(names(dir.path()), [""; 0]);
        drop(schema_1(&path));
        let error = open_to_read(&path).unwrap_err();
        assert!(matches!(error, StoreError::Older { .. }), "{error}");
        drop(open(&path).unwrap());
        let looked = open_to_read(&path).unwrap().unwrap();
        assert_eq!(vms::read_all(&looked).unwrap().vms.len(), 1);
        looked.execute("DELETE FROM vm", []).unwrap_err();
    }

    #[test]
    fn a_failed_migration_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        let mut connection = connect(&path).unwrap();
        connection
            .execute_batch("CREATE TABLE vm (x TEXT) STRICT")
            .unwrap();
        let error = migrate(&mut connection, 0).unwrap_err();
        assert!(
            matches!(error, StoreError::Migrate { to: 1, .. }),
            "{error}"
        );
        assert_eq!(version(&connection, &path).unwrap(), 0);
    }
}

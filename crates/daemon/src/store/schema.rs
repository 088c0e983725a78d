//! How the database is opened, and how an older one becomes the present one.
//!
//! The schema's number is SQLite's `user_version`. Migrations go forward only, all of them in
//! one transaction, after the file was copied to `<name>.v<old number>.bak`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, MAIN_DB};

use super::StoreError;

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
];

/// The number of the schema that this build writes.
pub const VERSION: u32 = MIGRATIONS.len() as u32;

/// Opens the database at `path`, making or migrating it as needed.
///
/// # Errors
/// As [`super::Database::open`].
pub fn open(path: &Path) -> Result<Connection, StoreError> {
    let mut connection = connect(path)?;
    let found = version(&connection, path)?;
    if found > VERSION {
        return Err(StoreError::Newer {
            path: path.to_owned(),
            found,
            known: VERSION,
        });
    }
    if found < VERSION {
        if found > 0 {
            back_up(&connection, path, found)?;
        }
        migrate(&mut connection, found)?;
    }
    Ok(connection)
}

/// Every connection gets these settings, because SQLite keeps most of them per connection.
/// `synchronous` is full: a row must be on the disk before the VM's first file is.
fn connect(path: &Path) -> Result<Connection, StoreError> {
    let settle = |connection: &Connection| -> rusqlite::Result<()> {
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "full")?;
        connection.pragma_update(None, "foreign_keys", true)
    };
    let connection = Connection::open(path).map_err(|source| classify(path, source))?;
    settle(&connection).map_err(|source| classify(path, source))?;
    Ok(connection)
}

fn version(connection: &Connection, path: &Path) -> Result<u32, StoreError> {
    connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(|source| classify(path, source))
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

fn back_up(connection: &Connection, path: &Path, found: u32) -> Result<(), StoreError> {
    let mut to = path.as_os_str().to_owned();
    to.push(format!(".v{found}.bak"));
    let to = PathBuf::from(to);
    connection
        .backup(MAIN_DB, &to, None::<fn(rusqlite::backup::Progress)>)
        .map_err(|source| StoreError::BackUp {
            to,
            source: source.into(),
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
            let connection = open(&path).unwrap();
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

    #[test]
    fn rubbish_is_called_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        std::fs::write(
            &path,
            "this is no database, whatever its name says. ".repeat(100),
        )
        .unwrap();
        let error = open(&path).unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    }

    #[test]
    fn a_database_is_copied_before_it_is_migrated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        let old = connect(&path).unwrap();
        old.execute_batch("CREATE TABLE old (x) STRICT")
            .unwrap_err();
        old.execute_batch("CREATE TABLE old (x TEXT) STRICT; INSERT INTO old VALUES ('kept')")
            .unwrap();
        back_up(&old, &path, 7).unwrap();
        let copy = Connection::open(dir.path().join("banger.db.v7.bak")).unwrap();
        let kept: String = copy
            .query_row("SELECT x FROM old", [], |row| row.get(0))
            .unwrap();
        assert_eq!(kept, "kept");
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

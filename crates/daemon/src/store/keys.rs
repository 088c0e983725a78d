//! Keys of creates, kept for a day: a create that is repeated after the daemon has died finds
//! the VM of the first one. A key goes with its VM.

use banger_proto::id::VmId;
use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, OptionalExtension as _};

use super::{Database, StoreError};

/// How long a key is kept.
const KEPT: SignedDuration = SignedDuration::from_hours(24);

/// A key under which a repeated create finds what the first one has begun.
#[derive(Clone, Debug)]
pub struct IdempotencyKey {
    /// What the client chose.
    pub key: String,
    /// What the request said: the same key must not come with another request.
    pub fingerprint: String,
}

/// What a key was used for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Used {
    /// What the request said.
    pub fingerprint: String,
    /// The VM that came of it.
    pub vm: VmId,
}

impl Database {
    /// What `key` was used for within the last day, by a create whose VM is still there.
    ///
    /// # Errors
    /// The database fails.
    pub async fn used(&self, key: String) -> Result<Option<Used>, StoreError> {
        self.call(move |connection| look_up(connection, &key, Timestamp::now()))
            .await
    }
}

/// Writes down that `vm` came of a create under `key`, and forgets old keys.
pub(super) fn keep(
    connection: &Connection,
    key: &IdempotencyKey,
    vm: &VmId,
) -> Result<(), StoreError> {
    keep_at(connection, key, vm, Timestamp::now())
}

fn keep_at(
    connection: &Connection,
    key: &IdempotencyKey,
    vm: &VmId,
    now: Timestamp,
) -> Result<(), StoreError> {
    let query = StoreError::query("keep the key of a create");
    connection
        .execute("DELETE FROM create_key WHERE used_at <= ?", [oldest(now)])
        .map_err(query)?;
    connection
        .execute(
            "INSERT OR REPLACE INTO create_key (key, fingerprint, vm, used_at) VALUES (?, ?, ?, ?)",
            (&key.key, &key.fingerprint, vm.as_str(), now.as_second()),
        )
        .map(|_| ())
        .map_err(query)
}

fn look_up(connection: &Connection, key: &str, now: Timestamp) -> Result<Option<Used>, StoreError> {
    let query = StoreError::query("look for the key of a create");
    let found: Option<(String, String)> = connection
        .query_row(
            "SELECT fingerprint, vm FROM create_key WHERE key = ? AND used_at > ?",
            (key, oldest(now)),
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()
        .map_err(query)?;
    // An id that no banger writes is no VM's.
    Ok(found.and_then(|(fingerprint, vm)| {
        Some(Used {
            fingerprint,
            vm: vm.parse().ok()?,
        })
    }))
}

fn oldest(now: Timestamp) -> i64 {
    (now - KEPT).as_second()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::vms::tests::row;
    use crate::store::vms::{HeldSlots, NewVm};

    fn key(key: &str) -> IdempotencyKey {
        IdempotencyKey {
            key: key.to_owned(),
            fingerprint: "{}".to_owned(),
        }
    }

    #[tokio::test]
    async fn a_key_finds_its_vm_until_that_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        let (database, _) = Database::open(&path).unwrap();
        let new = NewVm {
            name: None,
            key: Some(key("k")),
            row: row("x"),
        };
        let vm = database.insert_vm(new, 9, HeldSlots::default()).await;
        let vm = vm.unwrap().id;
        drop(database);
        let (database, _) = Database::open(&path).unwrap();
        let used = database.used("k".to_owned()).await.unwrap();
        let expected = Used {
            fingerprint: "{}".to_owned(),
            vm: vm.clone(),
        };
        assert_eq!(used, Some(expected));
        assert_eq!(database.used("other".to_owned()).await.unwrap(), None);
        database.remove_vm(vm).await.unwrap();
        assert_eq!(database.used("k".to_owned()).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_key_is_forgotten_after_a_day() {
        let dir = tempfile::tempdir().unwrap();
        let (database, _) = Database::open(&dir.path().join("banger.db")).unwrap();
        let held = HeldSlots::default();
        let new = NewVm {
            name: None,
            key: None,
            row: row("x"),
        };
        let vm = database.insert_vm(new, 9, held).await.unwrap().id;
        let looked = database.call(move |connection| {
            let now = Timestamp::now();
            keep_at(connection, &key("old"), &vm, now)?;
            let day = now + KEPT;
            let before = look_up(connection, "old", day - SignedDuration::from_secs(1))?;
            let after = look_up(connection, "old", day)?;
            keep_at(connection, &key("new"), &vm, day)?;
            let left: i64 = connection
                .query_row("SELECT count(*) FROM create_key", [], |row| row.get(0))
                .map_err(StoreError::query("count keys"))?;
            Ok::<_, StoreError>((before.is_some(), after.is_some(), left))
        });
        assert_eq!(looked.await.unwrap(), (true, false, 1));
    }
}

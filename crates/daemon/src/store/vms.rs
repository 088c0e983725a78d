//! The rows of VMs, and the transaction that gives a new one its name and slot.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use banger_proto::api::{EngineKind, StageTime};
use banger_proto::error::ApiError;
use banger_proto::id::{ImageId, LeaseId, VmId};
use banger_proto::name::{ArtifactName, VmName};
use banger_proto::size::ByteSize;
use rusqlite::{Connection, Row, named_params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::keys::{self, IdempotencyKey};
use super::{Database, Phase, StoreError};

/// How often a made-up name is tried before it gets a number.
const NAME_TRIES: u32 = 32;

/// What the database knows of a VM.
#[derive(Clone, Debug, PartialEq)]
pub struct VmRow {
    /// Its id.
    pub id: VmId,
    /// Its name.
    pub name: VmName,
    /// Its slot: what all of its names on the host derive from.
    pub slot: u16,
    /// What it is up to.
    pub phase: Phase,
    /// Why it failed, if it did.
    pub failure: Option<ApiError>,
    /// Why it stops, has stopped or is being deleted, where nobody asked for that.
    pub reason: Option<String>,
    /// The image's name.
    pub image: ArtifactName,
    /// The image's id, known from the first start on.
    pub image_id: Option<ImageId>,
    /// The kernel's name, known from the first start on.
    pub kernel: Option<ArtifactName>,
    /// Number of virtual CPUs.
    pub vcpu: u32,
    /// Memory.
    pub memory: ByteSize,
    /// Size of the work disk.
    pub disk_size: ByteSize,
    /// Size of the system disk.
    pub system_size: ByteSize,
    /// The engine.
    pub engine: EngineKind,
    /// Why this engine.
    pub engine_reason: String,
    /// Whether it may reach the outside.
    pub nat: bool,
    /// Free marks of the user's.
    pub labels: BTreeMap<String, String>,
    /// The lease it hangs on; `Some` for good if it is to go with its client.
    pub lease: Option<LeaseId>,
    /// When it was created, RFC 3339.
    pub created_at: String,
    /// When it last became running, RFC 3339.
    pub started_at: Option<String>,
    /// When it is deleted, whatever it does, RFC 3339.
    pub expires_at: Option<String>,
    /// Stages of the last start.
    pub stages: Vec<StageTime>,
}

/// A VM to be: a row without name and slot where those are still to be found.
#[derive(Clone, Debug)]
pub struct NewVm {
    /// The name that is asked for; made up if `None`.
    pub name: Option<VmName>,
    /// Under which the same create is known when it is asked for again.
    pub key: Option<IdempotencyKey>,
    /// Everything else. Its name and slot are replaced.
    pub row: VmRow,
}

/// Why a VM got no row.
#[derive(Debug, thiserror::Error)]
pub enum InsertError {
    /// Another VM has the name.
    #[error("there is already a VM of this name")]
    NameTaken(VmName),
    /// Every slot is taken.
    #[error("there are already {0} VMs, as many as the network has addresses for")]
    NoFreeSlot(u16),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a row was not replaced.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceError {
    /// Another VM has the name.
    #[error("there is already a VM of this name")]
    NameTaken(VmName),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What the database holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    /// The VMs, the oldest first.
    pub vms: Vec<VmRow>,
    /// Rows that hold what no banger writes. They stay as they are, and so does all that may
    /// be theirs on the host.
    pub malformed: Vec<MalformedRow>,
}

/// A row that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MalformedRow {
    /// The VM's id, as far as the row has one.
    pub id: String,
    /// Its slot, as far as the row has one.
    pub slot: Option<u16>,
    /// The first column that is malformed.
    pub column: &'static str,
}

/// A VM that has lost its row.
#[derive(Clone, Debug)]
pub struct Lost {
    /// The row that it gets.
    pub row: VmRow,
    /// Whether it may get another slot: nothing on the host has the name of the old one.
    pub may_move: bool,
}

/// Slots that are being swept of strays: no new VM gets one of them meanwhile.
#[derive(Clone, Debug, Default)]
pub struct HeldSlots(Arc<Mutex<BTreeSet<u16>>>);

impl HeldSlots {
    fn with<T>(&self, f: impl FnOnce(&mut BTreeSet<u16>) -> T) -> T {
        f(&mut self.0.lock().expect("no holder of this lock panics"))
    }
}

/// Keeps a free slot from being given to a new VM until it is dropped.
#[derive(Debug)]
pub struct SlotHold {
    slot: u16,
    held: HeldSlots,
}

impl Drop for SlotHold {
    fn drop(&mut self) {
        self.held.with(|held| held.remove(&self.slot));
    }
}

impl Database {
    /// All rows, the oldest first.
    ///
    /// # Errors
    /// The query fails.
    pub async fn vms(&self) -> Result<Rows, StoreError> {
        self.call(|connection| read_all(connection)).await
    }

    /// Adds rows that were lost, each with its own name and slot where they are free. Another
    /// VM's name gets a number behind it; a slot is changed only if [`Lost::may_move`].
    /// Returns those that have a row now.
    ///
    /// # Errors
    /// The database fails: then none has.
    pub async fn bring_back(&self, lost: Vec<Lost>, slots: u16) -> Result<Vec<VmRow>, StoreError> {
        self.change(move |connection| {
            let query = StoreError::query("bring VMs back");
            let transaction = connection.transaction().map_err(query)?;
            let mut back = Vec::new();
            for Lost { mut row, may_move } in lost {
                // Its own malformed row, if that is what was lost of it.
                transaction
                    .execute("DELETE FROM vm WHERE id = ?", [row.id.as_str()])
                    .map_err(query)?;
                row.name = free_name_like(&transaction, row.name)?;
                let taken = taken_slots(&transaction)?;
                if taken.contains(&row.slot) {
                    let other = (1..=slots).find(|slot| !taken.contains(slot));
                    match other.filter(|_| may_move) {
                        Some(other) => row.slot = other,
                        None => continue,
                    }
                }
                write(&transaction, INSERT, &row, "bring a VM back")?;
                back.push(row);
            }
            transaction.commit().map_err(query)?;
            Ok(back)
        })
        .await
    }

    /// Replaces and removes rows, all or none of them, with one wait for the disk.
    ///
    /// # Errors
    /// The database fails: then no row has changed.
    pub async fn settle(&self, changed: Vec<VmRow>, gone: Vec<VmId>) -> Result<(), StoreError> {
        if changed.is_empty() && gone.is_empty() {
            return Ok(());
        }
        self.change(move |connection| {
            let query = StoreError::query("update VMs");
            let transaction = connection.transaction().map_err(query)?;
            for row in &changed {
                write(&transaction, UPDATE, row, "update a VM")?;
            }
            for id in &gone {
                remove(&transaction, id)?;
            }
            transaction.commit().map_err(query)
        })
        .await
    }

    /// Adds a row, giving it its name and the lowest free slot of 1 to `slots`, except those
    /// `held`.
    ///
    /// # Errors
    /// The name is taken, there is no free slot, or the database fails.
    pub async fn insert_vm(
        &self,
        new: NewVm,
        slots: u16,
        held: HeldSlots,
    ) -> Result<VmRow, InsertError> {
        self.change(move |connection| {
            let query = StoreError::query("add a VM");
            let transaction = connection.transaction().map_err(query)?;
            let name = match new.name {
                Some(name) if name_is_taken(&transaction, &name)? => {
                    return Err(InsertError::NameTaken(name));
                }
                Some(name) => name,
                None => free_name(&transaction)?,
            };
            let slot = free_slot(&transaction, slots, &held)?;
            let row = VmRow {
                name,
                slot,
                ..new.row
            };
            write(&transaction, INSERT, &row, "add a VM")?;
            if let Some(key) = &new.key {
                keys::keep(&transaction, key, &row.id)?;
            }
            transaction.commit().map_err(query)?;
            Ok(row)
        })
        .await
    }

    /// Replaces a row. A row that is not there stays away.
    ///
    /// # Errors
    /// The database fails.
    pub async fn update_vm(&self, row: VmRow) -> Result<(), StoreError> {
        self.change(move |connection| write(connection, UPDATE, &row, "update a VM"))
            .await
    }

    /// Replaces a row that may have another name now.
    ///
    /// # Errors
    /// Another VM has the name, or the database fails; the row is as it was.
    pub async fn replace_vm(&self, row: VmRow) -> Result<(), ReplaceError> {
        self.change(move |connection| {
            let query = StoreError::query("change a VM");
            let transaction = connection.transaction().map_err(query)?;
            let taken: bool = transaction
                .query_row(
                    "SELECT EXISTS (SELECT 1 FROM vm WHERE name = ? AND id != ?)",
                    [row.name.as_str(), row.id.as_str()],
                    |row| row.get(0),
                )
                .map_err(query)?;
            if taken {
                return Err(ReplaceError::NameTaken(row.name));
            }
            write(&transaction, UPDATE, &row, "change a VM")?;
            transaction.commit().map_err(query)?;
            Ok(())
        })
        .await
    }

    /// Removes a row and with it frees its slot; also if it is not there.
    ///
    /// # Errors
    /// The database fails.
    pub async fn remove_vm(&self, id: VmId) -> Result<(), StoreError> {
        self.change(move |connection| remove(connection, &id)).await
    }

    /// Holds `slot` if no VM has it; `None` if one does.
    ///
    /// # Errors
    /// The database fails.
    pub async fn hold_slot(
        &self,
        slot: u16,
        held: HeldSlots,
    ) -> Result<Option<SlotHold>, StoreError> {
        self.call(move |connection| {
            let taken: bool = connection
                .query_row(
                    "SELECT EXISTS (SELECT 1 FROM vm WHERE slot = ?)",
                    [slot],
                    |row| row.get(0),
                )
                .map_err(StoreError::query("look for a slot"))?;
            let free = !taken && held.with(|held| held.insert(slot));
            Ok(free.then_some(SlotHold { slot, held }))
        })
        .await
    }
}

/// Every column that a row is read of.
const COLUMNS: &str = "id, name, slot, phase, failure, image, image_id, kernel, vcpu, memory, \
    disk_size, system_size, engine, engine_reason, nat, labels, lease, created_at, started_at, \
    stages, expires_at, reason";

const INSERT: &str = "
    INSERT INTO vm VALUES (
        :id, :name, :slot, :phase, :failure, :image, :image_id, :kernel, :vcpu, :memory,
        :disk_size, :system_size, :engine, :engine_reason, :nat, :labels, :lease,
        :created_at, :started_at, :stages, :expires_at, :reason)";

const UPDATE: &str = "
    UPDATE vm SET
        name = :name, slot = :slot, phase = :phase, failure = :failure, image = :image,
        image_id = :image_id, kernel = :kernel, vcpu = :vcpu, memory = :memory,
        disk_size = :disk_size, system_size = :system_size, engine = :engine,
        engine_reason = :engine_reason, nat = :nat, labels = :labels, lease = :lease,
        created_at = :created_at, started_at = :started_at, stages = :stages,
        expires_at = :expires_at, reason = :reason
    WHERE id = :id";

fn write(
    connection: &Connection,
    sql: &str,
    row: &VmRow,
    what: &'static str,
) -> Result<(), StoreError> {
    let query = StoreError::query(what);
    connection
        .prepare_cached(sql)
        .map_err(query)?
        .execute(named_params! {
            ":id": row.id.as_str(),
            ":name": row.name.as_str(),
            ":slot": row.slot,
            ":phase": row.phase.as_str(),
            ":failure": row.failure.as_ref().map(to_json),
            ":image": row.image.as_str(),
            ":image_id": row.image_id.as_ref().map(ImageId::as_str),
            ":kernel": row.kernel.as_ref().map(ArtifactName::as_str),
            ":vcpu": row.vcpu,
            ":memory": size_to_sql(row.memory),
            ":disk_size": size_to_sql(row.disk_size),
            ":system_size": size_to_sql(row.system_size),
            ":engine": row.engine.as_str(),
            ":engine_reason": row.engine_reason,
            ":nat": row.nat,
            ":labels": to_json(&row.labels),
            ":lease": row.lease.as_ref().map(LeaseId::as_str),
            ":created_at": row.created_at,
            ":started_at": row.started_at,
            ":stages": to_json(&row.stages),
            ":expires_at": row.expires_at,
            ":reason": row.reason,
        })
        .map(|_| ())
        .map_err(query)
}

/// Fails if the table is not what this build reads.
pub(super) fn probe(connection: &Connection) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(&format!("SELECT {COLUMNS} FROM vm"))?;
    let mut rows = statement.query([])?;
    while rows.next()?.is_some() {}
    Ok(())
}

/// All rows, the oldest first.
pub(crate) fn read_all(connection: &Connection) -> Result<Rows, StoreError> {
    let query = StoreError::query("list VMs");
    let mut statement = connection
        .prepare_cached("SELECT * FROM vm ORDER BY created_at, id")
        .map_err(query)?;
    let mut rows = statement.query([]).map_err(query)?;
    let mut found = Rows::default();
    while let Some(row) = rows.next().map_err(query)? {
        match read(row) {
            Ok(vm) => found.vms.push(vm),
            Err(malformed) => found.malformed.push(malformed),
        }
    }
    Ok(found)
}

fn remove(connection: &Connection, id: &VmId) -> Result<(), StoreError> {
    connection
        .execute("DELETE FROM vm WHERE id = ?", [id.as_str()])
        .map(|_| ())
        .map_err(StoreError::query("remove a VM"))
}

fn read(row: &Row<'_>) -> Result<VmRow, MalformedRow> {
    let columns = Columns { row };
    Ok(VmRow {
        id: columns.parsed("id")?,
        name: columns.parsed("name")?,
        slot: columns.plain("slot")?,
        phase: columns
            .optional::<String>("phase")?
            .and_then(|word| Phase::from_word(&word))
            .ok_or_else(|| columns.malformed("phase"))?,
        failure: columns.optional_json("failure")?,
        reason: columns.optional("reason")?,
        image: columns.parsed("image")?,
        image_id: columns.optional_parsed("image_id")?,
        kernel: columns.optional_parsed("kernel")?,
        vcpu: columns.plain("vcpu")?,
        memory: columns.size("memory")?,
        disk_size: columns.size("disk_size")?,
        system_size: columns.size("system_size")?,
        engine: [EngineKind::Qemu, EngineKind::Firecracker, EngineKind::Fake]
            .into_iter()
            .find(|kind| {
                columns
                    .plain::<String>("engine")
                    .is_ok_and(|word| word == kind.as_str())
            })
            .ok_or_else(|| columns.malformed("engine"))?,
        engine_reason: columns.plain("engine_reason")?,
        nat: columns.plain("nat")?,
        labels: columns.json("labels")?,
        lease: columns.optional_parsed("lease")?,
        created_at: columns.plain("created_at")?,
        started_at: columns.optional("started_at")?,
        expires_at: columns.optional("expires_at")?,
        stages: columns.json("stages")?,
    })
}

/// Reads columns of one row, naming the one that is malformed.
struct Columns<'r> {
    row: &'r Row<'r>,
}

impl Columns<'_> {
    fn malformed(&self, column: &'static str) -> MalformedRow {
        MalformedRow {
            id: self.row.get("id").unwrap_or_default(),
            slot: self.row.get("slot").ok(),
            column,
        }
    }

    fn plain<T: rusqlite::types::FromSql>(&self, column: &'static str) -> Result<T, MalformedRow> {
        self.row.get(column).map_err(|_| self.malformed(column))
    }

    fn optional<T: rusqlite::types::FromSql>(
        &self,
        column: &'static str,
    ) -> Result<Option<T>, MalformedRow> {
        self.plain(column)
    }

    fn parsed<T: std::str::FromStr>(&self, column: &'static str) -> Result<T, MalformedRow> {
        self.plain::<String>(column)?
            .parse()
            .map_err(|_| self.malformed(column))
    }

    fn optional_parsed<T: std::str::FromStr>(
        &self,
        column: &'static str,
    ) -> Result<Option<T>, MalformedRow> {
        let text = self.optional::<String>(column)?;
        text.map(|text| text.parse().map_err(|_| self.malformed(column)))
            .transpose()
    }

    fn json<T: DeserializeOwned>(&self, column: &'static str) -> Result<T, MalformedRow> {
        serde_json::from_str(&self.plain::<String>(column)?).map_err(|_| self.malformed(column))
    }

    fn optional_json<T: DeserializeOwned>(
        &self,
        column: &'static str,
    ) -> Result<Option<T>, MalformedRow> {
        let text = self.optional::<String>(column)?;
        text.map(|text| serde_json::from_str(&text).map_err(|_| self.malformed(column)))
            .transpose()
    }

    fn size(&self, column: &'static str) -> Result<ByteSize, MalformedRow> {
        u64::try_from(self.plain::<i64>(column)?)
            .map(ByteSize::from_bytes)
            .map_err(|_| self.malformed(column))
    }
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("these types have only string keys")
}

fn size_to_sql(size: ByteSize) -> i64 {
    i64::try_from(size.bytes()).expect("a size has at most 53 bits")
}

fn name_is_taken(connection: &Connection, name: &VmName) -> Result<bool, StoreError> {
    connection
        .query_row(
            "SELECT EXISTS (SELECT 1 FROM vm WHERE name = ?)",
            [name.as_str()],
            |row| row.get(0),
        )
        .map_err(StoreError::query("look for a name"))
}

fn free_name(connection: &Connection) -> Result<VmName, StoreError> {
    for _ in 0..NAME_TRIES {
        let name = VmName::generate();
        if !name_is_taken(connection, &name)? {
            return Ok(name);
        }
    }
    let stem = VmName::generate();
    for number in 2_u32.. {
        let name = format!("{stem}-{number}")
            .parse()
            .expect("two words and a number are a label");
        if !name_is_taken(connection, &name)? {
            return Ok(name);
        }
    }
    unreachable!("there are fewer rows than numbers")
}

/// `name` if no VM has it, else the first free one of `name-2`, `name-3`.
fn free_name_like(connection: &Connection, name: VmName) -> Result<VmName, StoreError> {
    if !name_is_taken(connection, &name)? {
        return Ok(name);
    }
    for number in 2_u32.. {
        // A name may be as long as a label is allowed to be.
        let Ok(numbered) = format!("{name}-{number}").parse() else {
            break;
        };
        if !name_is_taken(connection, &numbered)? {
            return Ok(numbered);
        }
    }
    free_name(connection)
}

fn taken_slots(connection: &Connection) -> Result<BTreeSet<u16>, StoreError> {
    let query = StoreError::query("look for a slot");
    let mut statement = connection
        .prepare_cached("SELECT slot FROM vm")
        .map_err(query)?;
    let slots = statement.query_map([], |row| row.get(0)).map_err(query)?;
    slots.collect::<rusqlite::Result<_>>().map_err(query)
}

fn free_slot(connection: &Connection, slots: u16, held: &HeldSlots) -> Result<u16, InsertError> {
    let taken = taken_slots(connection)?;
    held.with(|held| (1..=slots).find(|slot| !taken.contains(slot) && !held.contains(slot)))
        .ok_or(InsertError::NoFreeSlot(slots))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use banger_proto::error::ErrorKind;

    pub(crate) fn row(name: &str) -> VmRow {
        VmRow {
            id: VmId::new(),
            name: name.parse().unwrap(),
            slot: 1,
            phase: Phase::Creating,
            failure: None,
            reason: None,
            image: "debian-bookworm".parse().unwrap(),
            image_id: None,
            kernel: None,
            vcpu: 1,
            memory: ByteSize::from_mib(512),
            disk_size: ByteSize::from_gib(8),
            system_size: ByteSize::from_gib(8),
            engine: EngineKind::Fake,
            engine_reason: "asked for".to_owned(),
            nat: true,
            labels: BTreeMap::new(),
            lease: None,
            created_at: "2026-01-01T00:00:00Z".to_owned(),
            started_at: None,
            expires_at: None,
            stages: Vec::new(),
        }
    }

    fn new(name: Option<&str>) -> NewVm {
        NewVm {
            name: name.map(|name| name.parse().unwrap()),
            key: None,
            row: row("x"),
        }
    }

    fn database() -> (tempfile::TempDir, Database) {
        let dir = tempfile::tempdir().unwrap();
        let (database, _) = Database::open(&dir.path().join("banger.db")).unwrap();
        (dir, database)
    }

    #[tokio::test]
    async fn a_row_reads_back_as_it_was_written() {
        let (_dir, database) = database();
        let mut row = database
            .insert_vm(new(Some("a")), 9, HeldSlots::default())
            .await
            .unwrap();
        assert_eq!(database.vms().await.unwrap().vms, [row.clone()]);
        row.phase = Phase::Failed;
        row.failure = Some(ApiError::new(ErrorKind::Failed, "no").with_hint("try"));
        row.image_id = Some(ImageId::new());
        row.kernel = Some("generic-6.12".parse().unwrap());
        row.labels.insert("k".into(), "v".into());
        row.lease = Some(LeaseId::new());
        row.started_at = Some("2026-01-02T00:00:00Z".to_owned());
        row.stages = vec![StageTime {
            stage: "disks".into(),
            begin_ms: 0.5,
            took_ms: 1.25,
            failed: false,
        }];
        database.update_vm(row.clone()).await.unwrap();
        assert_eq!(database.vms().await.unwrap().vms, [row.clone()]);
        database.remove_vm(row.id).await.unwrap();
        assert_eq!(database.vms().await.unwrap().vms, []);
    }

    #[tokio::test]
    async fn the_lowest_free_slot_is_given_and_a_held_one_is_not() {
        let (_dir, database) = database();
        let held = HeldSlots::default();
        let first = database
            .insert_vm(new(None), 4, held.clone())
            .await
            .unwrap();
        let second = database
            .insert_vm(new(None), 4, held.clone())
            .await
            .unwrap();
        assert_eq!((first.slot, second.slot), (1, 2));
        assert_ne!(first.name, second.name);
        database.remove_vm(first.id).await.unwrap();
        let hold = database.hold_slot(1, held.clone()).await.unwrap().unwrap();
        assert!(database.hold_slot(2, held.clone()).await.unwrap().is_none());
        assert_eq!(
            database
                .insert_vm(new(None), 4, held.clone())
                .await
                .unwrap()
                .slot,
            3
        );
        drop(hold);
        assert_eq!(
            database
                .insert_vm(new(None), 4, held.clone())
                .await
                .unwrap()
                .slot,
            1
        );
        assert_eq!(
            database
                .insert_vm(new(None), 4, held.clone())
                .await
                .unwrap()
                .slot,
            4
        );
        let full = database.insert_vm(new(None), 4, held).await.unwrap_err();
        assert!(matches!(full, InsertError::NoFreeSlot(4)));
    }

    #[tokio::test]
    async fn a_name_is_given_once() {
        let (_dir, database) = database();
        let held = HeldSlots::default();
        database
            .insert_vm(new(Some("a")), 4, held.clone())
            .await
            .unwrap();
        let taken = database
            .insert_vm(new(Some("a")), 4, held)
            .await
            .unwrap_err();
        assert!(matches!(taken, InsertError::NameTaken(name) if name.as_str() == "a"));
    }

    #[tokio::test]
    async fn a_new_name_must_be_free() {
        let (_dir, database) = database();
        for name in ["a", "b"] {
            let inserted = database.insert_vm(new(Some(name)), 4, HeldSlots::default());
            inserted.await.unwrap();
        }
        let mut row = database.vms().await.unwrap().vms.remove(0);
        let other = match row.name.as_str() {
            "a" => "b",
            _ => "a",
        };
        row.name = other.parse().unwrap();
        let taken = database.replace_vm(row.clone()).await.unwrap_err();
        assert!(matches!(taken, ReplaceError::NameTaken(name) if name.as_str() == other));
        for name in ["c", "d"] {
            row.name = name.parse().unwrap();
            database.replace_vm(row.clone()).await.unwrap();
        }
        assert!(database.vms().await.unwrap().vms.contains(&row));
    }

    #[tokio::test]
    async fn a_malformed_row_is_told_of_and_keeps_its_slot() {
        let (_dir, database) = database();
        let held = HeldSlots::default();
        let odd = database
            .insert_vm(new(None), 4, held.clone())
            .await
            .unwrap();
        let good = database
            .insert_vm(new(None), 4, held.clone())
            .await
            .unwrap();
        let id = odd.id.clone();
        database
            .call(move |connection| {
                connection
                    .execute("UPDATE vm SET phase = 'flying' WHERE id = ?", [id.as_str()])
                    .unwrap();
                Ok::<_, StoreError>(())
            })
            .await
            .unwrap();
        let rows = database.vms().await.unwrap();
        assert_eq!(rows.vms, [good]);
        let malformed = MalformedRow {
            id: odd.id.to_string(),
            slot: Some(odd.slot),
            column: "phase",
        };
        assert_eq!(rows.malformed, [malformed]);
        let next = database.insert_vm(new(None), 4, held).await.unwrap();
        assert_eq!(next.slot, 3);

        let lost = Lost {
            row: odd.clone(),
            may_move: false,
        };
        assert_eq!(database.bring_back(vec![lost], 4).await.unwrap(), [odd]);
        assert_eq!(database.vms().await.unwrap().malformed, []);
    }

    #[tokio::test]
    async fn what_was_lost_comes_back_beside_what_took_its_place() {
        let (_dir, database) = database();
        let other = database
            .insert_vm(new(Some("a")), 3, HeldSlots::default())
            .await
            .unwrap();
        let lost = |may_move| Lost {
            row: VmRow {
                slot: other.slot,
                ..row("a")
            },
            may_move,
        };
        let back = database
            .bring_back(vec![lost(true), lost(false), lost(true)], 3)
            .await
            .unwrap();
        let names: Vec<(&str, u16)> = back
            .iter()
            .map(|row| (row.name.as_str(), row.slot))
            .collect();
        // What runs under a slot that another VM has by now cannot be told from that one.
        assert_eq!(names, [("a-2", 2), ("a-3", 3)]);
    }

    #[tokio::test]
    async fn rows_are_settled_together() {
        let (_dir, database) = database();
        let mut rows = Vec::new();
        for _ in 0..3 {
            let held = HeldSlots::default();
            rows.push(database.insert_vm(new(None), 9, held).await.unwrap());
        }
        rows[0].phase = Phase::Stopped;
        let gone = rows[1].id.clone();
        database
            .settle(vec![rows[0].clone()], vec![gone])
            .await
            .unwrap();
        rows.remove(1);
        let found = database.vms().await.unwrap().vms;
        assert_eq!(found.len(), 2);
        assert!(rows.iter().all(|row| found.contains(row)));
    }
}

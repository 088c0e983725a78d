//! `vm.json`: what a VM is, in its own directory, for when the database has lost its row.
//!
//! It is written when the VM's disks are there, so that what is brought back by it can start,
//! and whenever what it says changes. It goes first when the VM is deleted. What the VM does at
//! the moment is not in it: that is asked of the host.

use std::collections::BTreeMap;
use std::path::Path;

use banger_proto::api::EngineKind;
use banger_proto::id::{ImageId, InstanceId, LeaseId, VmId};
use banger_proto::name::{ArtifactName, VmName};
use banger_proto::size::ByteSize;
use serde::{Deserialize, Serialize};

use super::plan::Layout;
use crate::files::{self, FileError};
use crate::store::VmRow;
use crate::vm::lifecycle::Phase;

/// What a VM's directory says of it. Fields that a later banger adds are left out by this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Whose it is: what the marks of its processes begin with.
    pub instance: InstanceId,
    /// Its id, which is also the directory's name.
    pub id: VmId,
    /// Its name.
    pub name: VmName,
    /// Its slot.
    pub slot: u16,
    /// The image's name.
    pub image: ArtifactName,
    /// The image's id.
    pub image_id: Option<ImageId>,
    /// The kernel's name.
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
    /// The lease it hangs on.
    pub lease: Option<LeaseId>,
    /// When it was created, RFC 3339.
    pub created_at: String,
    /// When it is deleted, whatever it does, RFC 3339.
    pub expires_at: Option<String>,
}

impl Record {
    /// What `row` says of a VM of this instance.
    pub fn of(instance: &InstanceId, row: &VmRow) -> Self {
        Self {
            instance: instance.clone(),
            id: row.id.clone(),
            name: row.name.clone(),
            slot: row.slot,
            image: row.image.clone(),
            image_id: row.image_id.clone(),
            kernel: row.kernel.clone(),
            vcpu: row.vcpu,
            memory: row.memory,
            disk_size: row.disk_size,
            system_size: row.system_size,
            engine: row.engine,
            engine_reason: row.engine_reason.clone(),
            nat: row.nat,
            labels: row.labels.clone(),
            lease: row.lease.clone(),
            created_at: row.created_at.clone(),
            expires_at: row.expires_at.clone(),
        }
    }

    /// The row of the VM, which is in `phase` by what the host shows.
    pub fn into_row(self, phase: Phase) -> VmRow {
        VmRow {
            id: self.id,
            name: self.name,
            slot: self.slot,
            phase,
            failure: None,
            reason: None,
            image: self.image,
            image_id: self.image_id,
            kernel: self.kernel,
            vcpu: self.vcpu,
            memory: self.memory,
            disk_size: self.disk_size,
            system_size: self.system_size,
            engine: self.engine,
            engine_reason: self.engine_reason,
            nat: self.nat,
            labels: self.labels,
            lease: self.lease,
            created_at: self.created_at,
            started_at: None,
            expires_at: self.expires_at,
            stages: Vec::new(),
        }
    }
}

/// Writes down what `row` says, so that it outlives a power cut. Blocks.
///
/// # Errors
/// It cannot be written; what was there before is still there.
pub fn write(layout: &Layout, row: &VmRow) -> Result<(), FileError> {
    let record = Record::of(&layout.place.instance, row);
    let json = serde_json::to_vec_pretty(&record).expect("a record has only string keys");
    files::write_durable(&layout.record, &json)
}

/// Writes it down if something else stands there, or nothing. Blocks.
///
/// # Errors
/// It cannot be written.
pub fn refresh(layout: &Layout, row: &VmRow) -> Result<(), FileError> {
    match read(&layout.directory) {
        Some(record) if record == Record::of(&layout.place.instance, row) => Ok(()),
        _ => write(layout, row),
    }
}

/// Reads what a VM's directory says; `None` if that is nothing usable. Blocks.
pub fn read(directory: &Path) -> Option<Record> {
    let json = std::fs::read(directory.join(FILE)).ok()?;
    let record: Record = serde_json::from_slice(&json).ok()?;
    let own = directory.file_name()?.to_str()? == record.id.as_str();
    (own && record.slot > 0).then_some(record)
}

/// The file's name in the VM's directory.
pub const FILE: &str = "vm.json";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::vms::tests::row;

    #[test]
    fn a_record_brings_the_row_back_and_rubbish_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut row = row("a");
        row.slot = 7;
        row.labels.insert("k".into(), "v".into());
        row.image_id = Some(ImageId::new());
        row.expires_at = Some("2026-01-02T00:00:00Z".to_owned());
        let directory = dir.path().join(row.id.as_str());
        std::fs::create_dir(&directory).unwrap();
        let record = Record::of(&InstanceId::new(), &row);
        let json = serde_json::to_string(&record).unwrap();
        std::fs::write(directory.join(FILE), &json).unwrap();
        let read_back = read(&directory).unwrap();
        assert_eq!(read_back, record);
        row.phase = Phase::Stopped;
        assert_eq!(read_back.into_row(Phase::Stopped), row);

        for rubbish in [
            "",
            "{",
            &json[..json.len() / 2],
            &json.replace(":7,", ":0,"),
        ] {
            std::fs::write(directory.join(FILE), rubbish).unwrap();
            assert_eq!(read(&directory), None, "{rubbish}");
        }
        // A directory that was copied is not the VM.
        let copy = dir.path().join(VmId::new().as_str());
        std::fs::create_dir(&copy).unwrap();
        std::fs::write(copy.join(FILE), &json).unwrap();
        assert_eq!(read(&copy), None);
    }
}

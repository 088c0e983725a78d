//! `handles.json`: how a restarted daemon finds a machine quickly. It may be missing or
//! rubbish: the machine is then found by its mark.

use std::path::Path;

use banger_engine::MachineHandle;

use crate::files::{self, FileError};

/// Writes the handle, whole, before anything relies on it.
///
/// # Errors
/// It cannot be written.
pub fn write(path: &Path, handle: &MachineHandle) -> Result<(), FileError> {
    let json = serde_json::to_vec_pretty(handle).expect("a handle has only string keys");
    files::write_private(path, &json)
}

/// Reads the handle; `None` if there is no usable one.
pub fn read(path: &Path) -> Option<MachineHandle> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_engine::process::ProcessId;
    use banger_proto::api::EngineKind;

    #[test]
    fn a_handle_reads_back_and_rubbish_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("handles.json");
        assert_eq!(read(&path), None);
        let handle = MachineHandle {
            engine: EngineKind::Fake,
            process: ProcessId {
                pid: 7,
                start_time: 8,
                boot_id: "b".to_owned(),
            },
        };
        write(&path, &handle).unwrap();
        assert_eq!(read(&path), Some(handle));
        std::fs::write(&path, "{\"engine\":").unwrap();
        assert_eq!(read(&path), None);
    }
}

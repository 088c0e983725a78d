//! The id of this state directory, by which banger tells its things on the host from those of
//! every other banger: made once, at the first start, and kept.

use std::io;

use banger_config::{Paths, instance};
use banger_proto::id::InstanceId;

use crate::files::{self, FileError};
use crate::vm::record;

/// The id of this instance, made if there is none. One that is lost or damaged is that of the
/// VMs' records, so that what runs is still known. Blocks. The caller is the only daemon of these
/// directories.
///
/// # Errors
/// It cannot be read or written.
pub fn load(paths: &Paths) -> Result<InstanceId, FileError> {
    let file = paths.instance();
    match instance::read(&file) {
        Ok(Some(id)) => return Ok(id),
        Ok(None) => {}
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            tracing::warn!(%error, file = %file.display(), "the instance's id is damaged");
        }
        Err(error) => return Err(FileError::new("read", &file)(error)),
    }
    let id = of_vms(paths).unwrap_or_else(InstanceId::new);
    // Before anything carries it: a mark that nobody knows any more would be swept by nobody.
    files::write_durable(&file, format!("{id}\n").as_bytes())?;
    Ok(id)
}

/// What the first VM's directory that says anything says.
fn of_vms(paths: &Paths) -> Option<InstanceId> {
    let directories = std::fs::read_dir(paths.vms()).ok()?.flatten();
    directories
        .filter_map(|entry| record::read(&entry.path()))
        .map(|record| record.instance)
        .next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::vms::tests::row;
    use crate::vm::plan::Layout;

    #[test]
    fn an_instance_keeps_its_id_and_no_two_have_the_same() {
        let home = tempfile::tempdir().unwrap();
        let paths = |name: &str| Paths {
            config: "/nonexistent".into(),
            state: home.path().join(name),
            cache: "/nonexistent".into(),
            runtime: "/nonexistent".into(),
        };
        for name in ["one", "two"] {
            std::fs::create_dir(home.path().join(name)).unwrap();
        }
        let one = load(&paths("one")).unwrap();
        assert_eq!(load(&paths("one")).unwrap(), one);
        let two = load(&paths("two")).unwrap();
        assert_ne!(two, one);

        // What runs carries the old id, whatever became of the file.
        let vm = row("a");
        let layout = Layout::of(&paths("two"), &two, &vm.id, vm.slot);
        std::fs::create_dir_all(&layout.directory).unwrap();
        record::write(&layout, &vm).unwrap();
        for damage in ["", "1f2e"] {
            std::fs::write(paths("two").instance(), damage).unwrap();
            assert_eq!(load(&paths("two")).unwrap(), two);
        }
        std::fs::remove_file(paths("two").instance()).unwrap();
        assert_eq!(load(&paths("two")).unwrap(), two);
    }
}

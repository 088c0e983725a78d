//! The id of this state directory, by which banger tells its things on the host from those of
//! every other banger: made once, at the first start, and kept.

use banger_config::{Paths, instance};
use banger_proto::id::InstanceId;

use crate::files::{self, FileError};

/// The id of this instance, made if there is none. Blocks. The caller is the only daemon of
/// these directories.
///
/// # Errors
/// It cannot be read or written, or is damaged.
pub fn load(paths: &Paths) -> Result<InstanceId, FileError> {
    let file = paths.instance();
    if let Some(id) = instance::read(&file).map_err(FileError::new("read", &file))? {
        return Ok(id);
    }
    let id = InstanceId::new();
    // Before anything carries it: a mark that nobody knows any more would be swept by nobody.
    files::write_durable(&file, format!("{id}\n").as_bytes())?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_ne!(load(&paths("two")).unwrap(), one);
    }
}

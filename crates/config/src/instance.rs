//! Which instance a state directory is: an id that its first daemon makes, and that every mark on
//! the host carries.
//!
//! A path would not do: two containers of one host may have the same one, and see each other's
//! processes.

use std::io;
use std::path::Path;

use banger_proto::id::InstanceId;

/// Reads the id in `file`; `None` if no daemon has made one yet.
///
/// # Errors
/// It cannot be read, or is no id ([`io::ErrorKind::InvalidData`]).
pub fn read(file: &Path) -> io::Result<Option<InstanceId>> {
    match std::fs::read_to_string(file) {
        Ok(text) => match text.trim_end().parse() {
            Ok(id) => Ok(Some(id)),
            Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_or_absent_or_malformed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("instance");
        assert_eq!(read(&file).unwrap(), None);
        let id = InstanceId::new();
        std::fs::write(&file, format!("{id}\n")).unwrap();
        assert_eq!(read(&file).unwrap(), Some(id));
        for text in ["", "1f2e"] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(read(&file).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }
}

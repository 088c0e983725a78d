//! Gives the root of an archive another name on its way from one VM to another.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tar::{Archive, Builder, EntryType};

use super::{ArchiveError, Pieces, PiecesWriter};

/// Passes an archive on with its root called `root`, or without a root. Blocks.
///
/// # Errors
/// The archive is broken, or nobody takes it; its stream then ends with an error.
pub(crate) fn rename(
    from: Pieces,
    into: PiecesWriter,
    root: Option<&Path>,
) -> Result<(), ArchiveError> {
    let mut builder = Builder::new(into);
    match rename_all(from, &mut builder, root) {
        Ok(()) => {
            let mut into = builder.into_inner().map_err(|_| ArchiveError::Gone)?;
            into.flush().map_err(|_| ArchiveError::Gone)
        }
        Err(error) => {
            // Ends the stream so that nobody takes it for a whole one.
            if let Ok(into) = builder.into_inner() {
                into.fail(io::Error::other(error.to_string()));
            }
            Err(error)
        }
    }
}

fn rename_all(
    from: Pieces,
    builder: &mut Builder<PiecesWriter>,
    root: Option<&Path>,
) -> Result<(), ArchiveError> {
    let mut archive = Archive::new(from);
    let append_failed = |error: io::Error| match error.kind() {
        io::ErrorKind::BrokenPipe => ArchiveError::Gone,
        _ => ArchiveError::Broken(error),
    };
    for entry in archive.entries().map_err(ArchiveError::Broken)? {
        let entry = entry.map_err(ArchiveError::Broken)?;
        let Some(name) = renamed(&entry.path().map_err(ArchiveError::Broken)?, root) else {
            continue;
        };
        let mut header = entry.header().clone();
        let target = entry.link_name().map_err(ArchiveError::Broken)?;
        let target = target.map(|target| target.into_owned());
        let appended = match (header.entry_type(), target) {
            (EntryType::Symlink, Some(target)) => builder.append_link(&mut header, &name, target),
            (EntryType::Link, Some(target)) => match renamed(&target, root) {
                Some(target) => builder.append_link(&mut header, &name, target),
                None => continue,
            },
            _ => builder.append_data(&mut header, &name, entry),
        };
        appended.map_err(append_failed)?;
    }
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(ArchiveError::Broken)?;
    Ok(())
}

/// `None` for the root itself where there shall be none.
fn renamed(name: &Path, root: Option<&Path>) -> Option<PathBuf> {
    let mut parts = name.components();
    parts.next();
    let below = parts.as_path();
    match (root, below.as_os_str().is_empty()) {
        (Some(root), true) => Some(root.to_owned()),
        (Some(root), false) => Some(root.join(below)),
        (None, true) => None,
        (None, false) => Some(below.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::{Owners, Packing, pack, pieces};
    use std::fs;

    #[test]
    fn every_name_and_every_hard_link_follows_the_root() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("a"), "x").unwrap();
        fs::hard_link(tree.join("a"), tree.join("b")).unwrap();
        let names = |root: Option<&'static str>| {
            let (writer, reader) = pieces();
            let packing = Packing {
                from: tree.clone(),
                root: Some("tree".into()),
                owners: Owners::Root,
            };
            std::thread::spawn(move || pack(&packing, writer, |_| {}));
            let (second, result) = pieces();
            let renaming = std::thread::spawn(move || rename(reader, second, root.map(Path::new)));
            let mut archive = Archive::new(result);
            let entries = archive.entries().unwrap().map(|entry| {
                let entry = entry.unwrap();
                let name = entry.path().unwrap().display().to_string();
                let link = entry.link_name().unwrap();
                let link = link.map(|link| format!(" -> {}", link.display()));
                name + &link.unwrap_or_default()
            });
            let names: Vec<String> = entries.collect();
            drop(archive);
            let _ = renaming.join().unwrap();
            names
        };
        assert_eq!(names(Some("new")), ["new", "new/a", "new/b -> new/a"]);
        assert_eq!(names(None), ["a", "b -> a"]);
    }
}

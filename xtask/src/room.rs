//! Whether there is room for a whole run of the tests: told before anything is made, because a full
//! disk shows itself as the failure of whichever test comes then.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;

const GIB: u64 = 1 << 30;
/// What building everything takes, and the store that the tests share: estimates, from a target
/// directory of 6.3 GiB of which 2.5 were for building again.
const BUILT: u64 = 8 * GIB;
/// The same without what cargo keeps to build the next time faster.
const BUILT_ONCE: u64 = 5 * GIB;
/// What building again takes at most.
const BUILT_AGAIN: u64 = 2 * GIB;
/// What tests have in temporary files at the same time: `umoci` writes 3 GiB of zeros.
const TEMPORARY: u64 = 4 * GIB;

/// Refuses to begin where the tests would fill a disk.
///
/// # Errors
/// There is too little room, or it cannot be told.
pub fn require(workspace: &Workspace) -> Result<()> {
    let is_built = workspace.target.join("debug").is_dir();
    let builds_once = std::env::var_os("CARGO_INCREMENTAL").is_some_and(|value| value == "0");
    let building = match (is_built, builds_once) {
        (true, _) => BUILT_AGAIN,
        (false, true) => BUILT_ONCE,
        (false, false) => BUILT,
    };
    let target = existing(&workspace.target);
    let temporary = existing(&std::env::temp_dir());
    match device(&target)? == device(&temporary)? {
        true => require_at(&target, building + TEMPORARY),
        false => {
            require_at(&target, building)?;
            require_at(&temporary, TEMPORARY)
        }
    }
}

fn require_at(path: &Path, needed: u64) -> Result<()> {
    let shown = path.display();
    let about = rustix::fs::statvfs(path)
        .with_context(|| format!("could not ask for the room at {shown}"))?;
    let free = about.f_bavail.saturating_mul(about.f_frsize);
    if free < needed {
        bail!(
            "the file system of {shown} has {:.1} GiB free, and the tests need {} GiB there",
            free as f64 / GIB as f64,
            needed / GIB
        );
    }
    Ok(())
}

/// The path, or what of it is there.
fn existing(path: &Path) -> PathBuf {
    let there = path.ancestors().find(|path| path.exists());
    there.unwrap_or(Path::new("/")).to_owned()
}

fn device(path: &Path) -> Result<u64> {
    let metadata =
        std::fs::metadata(path).with_context(|| format!("could not look at {}", path.display()))?;
    Ok(metadata.dev())
}

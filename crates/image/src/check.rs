//! What the host must have for images and kernels to be made.

use std::path::PathBuf;

use banger_proto::doctor::Check;

use crate::store::StoreConfig;

/// What to do when `mke2fs` is missing.
pub(crate) const MKE2FS_FIX: &str = "install it: apt-get install e2fsprogs";

/// All checks of this crate, in the order in which a first VM start needs them.
pub fn checks(_config: &StoreConfig) -> Vec<Check> {
    Vec::new()
}

/// Where a tool is: in `PATH`, or where administration tools are, which ordinary users often
/// lack in their `PATH`.
pub(crate) fn find_tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| is_executable(candidate))
}

fn is_executable(path: &std::path::Path) -> bool {
    path.is_absolute()
        && path.is_file()
        && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

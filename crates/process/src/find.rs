//! Where programs are.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

/// Where administration tools are, which ordinary users often lack in their `PATH`.
const MORE_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Where the program of this name is: in `PATH`, or where administration tools are.
pub fn find(name: &str) -> Option<PathBuf> {
    directories()
        .map(|directory| directory.join(name))
        .find(|program| is_executable(program))
}

/// `PATH` with the directories of administration tools.
pub fn search_path() -> OsString {
    std::env::join_paths(directories()).unwrap_or_else(|_| path())
}

fn directories() -> impl Iterator<Item = PathBuf> {
    let directories: Vec<PathBuf> = std::env::split_paths(&path()).collect();
    directories
        .into_iter()
        .chain(MORE_DIRECTORIES.map(PathBuf::from))
}

fn path() -> OsString {
    std::env::var_os("PATH").unwrap_or_default()
}

/// A relative directory in `PATH` would mean another one for a process that has changed its own.
fn is_executable(program: &Path) -> bool {
    program.is_absolute()
        && program.is_file()
        && rustix::fs::access(program, Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_and_a_file_that_is_none_is_not() {
        let sh = find("sh").unwrap();
        assert!(sh.is_absolute() && sh.ends_with("sh"));
        assert_eq!(find("no-program-has-this-name"), None);
        assert!(!is_executable(Path::new("/etc/passwd")));
        assert!(!is_executable(Path::new("/usr")));
    }
}

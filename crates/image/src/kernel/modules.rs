//! Which kernel modules boot needs, and in which order they have to be loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

/// What boot needs before it can mount the module disk: disks, network, the root's overlay,
/// the link to the host. Of these, what is built into the kernel is skipped.
const NEEDED: [&str; 9] = [
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "ext4",
    "overlay",
    "vsock",
    "vmw_vsock_virtio_transport",
];

/// Why boot's modules could not be found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModulesError {
    /// One of the lists that `depmod` and the kernel's build make is missing.
    #[error("could not read `{path}`")]
    List {
        /// The list.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A module is needed and nowhere.
    #[error("the kernel has no module `{0}`, neither as a file nor built in")]
    Missing(String),
}

/// The files of the modules that boot needs, relative to `directory` (`…/<release>`), each
/// behind those that it depends on.
pub(crate) fn boot_modules(directory: &Path) -> Result<Vec<String>, ModulesError> {
    let read = |name: &str| {
        let path = directory.join(name);
        std::fs::read_to_string(&path).map_err(|source| ModulesError::List { path, source })
    };
    in_load_order(&NEEDED, &read("modules.dep")?, &read("modules.builtin")?)
}

/// `modules.dep` has lines `file: dependency dependency …`, `modules.builtin` one file a line.
fn in_load_order(
    needed: &[&str],
    dependencies: &str,
    built_in: &str,
) -> Result<Vec<String>, ModulesError> {
    let files: BTreeMap<String, (&str, Vec<&str>)> = dependencies
        .lines()
        .filter_map(|line| {
            let (file, needs) = line.split_once(':')?;
            Some((
                module_name(file),
                (file, needs.split_whitespace().collect()),
            ))
        })
        .collect();
    let built_in: BTreeSet<String> = built_in.lines().map(module_name).collect();
    let mut order = Vec::new();
    for name in needed {
        if !built_in.contains(*name) {
            visit(name, &files, &mut BTreeSet::new(), &mut order)?;
        }
    }
    Ok(order)
}

/// Adds a module behind its dependencies. `open` holds those on the way here, so that a
/// circle in the list ends.
fn visit(
    name: &str,
    files: &BTreeMap<String, (&str, Vec<&str>)>,
    open: &mut BTreeSet<String>,
    order: &mut Vec<String>,
) -> Result<(), ModulesError> {
    let (file, needs) = files
        .get(name)
        .ok_or_else(|| ModulesError::Missing(name.to_owned()))?;
    if order.iter().any(|known| known == file) || !open.insert(name.to_owned()) {
        return Ok(());
    }
    for dependency in needs {
        visit(&module_name(dependency), files, open, order)?;
    }
    order.push((*file).to_owned());
    Ok(())
}

/// `kernel/drivers/block/virtio-blk.ko.xz` is the module `virtio_blk`.
fn module_name(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    base.split(".ko").next().unwrap_or(base).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DEPENDENCIES: &str = "\
kernel/net/core/failover.ko.xz:
kernel/drivers/net/net_failover.ko.xz: kernel/net/core/failover.ko.xz
kernel/drivers/net/virtio_net.ko.xz: kernel/drivers/net/net_failover.ko.xz kernel/net/core/failover.ko.xz
kernel/drivers/block/virtio-blk.ko.xz:
kernel/a.ko: kernel/b.ko
kernel/b.ko: kernel/a.ko
";

    #[test]
    fn dependencies_come_first_and_what_is_built_in_is_left_out() {
        let order = in_load_order(
            &["virtio_pci", "virtio_blk", "virtio_net"],
            DEPENDENCIES,
            "kernel/drivers/virtio/virtio_pci.ko\n",
        );
        assert_eq!(
            order.unwrap(),
            [
                "kernel/drivers/block/virtio-blk.ko.xz",
                "kernel/net/core/failover.ko.xz",
                "kernel/drivers/net/net_failover.ko.xz",
                "kernel/drivers/net/virtio_net.ko.xz",
            ]
        );
    }

    #[test]
    fn a_module_that_is_nowhere_is_an_error() {
        let error = in_load_order(&["overlay"], DEPENDENCIES, "").unwrap_err();
        assert_eq!(
            error.to_string(),
            "the kernel has no module `overlay`, neither as a file nor built in"
        );
    }

    #[test]
    fn a_circle_of_dependencies_ends() {
        assert_eq!(in_load_order(&["a"], DEPENDENCIES, "").unwrap().len(), 2);
    }

    proptest! {
        #[test]
        fn rubbish_never_panics(text in "([a-c/.:ko \n-]){0,80}") {
            let _ = in_load_order(&["a", "b"], &text, &text);
        }
    }
}

//! Directories of the root that lie on the system disk itself, and not on the overlay over it.
//!
//! Container engines lay an overlay of their own over what they keep, and the kernel takes no
//! overlay as the upper part of another one. So these directories are the system disk's own,
//! whatever the image is: who installs an engine later finds them as they must be.
//!
//! ```text
//! system disk   upper/  work/        the root's overlay
//!               volumes/docker/      mounted at /var/lib/docker, and so on
//! ```
//! What an image brings there is copied once, as it stands in the base: in a layer of the engine's
//! there are marks which the root's overlay would take for its own.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::mount::mount_bind;

use super::BootError;
use super::seed;

/// Where they are, below the root.
const PARENT: &str = "var/lib";
/// Docker, containerd (also Docker's), and what Podman, Buildah and CRI-O share.
const NAMES: [&str; 3] = ["docker", "containerd", "containers"];
/// Their own directory on the system disk.
const VOLUMES: &str = "volumes";
/// Everybody may pass, as through those that the engines make.
const MODE: u32 = 0o711;

/// Mounts them into `root`, which is `base` with what is written over it on `system`. An image
/// without a `/var/lib` has no place for them, and no use.
pub(super) fn mount(root: &Path, base: &Path, system: &Path) -> Result<(), BootError> {
    if !is_own_directory(root) {
        return Ok(());
    }
    for name in NAMES {
        let volume = system.join(VOLUMES).join(name);
        let target = root.join(PARENT).join(name);
        if !is_free(&target) {
            continue;
        }
        let mounted = prepare(&base.join(PARENT).join(name), &volume)
            .and_then(|()| make_directory(&target))
            .and_then(|()| Ok(mount_bind(&volume, &target)?));
        mounted.map_err(|source| BootError::Mount {
            what: volume.display().to_string(),
            target: target.display().to_string(),
            source,
        })?;
    }
    Ok(())
}

/// Whether the parent is there, and not somewhere else by a symbolic link, which would be
/// followed from the wrong root.
fn is_own_directory(root: &Path) -> bool {
    let is_directory = |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    let parent = root.join(PARENT);
    is_directory(&parent) && parent.parent().is_some_and(is_directory)
}

/// Makes the volume, with what the image has in its place.
fn prepare(image: &Path, volume: &Path) -> io::Result<()> {
    if volume.exists() {
        return Ok(());
    }
    let volumes = volume.parent().unwrap_or(volume);
    fs::create_dir_all(volumes)?;
    let brings_something = fs::symlink_metadata(image).is_ok_and(|found| found.is_dir())
        && fs::read_dir(image)?.next().is_some();
    match brings_something {
        true => seed::fill(image, volume),
        false => make_directory(volume),
    }
}

/// A symbolic link in its place is the image's own arrangement, which stays.
fn is_free(target: &Path) -> bool {
    fs::symlink_metadata(target).map_or(true, |found| found.is_dir())
}

/// Makes a directory that everybody may pass, unless there is one.
fn make_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(MODE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};

    #[test]
    fn a_volume_is_empty_or_what_the_image_has_and_stays_what_it_becomes() {
        let directory = tempfile::tempdir().unwrap();
        let (image, system) = (
            directory.path().join("image"),
            directory.path().join("system"),
        );
        fs::create_dir_all(image.join("docker/overlay2")).unwrap();
        fs::create_dir_all(image.join("containerd")).unwrap();
        fs::create_dir(&system).unwrap();
        let volume = |name: &str| system.join("volumes").join(name);
        for name in NAMES {
            prepare(&image.join(name), &volume(name)).unwrap();
        }
        assert!(volume("docker").join("overlay2").is_dir());
        let mode = |name: &str| fs::metadata(volume(name)).unwrap().mode() & 0o777;
        assert_eq!((mode("containerd"), mode("containers")), (0o711, 0o711));

        fs::remove_dir(volume("docker").join("overlay2")).unwrap();
        prepare(&image.join("docker"), &volume("docker")).unwrap();
        assert!(!volume("docker").join("overlay2").exists());
    }

    #[test]
    fn nothing_is_mounted_where_an_image_has_no_place_or_an_arrangement_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        assert!(!is_own_directory(root));
        symlink("/srv", root.join("var")).unwrap();
        assert!(!is_own_directory(root));
        fs::remove_file(root.join("var")).unwrap();
        fs::create_dir_all(root.join("var/lib")).unwrap();
        assert!(is_own_directory(root));
        symlink("/srv/docker", root.join("var/lib/docker")).unwrap();
        assert!(!is_free(&root.join("var/lib/docker")));
        assert!(is_free(&root.join("var/lib/containerd")));
    }
}

//! How the image's root is put together and becomes the root.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, mount, mount_bind, mount_move};
use rustix::process::{chdir, chroot};

use super::BootError;
use super::volumes;
use crate::report::BootReport;

/// Where the image's root grows.
pub(super) const NEW_ROOT: &str = "/sysroot";

const BASE: &str = "/banger/base";
const SYSTEM: &str = "/banger/system";
const MODULES: &str = "/banger/modules-disk";

/// Device files, processes and the kernel's objects: needed to find anything at all.
pub(super) fn mount_early() -> Result<(), BootError> {
    let hidden = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_new("proc", "/proc", "proc", hidden, "")?;
    mount_new("sysfs", "/sys", "sysfs", hidden, "")?;
    mount_new(
        "devtmpfs",
        "/dev",
        "devtmpfs",
        MountFlags::NOSUID,
        "mode=0755",
    )
}

/// Mounts the base and what is written over it; returns the system disk's root directory,
/// which is out of sight afterwards.
pub(super) fn assemble(
    base: &str,
    system: Option<&str>,
    report: &mut BootReport,
) -> Result<Option<OwnedFd>, BootError> {
    mount_base(base)?;
    let mounted = system.map(|device| mount_disk(device, SYSTEM));
    let persistent = matches!(mounted, Some(Ok(())));
    if let Some(result) = mounted {
        super::warn(report, "system disk", result);
    }
    if !persistent {
        report
            .warnings
            .push("changes to the root are lost at the end".to_owned());
        mount_new("tmpfs", SYSTEM, "tmpfs", MountFlags::empty(), "mode=0755")?;
    }
    let upper = format!("{SYSTEM}/upper");
    let work = format!("{SYSTEM}/work");
    for directory in [&upper, &work] {
        create_directory(Path::new(directory)).map_err(|source| BootError::Mount {
            what: "the system disk".to_owned(),
            target: directory.clone(),
            source,
        })?;
    }
    let options = format!("lowerdir={BASE},upperdir={upper},workdir={work}");
    mount_new(
        "overlay",
        NEW_ROOT,
        "overlay",
        MountFlags::empty(),
        &options,
    )?;
    mount_run()?;
    let volumes = volumes::mount(Path::new(NEW_ROOT), Path::new(BASE), Path::new(SYSTEM));
    super::warn(report, "volumes", volumes);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(SYSTEM, flags, Mode::empty())
        .ok()
        .filter(|_| persistent))
}

/// Mounts one of the VM's own disks. Where it has grown, its new inode tables are holes of the
/// host's file, which read as the zeros that they must be: the kernel need not write them.
pub(super) fn mount_disk(device: &str, target: &str) -> Result<(), BootError> {
    mount_new(device, target, "ext4", MountFlags::NOATIME, "noinit_itable")
}

/// A base that was not cleanly unmounted when it was made has a journal that cannot be
/// replayed on a read-only disk; what it holds is complete all the same.
fn mount_base(device: &str) -> Result<(), BootError> {
    mount_new(device, BASE, "ext4", MountFlags::RDONLY, "")
        .or_else(|_| mount_new(device, BASE, "ext4", MountFlags::RDONLY, "noload"))
}

/// Gives the new root what is not the image's: runtime files, banger's own among them.
fn mount_run() -> Result<(), BootError> {
    let run = format!("{NEW_ROOT}/run");
    mount_new(
        "tmpfs",
        &run,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        "mode=0755,size=20%",
    )?;
    create_directory(Path::new(&format!("{run}/banger"))).map_err(|source| BootError::Mount {
        what: "tmpfs".to_owned(),
        target: run,
        source,
    })
}

/// Moves what [`mount_early`] has mounted into the new root, and adds what belongs there.
fn move_early() -> Result<(), BootError> {
    let inside = |path: &str| format!("{NEW_ROOT}{path}");
    let quiet = MountFlags::NOSUID | MountFlags::NODEV;
    for path in ["/proc", "/sys", "/dev"] {
        let target = inside(path);
        create_mount_point(&target)
            .and_then(|()| Ok(mount_move(path, target.as_str())?))
            .map_err(|source| BootError::Mount {
                what: path.to_owned(),
                target,
                source,
            })?;
    }
    let pts = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount_new(
        "devpts",
        &inside("/dev/pts"),
        "devpts",
        pts,
        "gid=5,mode=620,ptmxmode=000",
    )?;
    mount_new("tmpfs", &inside("/dev/shm"), "tmpfs", quiet, "mode=1777")?;
    let cgroup = inside("/sys/fs/cgroup");
    let hidden = quiet | MountFlags::NOEXEC;
    mount_new(
        "cgroup2",
        &cgroup,
        "cgroup2",
        hidden,
        "nsdelegate,memory_recursiveprot",
    )
    .or_else(|_| mount_new("cgroup2", &cgroup, "cgroup2", hidden, ""))?;
    // What udev makes later; shells need /dev/fd for process substitution.
    for (target, link) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ] {
        // Whoever misses one of them says so itself.
        let _ = symlink(target, inside(link));
    }
    Ok(())
}

/// Mounts the kernel's modules where modprobe looks for them.
pub(super) fn mount_modules(device: &str, root: &Path) -> Result<(), BootError> {
    mount_new(device, MODULES, "ext4", MountFlags::RDONLY, "")
        .or_else(|_| mount_new(device, MODULES, "ext4", MountFlags::RDONLY, "noload"))?;
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    // With a merged /usr, /lib is a symbolic link that may be absolute.
    let merged = root.join("lib").is_symlink();
    let modules = root.join(if merged {
        "usr/lib/modules"
    } else {
        "lib/modules"
    });
    let target = modules.join(&*release);
    let source = Path::new(MODULES).join(&*release);
    fs::create_dir_all(&target)
        .and_then(|()| Ok(mount_bind(&source, &target)?))
        .map_err(|error| BootError::Mount {
            what: source.display().to_string(),
            target: target.display().to_string(),
            source: error,
        })
}

/// Makes [`NEW_ROOT`] the root, as switch_root(8) does, and frees the initramfs' memory.
pub(super) fn switch() -> Result<(), BootError> {
    move_early()?;
    remove_initramfs();
    let switch = || -> rustix::io::Result<()> {
        chdir(NEW_ROOT)?;
        mount_move(".", "/")?;
        chroot(".")?;
        chdir("/")
    };
    switch().map_err(|errno| BootError::SwitchRoot(errno.into()))
}

/// Deletes what the initramfs holds, but nothing on any other file system.
fn remove_initramfs() {
    let Ok(root) = fs::metadata("/") else {
        return;
    };
    let Ok(entries) = fs::read_dir("/") else {
        return;
    };
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        remove_within(&path, root.dev());
    }
}

fn remove_within(path: &Path, device: u64) {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return;
    };
    if metadata.dev() != device {
        return;
    }
    // Failures only mean that memory is not freed; mount points cannot be removed.
    if metadata.is_dir() {
        let entries = fs::read_dir(path)
            .into_iter()
            .flatten()
            .filter_map(Result::ok);
        let paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        for path in paths {
            remove_within(&path, device);
        }
        let _ = fs::remove_dir(path);
    } else {
        let _ = fs::remove_file(path);
    }
}

pub(super) fn mount_new(
    source: &str,
    target: &str,
    kind: &str,
    flags: MountFlags,
    options: &str,
) -> Result<(), BootError> {
    let options = CString::new(options).expect("mount options are this crate's own");
    create_mount_point(target)
        .and_then(|()| {
            Ok(mount(
                source,
                target,
                kind,
                flags,
                Some(options.as_c_str()),
            )?)
        })
        .map_err(|error| BootError::Mount {
            what: source.to_owned(),
            target: target.to_owned(),
            source: error,
        })
}

/// Images for containers lack most of them.
fn create_mount_point(path: &str) -> io::Result<()> {
    match fs::create_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

fn create_directory(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

//! As whom banger runs: as whoever runs the tests, or as an ordinary user of this host.

use std::ffi::CString;
use std::fs;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode};
use rustix::mount::{
    self, MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change,
    mount_remount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::skip;

/// Device number of `/dev/net/tun` (Linux, Documentation/admin-guide/devices.txt).
const TUN: (u32, u32) = (10, 200);

/// An account of this host.
#[derive(Clone, Debug)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its user id.
    pub uid: u32,
    /// Its group id.
    pub gid: u32,
}

impl User {
    /// Finds an account by its name.
    pub fn find(name: &str) -> Option<Self> {
        let accounts = fs::read_to_string("/etc/passwd").ok()?;
        accounts.lines().find_map(|line| {
            let mut fields = line.split(':');
            let found = fields.next()?;
            let (uid, gid) = (fields.nth(1)?, fields.next()?);
            (found == name).then(|| {
                Some(Self {
                    name: name.to_owned(),
                    uid: uid.parse().ok()?,
                    gid: gid.parse().ok()?,
                })
            })?
        })
    }
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether this run can mount something for what it starts; says why if not.
pub fn can_mount() -> bool {
    if !is_root() {
        skip("only root can mount a file system for this test");
    }
    is_root()
}

/// Lets everything that this thread starts open `/dev/net/tun`, as ordinary hosts do for
/// everyone, without touching the host's device: a node of our own, made in `directory`,
/// covers it.
pub fn open_tun_to_everyone(directory: &Path) {
    leave_the_hosts_mounts();
    let node = directory.join("tun");
    let everyone = Mode::from_raw_mode(0o666);
    let device = rustix::fs::makedev(TUN.0, TUN.1);
    rustix::fs::mknodat(CWD, &node, FileType::CharacterDevice, everyone, device)
        .expect("root makes a device node");
    rustix::fs::chmod(&node, everyone).expect("the umask does not hold for chmod");
    mount_bind(&node, "/dev/net/tun").expect("the node covers the host's");
}

/// Covers `directory` with a file system of this size, for what this thread starts.
pub fn mount_small(directory: &Path, size: &str, (uid, gid): (u32, u32)) {
    leave_the_hosts_mounts();
    let options = CString::new(format!("size={size},mode=0700,uid={uid},gid={gid}"))
        .expect("a size has no NUL in it");
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", directory, "tmpfs", flags, options.as_c_str()).expect("root mounts");
}

/// Makes `directory` read-only for what this thread starts.
pub fn mount_read_only(directory: &Path) {
    leave_the_hosts_mounts();
    mount_bind(directory, directory).expect("root mounts");
    let flags = MountFlags::BIND | MountFlags::RDONLY;
    mount_remount(directory, flags, c"").expect("root mounts");
}

/// Removes such a mount again.
pub fn unmount(directory: &Path) {
    mount::unmount(directory, UnmountFlags::DETACH).expect("it was mounted here");
}

/// Gives this thread and what it starts mounts of their own. A test has no use for the
/// host's afterwards, and they end with the last process that has them.
fn leave_the_hosts_mounts() {
    // SAFETY: only the mount namespace is unshared (and with it this thread's working
    // directory and umask); no memory or descriptor table is.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.expect("root makes a mount namespace");
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .expect("nothing is mounted back to the host");
}

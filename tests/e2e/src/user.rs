//! As whom banger runs: as whoever runs the tests, or as an ordinary user of this host.

use std::fs;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

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

/// Lets everything that this thread starts open `/dev/net/tun`, as ordinary hosts do for
/// everyone, without touching the host's device: a node of our own, made in `directory`,
/// covers it in a mount namespace of this thread's.
pub fn open_tun_to_everyone(directory: &Path) {
    // SAFETY: only the mount namespace is unshared (and with it this thread's working
    // directory and umask); no memory or descriptor table is.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.expect("root makes a mount namespace");
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .expect("nothing is mounted back to the host");
    let node = directory.join("tun");
    let everyone = Mode::from_raw_mode(0o666);
    let device = rustix::fs::makedev(TUN.0, TUN.1);
    rustix::fs::mknodat(CWD, &node, FileType::CharacterDevice, everyone, device)
        .expect("root makes a device node");
    rustix::fs::chmod(&node, everyone).expect("the umask does not hold for chmod");
    mount_bind(&node, "/dev/net/tun").expect("the node covers the host's");
}

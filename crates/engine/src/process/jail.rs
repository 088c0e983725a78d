//! The root directory of an engine: nothing of the host's but what it opens by its name.
//!
//! ```text
//! /firecracker    the program, read-only
//! /proc/self      this process's own part of the host's /proc: by it, and by nothing else, what
//!                 is inherited is opened once more
//! /dev/kvm  /dev/net/tun    of the process's user where this one may make devices, else the host's
//! /run            the machine's directory: where the process works, and has its sockets
//! ```
//!
//! All of it is mounted in a mount namespace of the process's own, on an empty directory, and the
//! host's mounts are taken out of there before the program runs. So nothing is mounted on the
//! host, and all of it goes with the process, however that ends. The process needs the right to
//! mount: root has it, and whoever entered a user namespace of his own has it in there.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::mem;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr;

use rustix::fs::StatVfsMountFlags;

use crate::process::Identity;

/// Where the process works.
const WORK: &CStr = c"run";
/// Where the program is.
const PROGRAM: &CStr = c"firecracker";
/// By which path it is executed, once the jail is entered.
pub(super) const IMAGE: &str = "/firecracker";
/// What the process opens by its name beside all this, as it is named from the root.
const DEVICES: [&CStr; 2] = [c"dev/kvm", c"dev/net/tun"];
/// Directories of the jail, each after the one it is in.
const DIRECTORIES: [&CStr; 5] = [c"proc", c"proc/self", c"dev", c"dev/net", WORK];
/// What holds the directories and empty files. Nothing is written to it afterwards.
const OPTIONS: &CStr = c"size=64k,nr_inodes=32,mode=0755";

/// A jail for one program, which is entered by the process that becomes it.
#[derive(Debug)]
pub(crate) struct Jail {
    /// An empty directory that the jail is mounted on.
    root: CString,
    /// The machine's directory.
    work: CString,
    program: CString,
    /// How the program's file system is mounted, which a mount of its own must keep to.
    flags: libc::c_ulong,
}

impl Jail {
    /// One for `program`, which works in `work`; `root` is an empty directory. `None`: the
    /// program needs more of the host than this, because it is linked dynamically.
    ///
    /// # Errors
    /// The program cannot be looked at.
    pub(crate) fn new(program: &Path, work: &Path, root: &Path) -> io::Result<Option<Self>> {
        let program = program.canonicalize()?;
        if !is_static(&program)? {
            return Ok(None);
        }
        let mounted = rustix::fs::statvfs(&program)?.f_flag;
        Ok(Some(Self {
            root: c_string(root)?,
            work: c_string(work)?,
            program: c_string(&program)?,
            flags: kept(mounted),
        }))
    }

    /// Enters it, for good, for a process that will be `user`. For the child between fork and
    /// exec: makes system calls only.
    pub(super) fn enter(&self, user: Option<&Identity>) -> io::Result<()> {
        let apart = libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        // SAFETY: unshare takes a number.
        check(unsafe { libc::unshare(apart) })?;
        // Nothing of what follows is seen by the host.
        mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE, None)?;
        let bare = libc::MS_NOSUID | libc::MS_NOEXEC;
        mount(
            Some(c"tmpfs"),
            &self.root,
            Some(c"tmpfs"),
            bare,
            Some(OPTIONS),
        )?;
        change_directory(&self.root)?;
        // SAFETY: umask takes a number.
        let umask = unsafe { libc::umask(0o022) };
        self.furnish(user)?;
        // SAFETY: as above.
        unsafe { libc::umask(umask) };
        let read_only = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY;
        mount(None, c".", None, read_only | bare, None)?;
        become_root()?;
        change_directory(WORK)
    }

    /// Fills the working directory, which is the jail's.
    fn furnish(&self, user: Option<&Identity>) -> io::Result<()> {
        for directory in DIRECTORIES {
            // SAFETY: the path ends with a zero and lives longer than the call.
            check(unsafe { libc::mkdir(directory.as_ptr(), 0o755) })?;
        }
        // The link leads to the directory of this process, which keeps its id.
        mount(Some(c"/proc/self"), c"proc/self", None, libc::MS_BIND, None)?;
        mount(Some(&self.work), WORK, None, libc::MS_BIND, None)?;
        mount_file(&self.program, PROGRAM)?;
        let flags = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY | self.flags;
        mount(None, PROGRAM, None, flags, None)?;
        for device in DEVICES {
            let mut buffer = [0; 32];
            let hosts = from_root(device, &mut buffer)?;
            let made = user.is_some_and(|user| make_device(hosts, device, user).is_ok());
            if made {
                continue;
            }
            // Where there is none, whoever opens it says so.
            match mount_file(hosts, device) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                mounted => mounted?,
            }
        }
        Ok(())
    }
}

/// `dev/kvm` as `/dev/kvm`.
fn from_root<'a>(path: &CStr, buffer: &'a mut [u8; 32]) -> io::Result<&'a CStr> {
    buffer[0] = b'/';
    let bytes = path.to_bytes_with_nul();
    let Some(rest) = buffer.get_mut(1..=bytes.len()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    rest.copy_from_slice(bytes);
    CStr::from_bytes_until_nul(buffer).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Makes the jail in the working directory the root, and lets go of the host's.
fn become_root() -> io::Result<()> {
    // pivot_root(2), "pivot_root(".", ".")": the old root ends up on top of the new one.
    // SAFETY: both paths end with a zero and live longer than the call.
    let pivoted = unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) };
    if pivoted == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    check(unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) })?;
    change_directory(c"/")
}

/// Makes a device as `like` is, which nobody but `user` may open: the host's may be root's alone.
fn make_device(like: &CStr, at: &CStr, user: &Identity) -> io::Result<()> {
    // SAFETY: a `stat` is numbers, for which zeros are valid.
    let mut found: libc::stat = unsafe { mem::zeroed() };
    // SAFETY: the path ends with a zero and lives longer than the call, which writes one `stat`.
    check(unsafe { libc::stat(like.as_ptr(), &raw mut found) })?;
    let mode = libc::S_IFCHR | 0o600;
    // SAFETY: the path ends with a zero and lives longer than the call.
    check(unsafe { libc::mknod(at.as_ptr(), mode, found.st_rdev) })?;
    let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
    // SAFETY: as above.
    let given = check(unsafe { libc::lchown(at.as_ptr(), uid, gid) });
    if given.is_err() {
        // SAFETY: as above.
        unsafe { libc::unlink(at.as_ptr()) };
    }
    given.map(drop)
}

fn mount_file(from: &CStr, to: &CStr) -> io::Result<()> {
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY | libc::O_CLOEXEC;
    // SAFETY: the path ends with a zero and lives longer than the call.
    let file = check(unsafe { libc::open(to.as_ptr(), flags, 0o644) })?;
    // SAFETY: the descriptor was opened here and is nobody else's.
    unsafe { libc::close(file) };
    mount(Some(from), to, None, libc::MS_BIND, None)
}

fn mount(
    from: Option<&CStr>,
    to: &CStr,
    kind: Option<&CStr>,
    flags: libc::c_ulong,
    options: Option<&CStr>,
) -> io::Result<()> {
    let pointer = |text: Option<&CStr>| text.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: every text ends with a zero and lives longer than the call, or is null where
    // mount(2) allows that.
    check(unsafe {
        libc::mount(
            pointer(from),
            to.as_ptr(),
            pointer(kind),
            flags,
            pointer(options).cast(),
        )
    })
    .map(drop)
}

fn change_directory(to: &CStr) -> io::Result<()> {
    // SAFETY: the path ends with a zero and lives longer than the call.
    check(unsafe { libc::chdir(to.as_ptr()) }).map(drop)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        other => Ok(other),
    }
}

fn c_string(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

/// The restrictions of a mount that another user namespace may not lift
/// (mount_namespaces(7), "Restrictions on mount namespaces").
fn kept(mounted: StatVfsMountFlags) -> libc::c_ulong {
    let restrictions = [
        (StatVfsMountFlags::NOSUID, libc::MS_NOSUID),
        (StatVfsMountFlags::NODEV, libc::MS_NODEV),
        (StatVfsMountFlags::NOEXEC, libc::MS_NOEXEC),
    ];
    let kept = restrictions
        .into_iter()
        .filter(|(restriction, _)| mounted.contains(*restriction));
    kept.fold(0, |all, (_, flag)| all | flag)
}

/// Whether a program is an ELF image that no other file belongs to (elf(5): it has no entry
/// `PT_INTERP`): only such a one can be put into a jail.
///
/// # Errors
/// It cannot be read.
pub(crate) fn is_static(program: &Path) -> io::Result<bool> {
    const INTERPRETER: u32 = 3;
    const CLASS_64: u8 = 2;
    let mut file = File::open(program)?;
    let mut head = [0; 64];
    match file.read_exact(&mut head) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        read => read?,
    }
    if !head.starts_with(b"\x7fELF") || head[4] != CLASS_64 {
        return Ok(false);
    }
    let half = |at: usize| u16::from_ne_bytes([head[at], head[at + 1]]);
    let (size, count) = (half(54), half(56));
    let table = u64::from_ne_bytes(head[32..40].try_into().expect("they are 8 bytes"));
    file.seek(SeekFrom::Start(table))?;
    for _ in 0..count {
        let mut entry = vec![0; usize::from(size.max(4))];
        file.read_exact(&mut entry)?;
        let kind: [u8; 4] = entry[..4].try_into().expect("they are 4 bytes");
        if u32::from_ne_bytes(kind) == INTERPRETER {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes the empty directory that a jail is mounted on.
///
/// # Errors
/// It cannot be made.
pub(crate) fn make_root(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mark;
    use crate::process::{Detached, Ended};
    use banger_proto::id::{InstanceId, VmId};
    use std::collections::BTreeSet;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    use std::os::unix::process::ExitStatusExt as _;
    use std::path::PathBuf;
    use std::process::ExitStatus;

    #[test]
    fn only_a_program_that_needs_no_other_file_is_put_into_a_jail() {
        let directory = tempfile::tempdir().unwrap();
        let jail = |program: &Path| Jail::new(program, directory.path(), directory.path()).unwrap();
        assert!(jail(Path::new("/proc/self/exe")).is_none());
        let script = directory.path().join("script");
        fs::write(&script, "#!/bin/sh\n").unwrap();
        assert!(jail(&script).is_none());
        assert!(Jail::new(&script.join("x"), directory.path(), directory.path()).is_err());
    }

    fn mark() -> Mark {
        Mark {
            instance: "0".repeat(32).parse::<InstanceId>().unwrap(),
            slot: 1,
            vm: VmId::new(),
        }
    }

    /// Containers may keep even their root from it.
    fn may_make_devices(directory: &Path) -> bool {
        use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
        let null = directory.join("null");
        mknodat(
            CWD,
            &null,
            FileType::CharacterDevice,
            Mode::RUSR,
            makedev(1, 3),
        )
        .is_ok()
    }

    /// The static program that there is.
    fn agent() -> Option<PathBuf> {
        let agent = PathBuf::from(std::env::var_os("BANGER_TEST_AGENT")?);
        is_static(&agent).is_ok_and(|it| it).then_some(agent)
    }

    /// Whom to jail, and which program; `None`, after saying why, if this run cannot.
    fn inmate(mark: &Mark) -> Option<(Identity, PathBuf)> {
        let Some(identity) = Identity::for_engine(&mark.instance, 1, None) else {
            eprintln!("skipped: only root mounts without a user namespace");
            return None;
        };
        let Some(agent) = agent() else {
            eprintln!("skipped: BANGER_TEST_AGENT names no static program");
            return None;
        };
        Some((identity, agent))
    }

    #[tokio::test]
    async fn a_jailed_program_has_its_directory_and_nothing_of_the_host() {
        let mark = mark();
        let Some((identity, agent)) = inmate(&mark) else {
            return;
        };
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["work", "root"] {
            fs::create_dir(at(name)).unwrap();
        }
        fs::set_permissions(at("work"), fs::Permissions::from_mode(0o777)).unwrap();
        let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
        let before = mounts();
        let inherited = File::open(&agent).unwrap();
        let process = Detached {
            arguments: ["serve", "--unix", "socket"].map(Into::into).into(),
            mark,
            inherited: vec![inherited.into()],
            output: None,
            log: File::create(at("log")).unwrap(),
            directory: None,
            space: None,
            jail: Jail::new(&agent, &at("work"), &at("root")).unwrap(),
            identity: Some(identity.clone()),
            cgroup: None,
            program: agent,
        }
        .spawn()
        .unwrap();

        let birth = crate::birth::Birth::watch(&at("work/socket")).unwrap();
        let limit = std::time::Duration::from_secs(20);
        tokio::time::timeout(limit, birth.happened())
            .await
            .expect("it makes its socket where it works")
            .unwrap();
        let socket = fs::metadata(at("work/socket")).unwrap();
        assert_eq!(socket.uid(), identity.uid.as_raw());
        let own = PathBuf::from(format!("/proc/{}", process.id().pid));
        let seen = |path: &str| -> BTreeSet<String> {
            let entries = fs::read_dir(own.join("root").join(path)).unwrap();
            let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name();
            entries
                .map(|entry| name(entry).into_string().unwrap())
                .collect()
        };
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(seen(""), names(&["dev", "firecracker", "proc", "run"]));
        assert_eq!(seen("proc"), names(&["self"]));
        assert!(seen("dev").is_subset(&names(&["kvm", "net"])));
        assert!(seen("proc/self").contains("fd"));
        if may_make_devices(directory.path()) && Path::new("/dev/net/tun").exists() {
            let tun = fs::metadata(own.join("root/dev/net/tun")).unwrap();
            let hosts = fs::metadata("/dev/net/tun").unwrap();
            assert_eq!(tun.rdev(), hosts.rdev());
            let owner = (tun.uid(), tun.mode() & 0o777);
            assert_eq!(owner, (identity.uid.as_raw(), 0o600));
        }
        assert_eq!(fs::read_link(own.join("cwd")).unwrap(), Path::new("/run"));
        let status = fs::read_to_string(own.join("status")).unwrap();
        let pid = process.id().pid;
        let ids = format!("NSpid:\t{pid}\t1\n");
        for line in ["NoNewPrivs:\t1", "CapPrm:\t0000000000000000", &ids] {
            assert!(status.contains(line), "{status}");
        }
        let stat = fs::read_to_string(own.join("stat")).unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        // Its parent, its group and its session.
        let pid = pid.to_string();
        assert_eq!(fields[1..4], [&std::process::id().to_string(), &pid, &pid]);
        let own_mounts = fs::read_to_string(own.join("mountinfo")).unwrap();
        let root = own_mounts.lines().find(|line| line.contains(" / / "));
        assert!(
            root.is_some_and(|root| root.contains(" ro,")),
            "{own_mounts}"
        );
        for namespace in ["mnt", "ipc", "uts", "pid"] {
            let of = |process: &Path| fs::read_link(process.join("ns").join(namespace)).unwrap();
            assert_ne!(of(&own), of(Path::new("/proc/self")), "{namespace}");
        }
        assert_eq!(mounts(), before, "nothing is mounted on the host");
        let killed = Ended::Status(ExitStatus::from_raw(libc::SIGKILL));
        assert_eq!(process.kill().await.unwrap(), killed);
        fs::remove_dir(at("root")).unwrap();
    }

    #[tokio::test]
    async fn a_program_that_cannot_be_jailed_is_an_error_and_leaves_no_process() {
        let mark = mark();
        let Some((identity, agent)) = inmate(&mark) else {
            return;
        };
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("work")).unwrap();
        let spawned = Detached {
            arguments: Vec::new(),
            mark,
            inherited: Vec::new(),
            output: None,
            log: File::create(at("log")).unwrap(),
            directory: None,
            space: None,
            // There is no directory to mount it on.
            jail: Jail::new(&agent, &at("work"), &at("root")).unwrap(),
            identity: Some(identity),
            cgroup: None,
            program: agent,
        }
        .spawn();
        assert_eq!(spawned.unwrap_err().kind(), io::ErrorKind::NotFound);
        let children = fs::read_to_string("/proc/thread-self/children").unwrap();
        assert_eq!(children, "");
    }
}

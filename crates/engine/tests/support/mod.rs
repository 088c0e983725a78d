//! A place for one machine, and guests of a few instructions that need no kernel.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::error::Error;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use banger_engine::{Access, Disk, Engine, MachineSpec, Place, process};
use banger_proto::agent::DiskRole;
use banger_proto::id::{InstanceId, VmId};
use banger_proto::size::ByteSize;

/// The host's processes as they are now.
pub fn look() -> process::Look {
    process::Look::take().unwrap()
}

/// A place of its own for a test. Its directory goes with it.
pub struct Home {
    directory: tempfile::TempDir,
    pub place: Place,
}

impl Home {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        // Everything is private, as the daemon's directories are: an engine of another user
        // must do without the paths.
        fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o700)).unwrap();
        let vm = VmId::new();
        let place = Place {
            instance: InstanceId::new(),
            slot: 7,
            vm,
            runtime_dir: directory.path().to_owned(),
            log_dir: directory.path().to_owned(),
        };
        Self { directory, place }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A file that only its owner may read.
    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        path
    }

    /// A machine that runs these instructions.
    pub fn spec(&self, guest: &[u8]) -> MachineSpec {
        MachineSpec {
            place: self.place.clone(),
            name: "calm-otter".parse().unwrap(),
            vcpu: 1,
            memory: ByteSize::from_mib(128),
            kernel: self.file("kernel", &elf(guest)),
            initrd: self.file("initrd", b"nothing"),
            cmdline: "console=ttyS0, quiet".to_owned(),
            disks: Vec::new(),
            nic: None,
        }
    }

    pub fn disk(&self, role: DiskRole, access: Access) -> Disk {
        Disk {
            role,
            path: self.file(role.as_str(), &[0; 1 << 20]),
            access,
        }
    }

    /// Asserts that nothing of the machine is left but its logs.
    pub async fn assert_released(&self, engine: &dyn Engine) {
        assert_eq!(process::marked(&self.place.instance).unwrap(), []);
        assert!(
            banger_engine::adopt(engine.kind(), &self.place, None, &look())
                .await
                .unwrap()
                .is_none()
        );
        let sockets: Vec<_> = fs::read_dir(self.directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "sock")
            })
            .collect();
        assert_eq!(sockets, [] as [PathBuf; 0]);
    }

    /// An error and its causes, a line each, without what differs from run to run.
    pub fn shown(&self, error: &dyn Error) -> String {
        let mut lines = vec![error.to_string()];
        let mut next = error.source();
        while let Some(cause) = next {
            lines.push(cause.to_string());
            next = cause.source();
        }
        lines
            .join("\n")
            .replace(&self.directory.path().display().to_string(), "HOME")
    }
}

impl Drop for Home {
    /// A machine outlives its test otherwise, if the test fails.
    fn drop(&mut self) {
        for found in process::marked(&self.place.instance).unwrap_or_default() {
            let pid = found.process.pid.cast_signed();
            // SAFETY: sends a signal to a process that carries this test's mark.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
}

/// The session of a process: field 6 of `/proc/<pid>/stat`.
pub fn session(pid: u32) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(')').unwrap();
    rest.split_whitespace().nth(3).unwrap().parse().unwrap()
}

/// A field of `/proc/<pid>/status`, its words separated by one space.
pub fn status(pid: u32, field: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/status"))
        .unwrap()
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .unwrap()
        .trim_start_matches(':')
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

/// Halts for ever.
pub const IDLE: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfd];
/// Switches the power off: writes SLP_EN to PM1a_CNT, where QEMU's firmware puts it.
pub const POWER_OFF: &[u8] = &[
    0x66, 0xba, 0x04, 0x06, // mov dx, 0x604
    0x66, 0xb8, 0x00, 0x20, // mov ax, 0x2000
    0x66, 0xef, // out dx, ax
    0xf4, 0xeb, 0xfd,
];
/// Restarts through the chip set's reset register.
pub const RESET: &[u8] = &[
    0x66, 0xba, 0xf9, 0x0c, // mov dx, 0xcf9
    0xb0, 0x06, 0xee, // mov al, 6; out dx, al
    0xf4, 0xeb, 0xfd,
];
/// Prints `hi` to the first serial line, then halts.
pub const HELLO: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'h', 0xee, 0xb0, b'i', 0xee, 0xb0, b'\n', 0xee, 0xfa, 0xf4, 0xeb, 0xfd,
];

/// An ELF image with a PVH entry point (Xen's docs/misc/pvh.pandoc) at 1 MiB, where `code`
/// is entered in 32-bit protected mode.
pub fn elf(code: &[u8]) -> Vec<u8> {
    const LOAD: u32 = 0x10_0000;
    const NOTE_AT: u32 = 0x100;
    const CODE_AT: u32 = 0x1000;
    let mut image = vec![0u8; 0x2000];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    let words =
        |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|word| word.to_le_bytes()).collect() };
    // ELF32, little endian; ET_EXEC, EM_386; two program headers.
    put(0, b"\x7fELF\x01\x01\x01");
    put(16, &[2, 0, 3, 0]);
    put(20, &words(&[1, LOAD, 52]));
    put(40, &[52, 0, 32, 0, 2, 0]);
    let size = u32::try_from(code.len()).unwrap();
    put(52, &words(&[1, CODE_AT, LOAD, LOAD, size, size, 5, 0x1000]));
    put(84, &words(&[4, NOTE_AT, 0, 0, 20, 20, 4, 4]));
    // The note: name "Xen", type 18 (XEN_ELFNOTE_PHYS32_ENTRY), the entry's address.
    put(NOTE_AT as usize, &words(&[4, 4, 18]));
    put(NOTE_AT as usize + 12, b"Xen\0");
    put(NOTE_AT as usize + 16, &LOAD.to_le_bytes());
    put(CODE_AT as usize, code);
    image
}

/// Whether a path is among those that a process has open.
pub fn has_open(pid: u32, path: &Path) -> bool {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .any(|target| target == path)
}

//! What the image has as its init, and how it is asked to power off.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

/// Kinds of PID 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// systemd.
    Systemd,
    /// openrc-init.
    OpenrcInit,
    /// OpenRC started by busybox init, as in Alpine.
    OpenrcBusybox,
    /// runit, as in Void.
    Runit,
    /// The init of System V, and whatever else is a program of its own at `/sbin/init`.
    Sysvinit,
    /// busybox init alone.
    Busybox,
    /// The image has none: banger stays.
    Banger,
}

/// What asks an init to power the machine off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// A signal to PID 1.
    Signal(i32),
    /// A command of the image.
    Command(&'static [&'static str]),
}

impl Init {
    /// Its word in [`banger_proto::agent::Health::init`].
    pub fn name(self) -> &'static str {
        match self {
            Self::Systemd => "systemd",
            Self::OpenrcInit | Self::OpenrcBusybox => "openrc",
            Self::Runit => "runit",
            Self::Sysvinit => "sysvinit",
            Self::Busybox => "busybox",
            Self::Banger => "banger",
        }
    }

    /// The program to hand PID 1 to.
    pub fn path(self) -> Option<&'static str> {
        match self {
            Self::Banger => None,
            _ => Some("/sbin/init"),
        }
    }

    /// How it is asked to power off.
    pub fn power_off(self) -> Request {
        match self {
            // systemd(1), signals: SIGRTMIN+4 starts poweroff.target.
            Self::Systemd => Request::Signal(libc::SIGRTMIN() + 4),
            // busybox's init/init.c: SIGUSR2 is power off.
            Self::Busybox | Self::OpenrcBusybox => Request::Signal(libc::SIGUSR2),
            Self::OpenrcInit => Request::Command(&["/sbin/openrc-shutdown", "--poweroff", "now"]),
            Self::Runit => Request::Command(&["/sbin/init", "0"]),
            Self::Sysvinit => Request::Command(&["/sbin/shutdown", "-h", "-P", "now"]),
            Self::Banger => Request::Signal(super::stay::POWER_OFF),
        }
    }
}

/// Looks what init the image at `root` has.
pub fn detect(root: &Path) -> Init {
    let Some(program) = resolve(root, "/sbin/init").filter(|path| is_executable(root, path)) else {
        return Init::Banger;
    };
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    match &*name {
        "systemd" => Init::Systemd,
        "openrc-init" => Init::OpenrcInit,
        "runit-init" | "runit" => Init::Runit,
        "busybox" | "busybox-static" => detect_busybox(root),
        _ => Init::Sysvinit,
    }
}

/// Every image with busybox has its init; it is of use only with a table to work from.
fn detect_busybox(root: &Path) -> Init {
    let Some(table) = resolve(root, "/etc/inittab") else {
        return Init::Banger;
    };
    let table = fs::read_to_string(inside(root, &table)).unwrap_or_default();
    let starts_openrc = table
        .lines()
        .any(|line| !line.starts_with('#') && line.contains("openrc"));
    match (starts_openrc, resolve(root, "/sbin/openrc")) {
        (true, Some(_)) => Init::OpenrcBusybox,
        (true, None) => Init::Banger,
        (false, _) => Init::Busybox,
    }
}

/// Follows symbolic links as they will be followed once `root` is the root.
fn resolve(root: &Path, path: &str) -> Option<PathBuf> {
    let open = || -> io::Result<PathBuf> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, root, flags, Mode::empty())?;
        let file = rustix::fs::openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
        fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
    };
    let found = open().ok()?;
    let relative = found.strip_prefix(root.canonicalize().ok()?).ok()?;
    Some(Path::new("/").join(relative))
}

fn is_executable(root: &Path, path: &Path) -> bool {
    fs::metadata(inside(root, path))
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Image(tempfile::TempDir);

    impl Image {
        fn new() -> Self {
            let image = Self(tempfile::tempdir().unwrap());
            for directory in ["usr/sbin", "usr/bin", "usr/lib/systemd", "etc"] {
                fs::create_dir_all(image.0.path().join(directory)).unwrap();
            }
            symlink("usr/sbin", image.0.path().join("sbin")).unwrap();
            symlink("/usr/bin", image.0.path().join("bin")).unwrap();
            symlink("usr/lib", image.0.path().join("lib")).unwrap();
            image
        }

        fn program(self, path: &str) -> Self {
            fs::write(self.0.path().join(path), "\x7fELF").unwrap();
            fs::set_permissions(self.0.path().join(path), PermissionsExt::from_mode(0o755))
                .unwrap();
            self
        }

        fn link(self, target: &str, path: &str) -> Self {
            symlink(target, self.0.path().join(path)).unwrap();
            self
        }

        fn file(self, path: &str, text: &str) -> Self {
            fs::write(self.0.path().join(path), text).unwrap();
            self
        }

        fn init(&self) -> Init {
            detect(self.0.path())
        }
    }

    #[test]
    fn each_kind_of_image_has_its_init() {
        let alpine = "::sysinit:/sbin/openrc sysinit\n";
        let cases = [
            (Image::new(), Init::Banger),
            (
                Image::new()
                    .program("usr/lib/systemd/systemd")
                    .link("/lib/systemd/systemd", "usr/sbin/init"),
                Init::Systemd,
            ),
            (Image::new().program("usr/sbin/init"), Init::Sysvinit),
            (
                Image::new()
                    .program("usr/bin/runit-init")
                    .link("/bin/runit-init", "usr/sbin/init"),
                Init::Runit,
            ),
            (
                Image::new()
                    .program("usr/sbin/openrc-init")
                    .link("openrc-init", "usr/sbin/init"),
                Init::OpenrcInit,
            ),
            (
                Image::new()
                    .program("usr/bin/busybox")
                    .link("/bin/busybox", "usr/sbin/init"),
                Init::Banger,
            ),
            (
                Image::new()
                    .program("usr/bin/busybox")
                    .link("/bin/busybox", "usr/sbin/init")
                    .file("etc/inittab", "::respawn:/bin/sh\n"),
                Init::Busybox,
            ),
            (
                Image::new()
                    .program("usr/bin/busybox")
                    .link("/bin/busybox", "usr/sbin/init")
                    .file("etc/inittab", alpine),
                Init::Banger,
            ),
            (
                Image::new()
                    .program("usr/bin/busybox")
                    .program("usr/sbin/openrc")
                    .link("/bin/busybox", "usr/sbin/init")
                    .file("etc/inittab", alpine),
                Init::OpenrcBusybox,
            ),
            (Image::new().link("/nowhere", "usr/sbin/init"), Init::Banger),
            (
                Image::new().file("usr/sbin/init", "not executable"),
                Init::Banger,
            ),
        ];
        for (image, init) in cases {
            assert_eq!(image.init(), init);
        }
    }
}

//! Which files in the image's root say who this guest is.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::mount::MountFlags;

use super::cmdline::Interface;
use super::root::mount_new;
use crate::report::BootReport;

/// Keeps systemd-tmpfiles from emptying `/tmp` under commands that already run: Debian's
/// own line is `D /tmp`, whose `D` does that at boot (tmpfiles.d(5)).
const TMPFILES: &str = "d /tmp 1777 root root -\nd /var/tmp 1777 root root 30d\n";

/// Writes hostname, hosts, resolver, machine id, and what keeps `/tmp` as it is. What does
/// not work is a warning.
pub(super) fn write_identity(root: &Path, interface: Option<&Interface>, report: &mut BootReport) {
    let mut warn = |what, result: io::Result<()>| super::warn(report, what, result);
    let hostname = interface.and_then(|interface| interface.hostname.as_deref());
    warn("/etc", fs::create_dir_all(root.join("etc")));
    if let Some(hostname) = hostname {
        warn("hostname", crate::identity::set_hostname(hostname));
        // The image's init reads it and would set the image's name.
        warn(
            "/etc/hostname",
            replace(&root.join("etc/hostname"), &format!("{hostname}\n")),
        );
    }
    warn(
        "/etc/hosts",
        write_hosts(root, hostname.unwrap_or("localhost")),
    );
    if let Some(resolver) = interface.and_then(|interface| interface.resolver) {
        let text = format!("nameserver {resolver}\n");
        warn(
            "/etc/resolv.conf",
            replace(&root.join("etc/resolv.conf"), &text),
        );
    }
    warn("/etc/machine-id", write_machine_id(root));
    warn("/tmp", keep_tmp(root));
}

/// Adds the lines that the guest needs and leaves the others alone.
fn write_hosts(root: &Path, hostname: &str) -> io::Result<()> {
    let path = root.join("etc/hosts");
    let before = fs::read_to_string(&path).unwrap_or_default();
    let after = hosts(&before, hostname);
    if after == before {
        return Ok(());
    }
    replace(&path, &after)
}

fn hosts(before: &str, hostname: &str) -> String {
    let own = format!("127.0.1.1\t{hostname}");
    let has = |name: &str| {
        before
            .lines()
            .filter(|line| !line.starts_with("127.0.1.1"))
            .map(|line| line.split('#').next().unwrap_or_default())
            .any(|line| {
                line.split_ascii_whitespace()
                    .skip(1)
                    .any(|word| word == name)
            })
    };
    let mut lines: Vec<&str> = before
        .lines()
        .filter(|line| !line.starts_with("127.0.1.1"))
        .collect();
    if !has("localhost") {
        lines.insert(0, "127.0.0.1\tlocalhost");
        lines.insert(1, "::1\tlocalhost ip6-localhost ip6-loopback");
    }
    if !has(hostname) {
        lines.push(&own);
    }
    lines.join("\n") + "\n"
}

/// Makes an id once. Without one systemd takes the boot for the machine's first and applies
/// its presets (machine-id(5)).
fn write_machine_id(root: &Path) -> io::Result<()> {
    let path = root.join("etc/machine-id");
    let before = fs::read_to_string(&path).unwrap_or_default();
    if !matches!(before.trim(), "" | "uninitialized") {
        return Ok(());
    }
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    replace(&path, &format!("{}\n", uuid.trim().replace('-', "")))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444))
}

/// Commands may use `/tmp` before the image's init is up.
fn keep_tmp(root: &Path) -> io::Result<()> {
    let tmp = root.join("tmp");
    if !tmp.exists() {
        fs::create_dir(&tmp)?;
        fs::set_permissions(&tmp, fs::Permissions::from_mode(0o1777))?;
    }
    // A unit that would later mount over what is there finds its work done.
    let unit = "systemd/system/local-fs.target.wants/tmp.mount";
    if ["usr/lib", "lib", "etc"]
        .iter()
        .any(|parent| root.join(parent).join(unit).is_symlink())
    {
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        let options = "mode=1777,size=50%,nr_inodes=1m";
        mount_new("tmpfs", &tmp.to_string_lossy(), "tmpfs", flags, options)
            .map_err(io::Error::other)?;
    }
    let directory = root.join("run/tmpfiles.d");
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("tmp.conf"), TMPFILES)
}

/// Writes a file in the place of whatever is there: a symbolic link may point nowhere, or,
/// being absolute, out of the image's root.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    if path.is_symlink() {
        fs::remove_file(path)?;
    }
    fs::write(path, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_get_what_they_lack_and_keep_the_rest() {
        let fresh = hosts("", "calm-otter");
        assert_eq!(
            fresh,
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             127.0.1.1\tcalm-otter\n"
        );
        assert_eq!(hosts(&fresh, "calm-otter"), fresh);
        let renamed = hosts("127.0.0.1 localhost\n127.0.1.1 old\n10.0.0.1 db\n", "new");
        assert_eq!(
            renamed,
            "127.0.0.1 localhost\n10.0.0.1 db\n127.0.1.1\tnew\n"
        );
    }

    #[test]
    fn a_machine_id_is_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("etc/machine-id");
        fs::create_dir(directory.path().join("etc")).unwrap();
        fs::write(&path, "uninitialized\n").unwrap();
        write_machine_id(directory.path()).unwrap();
        let id = fs::read_to_string(&path).unwrap();
        assert_eq!(id.trim().len(), 32);
        assert!(
            id.trim().bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{id}"
        );
        write_machine_id(directory.path()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), id);
    }

    #[test]
    fn a_resolver_link_to_nowhere_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        std::os::unix::fs::symlink("/run/nowhere/stub-resolv.conf", &path).unwrap();
        replace(&path, "nameserver 172.16.0.1\n").unwrap();
        assert!(!path.is_symlink());
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "nameserver 172.16.0.1\n"
        );
    }
}

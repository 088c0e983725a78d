//! What is changed in a Debian tree so that it boots quickly as one of many machines.

use crate::ext4::{Attributes, Ext4Error, Writer};

/// What would be the same in every machine, or is the building host's.
const REMOVED: [&str; 21] = [
    "etc/hostname",
    "etc/resolv.conf",
    "etc/ssh/ssh_host_ecdsa_key",
    "etc/ssh/ssh_host_ecdsa_key.pub",
    "etc/ssh/ssh_host_ed25519_key",
    "etc/ssh/ssh_host_ed25519_key.pub",
    "etc/ssh/ssh_host_rsa_key",
    "etc/ssh/ssh_host_rsa_key.pub",
    "var/lib/dbus/machine-id",
    // Timers that wake a machine which lives for an hour.
    "etc/systemd/system/timers.target.wants/apt-daily.timer",
    "etc/systemd/system/timers.target.wants/apt-daily-upgrade.timer",
    "etc/systemd/system/timers.target.wants/dpkg-db-backup.timer",
    "etc/systemd/system/timers.target.wants/e2scrub_all.timer",
    "etc/systemd/system/timers.target.wants/fstrim.timer",
    "etc/systemd/system/multi-user.target.wants/e2scrub_reap.service",
    // banger's agent serves ssh; docker is started by its socket when it is first used.
    "etc/systemd/system/multi-user.target.wants/ssh.service",
    "etc/systemd/system/sshd.service",
    "etc/systemd/system/multi-user.target.wants/containerd.service",
    "etc/systemd/system/multi-user.target.wants/docker.service",
    // Its profiles are for programs that are not there; Docker loads its own.
    "etc/systemd/system/sysinit.target.wants/apparmor.service",
    // Nobody sits at a screen.
    "etc/systemd/system/getty.target.wants/getty@tty1.service",
];

/// Files that are written, in place of those there.
const WRITTEN: [(&str, &str); 4] = [
    // Empty: systemd makes a new one at boot, and does not take it for a first boot.
    ("etc/machine-id", ""),
    ("etc/fstab", "# banger's agent mounts the disks.\n"),
    ("etc/default/locale", "LANG=C.UTF-8\n"),
    // The image has no host keys: whoever enables ssh gets new ones.
    (
        "etc/systemd/system/ssh.service.d/host-keys.conf",
        "[Service]\nExecStartPre=\nExecStartPre=/usr/bin/ssh-keygen -A\nExecStartPre=/usr/sbin/sshd -t\n",
    ),
];

/// Units that must not start: the console belongs to the log.
const MASKED: [&str; 2] = [
    "etc/systemd/system/serial-getty@ttyS0.service",
    "etc/systemd/system/console-getty.service",
];

/// Changes the tree in `writer`.
pub(super) fn apply(writer: &mut Writer) -> Result<(), Ext4Error> {
    for path in REMOVED {
        writer.remove(path.as_bytes())?;
    }
    for (path, content) in WRITTEN {
        let attributes = Attributes {
            mode: 0o644,
            ..Attributes::default()
        };
        writer.file(
            path.as_bytes(),
            &attributes,
            &mut content.as_bytes(),
            content.len() as u64,
        )?;
    }
    for path in MASKED {
        writer.symlink(path.as_bytes(), &Attributes::default(), b"/dev/null")?;
    }
    Ok(())
}

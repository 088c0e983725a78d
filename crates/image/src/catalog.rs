//! What banger knows how to make: the images and kernels that are built in.

use banger_proto::name::ArtifactName;

/// A kernel and where it may come from.
#[derive(Debug)]
pub(crate) struct KernelEntry {
    pub(crate) name: &'static str,
    /// What the version of its package must begin with.
    pub(crate) version: &'static str,
    /// Suites and the package that has it there, best first.
    pub(crate) candidates: &'static [(&'static str, &'static str)],
}

/// An image and what it is made of.
#[derive(Debug)]
pub(crate) struct ImageEntry {
    pub(crate) name: &'static str,
    pub(crate) distro: &'static str,
    pub(crate) kernel: &'static str,
    /// Debian's name of the release.
    pub(crate) release: &'static str,
    /// Packages beyond the essential ones and apt.
    pub(crate) packages: &'static [&'static str],
}

const KERNELS: [KernelEntry; 2] = [
    KernelEntry {
        name: "generic-6.12",
        version: "6.12.",
        candidates: &[
            ("bookworm-security", "linux-image-6.12-cloud-amd64"),
            ("trixie-security", "linux-image-cloud-amd64"),
            ("trixie", "linux-image-cloud-amd64"),
        ],
    },
    KernelEntry {
        name: "generic-6.1",
        version: "6.1.",
        candidates: &[
            ("bookworm-security", "linux-image-cloud-amd64"),
            ("bookworm", "linux-image-cloud-amd64"),
        ],
    },
];

const IMAGES: [ImageEntry; 2] = [
    ImageEntry {
        name: "debian-bookworm",
        distro: "debian 12",
        kernel: "generic-6.12",
        release: "bookworm",
        packages: &[
            "bash-completion",
            "bzip2",
            "ca-certificates",
            "curl",
            "dbus",
            "docker.io",
            "file",
            "g++",
            "gcc",
            "git",
            "htop",
            "iproute2",
            "iptables",
            "iputils-ping",
            "jq",
            "kmod",
            "less",
            "libc6-dev",
            "locales",
            "lsof",
            "make",
            "nano",
            "netcat-openbsd",
            "openssh-server",
            "patch",
            "pkg-config",
            "procps",
            "psmisc",
            "python3",
            "python3-venv",
            "ripgrep",
            "rsync",
            "strace",
            "sudo",
            "systemd-sysv",
            "tmux",
            "tree",
            "unzip",
            "vim",
            "wget",
            "xz-utils",
            "zip",
            "zstd",
        ],
    },
    ImageEntry {
        name: "debian-bookworm-slim",
        distro: "debian 12",
        kernel: "generic-6.12",
        release: "bookworm",
        packages: &[
            "ca-certificates",
            "curl",
            "git",
            "iproute2",
            "iputils-ping",
            "kmod",
            "less",
            "openssh-server",
            "procps",
            "systemd-sysv",
            "vim-tiny",
        ],
    },
];

/// The kernel of images that do not say which one they need.
pub fn default_kernel() -> ArtifactName {
    KERNELS[0]
        .name
        .parse()
        .expect("the names of the catalog are valid")
}

/// The kernel called `name`.
pub(crate) fn kernel(name: &ArtifactName) -> Option<&'static KernelEntry> {
    KERNELS.iter().find(|entry| entry.name == name.as_str())
}

/// The image called `name`.
pub(crate) fn image(name: &ArtifactName) -> Option<&'static ImageEntry> {
    IMAGES.iter().find(|entry| entry.name == name.as_str())
}

/// Names of all kernels.
pub(crate) fn kernel_names() -> Vec<String> {
    KERNELS.iter().map(|entry| entry.name.to_owned()).collect()
}

/// Names of all images.
pub(crate) fn image_names() -> Vec<String> {
    IMAGES.iter().map(|entry| entry.name.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_image_has_a_valid_name_and_a_kernel_that_is_known() {
        for image in &IMAGES {
            image.name.parse::<ArtifactName>().unwrap();
            assert!(
                kernel(&image.kernel.parse().unwrap()).is_some(),
                "{}",
                image.name
            );
            assert!(image.packages.is_sorted(), "{}", image.name);
        }
    }
}

//! What a new VM gets if neither the command line nor the config says otherwise, and where
//! each value comes from.

use banger_proto::size::ByteSize;

use crate::file::VmDefaults;

/// What the host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostResources {
    /// Number of CPUs that this process may use.
    pub cpus: u32,
    /// Memory of the host.
    pub memory: ByteSize,
}

impl HostResources {
    /// Reads this host's.
    pub fn read() -> Self {
        let cpus = std::thread::available_parallelism()
            .map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX));
        let memory = std::fs::read_to_string("/proc/meminfo")
            .ok()
            .and_then(|text| total_memory(&text))
            .unwrap_or(ByteSize::from_gib(4));
        Self { cpus, memory }
    }
}

/// A value, and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved<T> {
    /// The value.
    pub value: T,
    /// Where it comes from, in words.
    pub origin: &'static str,
}

/// What a new VM gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResolvedDefaults {
    /// Number of virtual CPUs: a quarter of the host's, 1 to 4.
    pub vcpu: Resolved<u32>,
    /// Memory: an eighth of the host's, 512 MiB to 8 GiB.
    pub memory: Resolved<ByteSize>,
    /// Size of the work disk: 8 GiB.
    pub disk_size: Resolved<ByteSize>,
    /// Size of the system disk: 8 GiB.
    pub system_size: Resolved<ByteSize>,
}

/// Works out what a new VM gets.
pub fn resolve(config: &VmDefaults, host: HostResources) -> ResolvedDefaults {
    fn pick<T>(config: Option<T>, otherwise: T, origin: &'static str) -> Resolved<T> {
        match config {
            Some(value) => Resolved {
                value,
                origin: "the config file",
            },
            None => Resolved {
                value: otherwise,
                origin,
            },
        }
    }
    let memory = (host.memory.mib() / 8).clamp(512, 8 * 1024);
    ResolvedDefaults {
        vcpu: pick(
            config.vcpu,
            (host.cpus / 4).clamp(1, 4),
            "a quarter of the host's CPUs, 1 to 4",
        ),
        memory: pick(
            config.memory,
            ByteSize::from_mib(memory),
            "an eighth of the host's memory, 512M to 8G",
        ),
        disk_size: pick(config.disk_size, ByteSize::from_gib(8), "built in"),
        system_size: pick(config.system_size, ByteSize::from_gib(8), "built in"),
    }
}

/// Reads `MemTotal` of `/proc/meminfo` (proc_meminfo(5): in units of 1024 bytes).
fn total_memory(meminfo: &str) -> Option<ByteSize> {
    let line = meminfo.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(ByteSize::from_bytes(kib.checked_mul(1024)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vcpu_and_mib(cpus: u32, memory: ByteSize) -> (u32, u64) {
        let resolved = resolve(&VmDefaults::default(), HostResources { cpus, memory });
        (resolved.vcpu.value, resolved.memory.value.mib())
    }

    #[test]
    fn defaults_follow_the_host_within_bounds() {
        assert_eq!(vcpu_and_mib(2, ByteSize::from_gib(2)), (1, 512));
        assert_eq!(vcpu_and_mib(8, ByteSize::from_gib(32)), (2, 4096));
        assert_eq!(vcpu_and_mib(128, ByteSize::from_gib(512)), (4, 8192));
    }

    #[test]
    fn the_config_wins_and_is_named() {
        let config = VmDefaults {
            memory: Some(ByteSize::from_gib(3)),
            ..VmDefaults::default()
        };
        let host = HostResources {
            cpus: 4,
            memory: ByteSize::from_gib(8),
        };
        let memory = resolve(&config, host).memory;
        assert_eq!(memory.value, ByteSize::from_gib(3));
        assert_eq!(memory.origin, "the config file");
    }

    #[test]
    fn meminfo_is_in_kib() {
        let text = "MemFree: 1 kB\nMemTotal:       24576 kB\n";
        assert_eq!(total_memory(text), Some(ByteSize::from_mib(24)));
        assert_eq!(total_memory("MemTotal: x"), None);
    }
}

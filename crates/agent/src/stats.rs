//! What the guest uses at the moment: proc(5) and statvfs(3).

use std::fs;
use std::os::unix::fs::MetadataExt;

use banger_proto::agent::{DiskUsage, NetworkUsage, Stats};
use banger_proto::size::ByteSize;
use rustix::fs::statvfs;

/// `USER_HZ`, which is 100 on every architecture that banger runs on (proc(5), `/proc/stat`).
const MICROSECONDS_PER_TICK: u64 = 10_000;

/// Takes a look. What cannot be read is left at zero.
pub fn read() -> Stats {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let devices = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    Stats {
        cpu_us: cpu_us(&stat),
        load: load_averages(&load),
        memory_total: memory_field(&memory, "MemTotal:"),
        memory_available: memory_field(&memory, "MemAvailable:"),
        disks: mounts().into_iter().filter_map(disk_usage).collect(),
        network: interfaces(&devices),
        processes: processes(),
        uptime_us: uptime_us(&uptime),
    }
}

/// All CPU time but idle and waiting; guest time is part of user time.
fn cpu_us(stat: &str) -> u64 {
    let line = stat
        .lines()
        .find(|line| line.starts_with("cpu "))
        .unwrap_or_default();
    let ticks: Vec<u64> = line
        .split_ascii_whitespace()
        .skip(1)
        .filter_map(|word| word.parse().ok())
        .collect();
    let used = [0, 1, 2, 5, 6, 7]
        .into_iter()
        .filter_map(|index| ticks.get(index));
    used.sum::<u64>() * MICROSECONDS_PER_TICK
}

fn load_averages(text: &str) -> [f64; 3] {
    let mut words = text
        .split_ascii_whitespace()
        .map(|word| word.parse().unwrap_or_default());
    [(); 3].map(|()| words.next().unwrap_or_default())
}

fn memory_field(text: &str, name: &str) -> Option<ByteSize> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(ByteSize::from_bytes(kib * 1024))
}

/// The first word of `/proc/uptime`: seconds with two digits behind the point.
fn uptime_us(text: &str) -> u64 {
    let Some((seconds, hundredths)) = text
        .split_ascii_whitespace()
        .next()
        .and_then(|word| word.split_once('.'))
    else {
        return 0;
    };
    let (seconds, hundredths): (u64, u64) = (
        seconds.parse().unwrap_or_default(),
        hundredths.parse().unwrap_or_default(),
    );
    seconds * 1_000_000 + hundredths * 10_000
}

/// The interfaces of `/proc/net/dev` but the loopback: behind the name's colon stand eight
/// numbers of what was received, bytes first, then eight of what was sent (proc_net(5)).
fn interfaces(devices: &str) -> Vec<NetworkUsage> {
    let interfaces = devices.lines().filter_map(|line| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers
            .split_ascii_whitespace()
            .map_while(|word| word.parse().ok())
            .collect();
        Some(NetworkUsage {
            name: name.trim().to_owned(),
            received: ByteSize::from_bytes(*numbers.first()?),
            sent: ByteSize::from_bytes(*numbers.get(8)?),
        })
    });
    interfaces.filter(|usage| usage.name != "lo").collect()
}

/// The root and, where it is a disk of its own, the work disk.
fn mounts() -> Vec<&'static str> {
    let device = |path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    match (device("/"), device("/root")) {
        (root, work) if work.is_some() && work != root => vec!["/", "/root"],
        _ => vec!["/"],
    }
}

fn disk_usage(mount: &str) -> Option<DiskUsage> {
    let usage = statvfs(mount).ok()?;
    Some(DiskUsage {
        mount: mount.to_owned(),
        total: ByteSize::from_bytes(usage.f_blocks * usage.f_frsize),
        available: ByteSize::from_bytes(usage.f_bavail * usage.f_frsize),
    })
}

fn processes() -> u64 {
    let entries = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    let names = entries.map(|entry| entry.file_name());
    let numbers = names.filter(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit));
    u64::try_from(numbers.count()).expect("a count fits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_understood() {
        let stat = "cpu  100 1 50 9000 30 2 3 4 60 0\ncpu0 1 1 1 1\n";
        assert_eq!(cpu_us(stat), 160 * MICROSECONDS_PER_TICK);
        assert_eq!(
            load_averages("0.50 1.25 2.00 1/200 999\n"),
            [0.5, 1.25, 2.0]
        );
        let memory = "MemTotal:         475124 kB\nMemFree: 1 kB\nMemAvailable:     9 kB\n";
        assert_eq!(
            memory_field(memory, "MemTotal:"),
            Some(ByteSize::from_bytes(475_124 * 1024))
        );
        assert_eq!(memory_field(memory, "SwapTotal:"), None);
    }

    #[test]
    fn interfaces_and_uptime_are_understood() {
        let devices = "Inter-|   Receive      |  Transmit\n face |bytes packets|bytes\n    \
            lo: 9 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n  \
            eth0: 1500 2 0 0 0 0 0 0 700 3 0 0 0 0 0 0\n";
        assert_eq!(
            interfaces(devices),
            [NetworkUsage {
                name: "eth0".to_owned(),
                received: ByteSize::from_bytes(1500),
                sent: ByteSize::from_bytes(700),
            }]
        );
        assert_eq!(uptime_us("12.34 20.00\n"), 12_340_000);
        assert_eq!(uptime_us("rubbish"), 0);
    }

    #[test]
    fn this_machine_has_what_every_machine_has() {
        let stats = read();
        assert!(stats.cpu_us > 0 && stats.processes > 0);
        assert!(stats.memory_total > stats.memory_available);
        assert_eq!(stats.disks[0].mount, "/");
    }
}

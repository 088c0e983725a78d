//! What VMs use, as a table, and how they do.

use std::collections::HashMap;
use std::time::Duration;

use banger_proto::agent::DiskUsage;
use banger_proto::api::{VmHealth, VmStats};
use banger_proto::id::VmId;
use banger_proto::size::ByteSize;

use crate::render::lists::rounded;
use crate::render::table::Table;
use crate::render::time::took;

/// What stands where nothing is known.
const UNKNOWN: &str = "-";

/// The counters of the last look, to make rates of the next one's.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    last: HashMap<VmId, Counters>,
}

#[derive(Clone, Copy, Debug)]
struct Counters {
    at_us: u64,
    /// Which engine process counted.
    pid: u32,
    cpu_us: u64,
}

/// A VM, and the share of one CPU that it used since the look before, in percent.
#[derive(Debug)]
pub(crate) struct Row {
    stats: VmStats,
    cpu: Option<f64>,
}

impl Looks {
    /// Takes a look, and gives what can be said since the one before.
    pub(crate) fn add(&mut self, stats: Vec<VmStats>) -> Vec<Row> {
        let before = std::mem::take(&mut self.last);
        stats
            .into_iter()
            .map(|stats| {
                let now = counters(&stats);
                self.last.extend(now.map(|now| (stats.vm.clone(), now)));
                let cpu = share(before.get(&stats.vm).copied(), now);
                Row { stats, cpu }
            })
            .collect()
    }
}

fn counters(stats: &VmStats) -> Option<Counters> {
    let host = stats.host.as_ref()?;
    Some(Counters {
        at_us: stats.at_us,
        pid: host.pid,
        cpu_us: host.cpu_us,
    })
}

/// `None` without two looks at the same process.
fn share(before: Option<Counters>, now: Option<Counters>) -> Option<f64> {
    let (before, now) = (before?, now?);
    let passed = now.at_us.checked_sub(before.at_us).filter(|us| *us > 0)?;
    let used = now.cpu_us.checked_sub(before.cpu_us)?;
    (before.pid == now.pid).then(|| 100.0 * used as f64 / passed as f64)
}

/// The table of `vm stats`.
pub(crate) fn stats_table(rows: &[Row]) -> String {
    let mut table = Table::new([
        "NAME",
        "STATE",
        "CPU",
        "MEMORY",
        "/",
        "/root",
        "RECEIVED",
        "SENT",
        "LOAD",
        "HOST MEMORY",
        "HOST DISK",
    ]);
    for Row { stats, cpu } in rows {
        let guest = stats.guest.as_ref();
        let memory = guest.and_then(|guest| {
            let total = guest.memory_total?;
            let used = total.bytes().checked_sub(guest.memory_available?.bytes())?;
            Some(of(ByteSize::from_bytes(used), total))
        });
        let disk = |mount: &str| {
            let disks = guest.map(|guest| &guest.disks[..]).unwrap_or_default();
            disks.iter().find(|disk| disk.mount == mount).map(filled)
        };
        let traffic = |bytes: fn(&banger_proto::agent::NetworkUsage) -> ByteSize| {
            let network = &guest?.network;
            let sum = network.iter().map(|nic| bytes(nic).bytes()).sum();
            Some(rounded(ByteSize::from_bytes(sum)))
        };
        let known = |cell: Option<String>| cell.unwrap_or_else(|| UNKNOWN.into());
        table.row([
            stats.vm_name.to_string(),
            stats.state.to_string(),
            known(cpu.map(|cpu| format!("{cpu:.1}%"))),
            known(memory),
            known(disk("/")),
            known(disk("/root")),
            known(traffic(|nic| nic.received)),
            known(traffic(|nic| nic.sent)),
            known(guest.map(|guest| format!("{:.2}", guest.load[0]))),
            known(stats.host.as_ref().map(|host| rounded(host.memory))),
            rounded(stats.disk_used),
        ]);
    }
    table.render()
}

fn filled(disk: &DiskUsage) -> String {
    let used = disk.total.bytes().saturating_sub(disk.available.bytes());
    of(ByteSize::from_bytes(used), disk.total)
}

fn of(used: ByteSize, total: ByteSize) -> String {
    format!("{} of {}", rounded(used), rounded(total))
}

/// The table of `vm health`.
pub(crate) fn health_table(vms: &[VmHealth]) -> String {
    let mut table = Table::new(["NAME", "HEALTHY", "STATE", "ANSWERED IN", "UP", "NOTE"]);
    for health in vms {
        let agent = health.agent.as_ref();
        let note = match (&health.error, agent) {
            (Some(error), _) => error.to_string(),
            (None, Some(agent)) => agent.warnings.join("; "),
            (None, None) => String::new(),
        };
        table.row([
            health.vm_name.to_string(),
            if health.healthy { "yes" } else { "no" }.into(),
            health.state.to_string(),
            health
                .round_trip_ms
                .map_or_else(|| UNKNOWN.into(), |ms| format!("{ms:.1} ms")),
            agent.map_or_else(
                || UNKNOWN.into(),
                |agent| took(Duration::from_micros(agent.uptime_us)),
            ),
            note,
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_proto::agent::{Health, NetworkUsage, Stats};
    use banger_proto::api::{HostUsage, VmState};
    use banger_proto::error::{ApiError, ErrorKind};

    fn stats(name: &str, at_us: u64, cpu_us: u64) -> VmStats {
        VmStats {
            vm: "0123456789abcdef0123456789abcdef".parse().unwrap(),
            vm_name: name.parse().unwrap(),
            node: "here".into(),
            state: VmState::Running,
            at_us,
            host: Some(HostUsage {
                pid: 7,
                cpu_us,
                memory: ByteSize::from_mib(312),
            }),
            guest: Some(Stats {
                load: [0.25, 0.0, 0.0],
                memory_total: Some(ByteSize::from_mib(512)),
                memory_available: Some(ByteSize::from_mib(400)),
                disks: vec![DiskUsage {
                    mount: "/root".into(),
                    total: ByteSize::from_gib(8),
                    available: ByteSize::from_gib(6),
                }],
                network: vec![NetworkUsage {
                    name: "eth0".into(),
                    received: ByteSize::from_mib(3),
                    sent: ByteSize::from_bytes(2000),
                }],
                ..Stats::default()
            }),
            guest_error: None,
            disk_used: ByteSize::from_mib(90),
        }
    }

    #[test]
    fn rates_need_two_looks_at_the_same_process() {
        let mut looks = Looks::default();
        assert_eq!(looks.add(vec![stats("a", 1_000_000, 500_000)])[0].cpu, None);
        let rows = looks.add(vec![stats("a", 2_000_000, 2_000_000)]);
        assert_eq!(rows[0].cpu, Some(150.0));
        let mut restarted = stats("a", 3_000_000, 2_100_000);
        restarted.host.as_mut().unwrap().pid = 8;
        assert_eq!(looks.add(vec![restarted])[0].cpu, None);
        let mut stopped = stats("a", 4_000_000, 0);
        stopped.host = None;
        assert_eq!(looks.add(vec![stopped])[0].cpu, None);
    }

    #[test]
    fn what_vms_use_lines_up() {
        let mut looks = Looks::default();
        looks.add(vec![stats("calm-otter", 0, 0)]);
        let mut rows = looks.add(vec![stats("calm-otter", 1_000_000, 123_000)]);
        let mut stopped = stats("ox", 5, 5);
        stopped.state = VmState::Stopped;
        (stopped.host, stopped.guest) = (None, None);
        rows.extend(Looks::default().add(vec![stopped]));
        insta::assert_snapshot!(stats_table(&rows));
    }

    #[test]
    fn health_says_why_not() {
        let well = VmHealth {
            vm: "0123456789abcdef0123456789abcdef".parse().unwrap(),
            vm_name: "calm-otter".parse().unwrap(),
            state: VmState::Running,
            healthy: true,
            round_trip_ms: Some(0.42),
            agent: Some(Health {
                version: "0.1.0".into(),
                protocol: 1,
                kernel: "6.12".into(),
                boot_id: "x".into(),
                uptime_us: 65_000_000,
                init: "systemd".into(),
                boot: Vec::new(),
                warnings: Vec::new(),
            }),
            error: None,
        };
        let ill = VmHealth {
            vm_name: "ox".parse().unwrap(),
            state: VmState::Paused,
            healthy: false,
            round_trip_ms: None,
            agent: None,
            error: Some(ApiError::new(ErrorKind::Conflict, "it is paused")),
            ..well.clone()
        };
        insta::assert_snapshot!(health_table(&[well, ill]));
    }
}

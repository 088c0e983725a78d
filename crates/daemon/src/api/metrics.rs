//! `GET /metrics`: what the daemon and its VMs use and have done, in Prometheus' text format
//! 0.0.4 (<https://prometheus.io/docs/instrumenting/exposition_formats/>). Everything is
//! looked at when it is asked for, and never in between.

use std::fmt::{self, Write as _};

use axum::Extension;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use banger_proto::api::{VmState, VmStats};
use banger_proto::id::RequestId;
use banger_proto::size::ByteSize;

use super::Api;
use crate::operations::Tally;
use crate::usage::{self, Counted};
use crate::vm::task::Status;

/// The format's content type.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

pub async fn metrics(State(api): State<Api>, Extension(id): Extension<RequestId>) -> Response {
    let vms: Vec<Status> = api.fleet.handles().iter().map(|vm| vm.status()).collect();
    let (stats, counted) = tokio::join!(usage::of_running(&api.fleet, &id), usage::counted(&vms));
    let look = Look {
        node: api.fleet.host().node.clone(),
        started_at: api.started.as_second(),
        process: crate::blocking(|| usage::of_process(std::process::id())).await,
        vms,
        stats,
        counted,
        tally: api.fleet.host().operations.tally(),
    };
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], render(&look)).into_response()
}

/// Everything that the metrics say, before it is put into words.
struct Look {
    node: String,
    /// Seconds since the Unix epoch.
    started_at: i64,
    process: Option<banger_proto::api::HostUsage>,
    vms: Vec<Status>,
    stats: Vec<VmStats>,
    counted: Vec<Counted>,
    tally: Tally,
}

fn render(look: &Look) -> String {
    let mut page = Page::default();
    of_daemon(&mut page, look);
    of_operations(&mut page, &look.tally);
    of_vms(&mut page, &look.vms);
    of_engines(&mut page, &look.stats);
    of_counters(&mut page, &look.counted);
    of_guests(&mut page, &look.stats);
    page.text
}

fn of_daemon(page: &mut Page, look: &Look) {
    let mut family = page.gauge("banger_info", "The daemon's version and host.");
    let labels = [("version", banger_proto::VERSION), ("node", &look.node)];
    family.sample(&labels, 1);
    // The names that Prometheus' own clients give to the process they are part of.
    page.gauge(
        "process_start_time_seconds",
        "When the daemon started, since the Unix epoch.",
    )
    .sample(&[], look.started_at);
    if let Some(process) = &look.process {
        page.counter(
            "process_cpu_seconds_total",
            "CPU time that the daemon has used.",
        )
        .sample(&[], seconds(process.cpu_us));
        page.gauge(
            "process_resident_memory_bytes",
            "Memory that the daemon holds.",
        )
        .sample(&[], process.memory.bytes());
    }
}

fn of_operations(page: &mut Page, tally: &Tally) {
    let mut begun = page.counter(
        "banger_operations_begun_total",
        "Operations that have begun, by what they do.",
    );
    for row in tally.rows() {
        begun.sample(&[("kind", &row.kind)], row.begun);
    }
    let mut ended = page.counter(
        "banger_operations_ended_total",
        "Operations that have ended, by what they do and how they ended.",
    );
    for row in tally.rows() {
        for (result, count) in [
            ("succeeded", row.succeeded),
            ("failed", row.failed),
            ("cancelled", row.cancelled),
        ] {
            ended.sample(&[("kind", &row.kind), ("result", result)], count);
        }
    }
}

fn of_vms(page: &mut Page, vms: &[Status]) {
    let mut family = page.gauge("banger_vms", "Number of VMs in each state.");
    for state in [
        VmState::Created,
        VmState::Starting,
        VmState::Running,
        VmState::Paused,
        VmState::Stopping,
        VmState::Stopped,
        VmState::Failed,
    ] {
        let count = vms.iter().filter(|vm| vm.row.phase.state() == state);
        family.sample(&[("state", &state.to_string())], count.count());
    }
    let mut family = page.gauge(
        "banger_vm_start_stage_seconds",
        "How long each stage of a VM's last start took.",
    );
    for vm in vms {
        for stage in &vm.row.stages {
            let labels = [
                ("vm", vm.row.name.as_str()),
                ("id", vm.row.id.as_str()),
                ("stage", &stage.stage),
            ];
            family.sample(&labels, stage.took_ms / 1e3);
        }
    }
}

/// What the engines' processes and the VMs' disks use on this host.
fn of_engines(page: &mut Page, stats: &[VmStats]) {
    let mut cpu = page.counter(
        "banger_vm_cpu_seconds_total",
        "CPU time that a VM's engine has used on the host.",
    );
    for vm in stats {
        if let Some(host) = &vm.host {
            cpu.sample(&labels(vm), seconds(host.cpu_us));
        }
    }
    let mut memory = page.gauge(
        "banger_vm_resident_memory_bytes",
        "Memory that a VM's engine holds on the host.",
    );
    for vm in stats {
        if let Some(host) = &vm.host {
            memory.sample(&labels(vm), host.memory.bytes());
        }
    }
    let mut disk = page.gauge(
        "banger_vm_disk_used_bytes",
        "What a VM's own disks take on the host.",
    );
    for vm in stats {
        disk.sample(&labels(vm), vm.disk_used.bytes());
    }
}

/// What the engines count, in their own words.
fn of_counters(page: &mut Page, counted: &[Counted]) {
    let mut family = page.counter(
        "banger_vm_engine_total",
        "What a VM's engine has counted since the daemon has it, in the engine's own words.",
    );
    for vm in counted {
        for (group, name, count) in vm.counters.iter() {
            let labels = [
                ("vm", vm.vm_name.as_str()),
                ("id", vm.vm.as_str()),
                ("group", group),
                ("counter", name),
            ];
            family.sample(&labels, count);
        }
    }
}

/// What the guests tell of themselves.
fn of_guests(page: &mut Page, stats: &[VmStats]) {
    let mut up = page.gauge("banger_vm_up", "Whether a VM's agent answers.");
    for vm in stats {
        up.sample(&labels(vm), u8::from(vm.guest.is_some()));
    }
    let guests = || stats.iter().filter_map(|vm| Some((vm, vm.guest.as_ref()?)));
    let mut cpu = page.counter(
        "banger_guest_cpu_seconds_total",
        "CPU time that a guest has used, as it counts itself.",
    );
    for (vm, guest) in guests() {
        cpu.sample(&labels(vm), seconds(guest.cpu_us));
    }
    let mut load = page.gauge("banger_guest_load", "A guest's load average.");
    for (vm, guest) in guests() {
        for (minutes, value) in ["1", "5", "15"].into_iter().zip(guest.load) {
            load.sample(&with(vm, ("minutes", minutes)), value);
        }
    }
    let mut processes = page.gauge("banger_guest_processes", "Number of a guest's processes.");
    for (vm, guest) in guests() {
        processes.sample(&labels(vm), guest.processes);
    }
    let mut bytes = |name, help, of: fn(&banger_proto::agent::Stats) -> Option<ByteSize>| {
        let mut family = page.gauge(name, help);
        for (vm, guest) in guests() {
            if let Some(size) = of(guest) {
                family.sample(&labels(vm), size.bytes());
            }
        }
    };
    bytes(
        "banger_guest_memory_bytes",
        "Memory that a guest has.",
        |guest| guest.memory_total,
    );
    bytes(
        "banger_guest_memory_available_bytes",
        "Memory that a guest can use without swapping.",
        |guest| guest.memory_available,
    );
    let mut size = page.gauge(
        "banger_guest_filesystem_bytes",
        "Size of a guest's file system.",
    );
    for (vm, guest) in guests() {
        for disk in &guest.disks {
            size.sample(&with(vm, ("mount", &disk.mount)), disk.total.bytes());
        }
    }
    let mut room = page.gauge(
        "banger_guest_filesystem_available_bytes",
        "What can still be written to a guest's file system.",
    );
    for (vm, guest) in guests() {
        for disk in &guest.disks {
            room.sample(&with(vm, ("mount", &disk.mount)), disk.available.bytes());
        }
    }
    let mut received = page.counter(
        "banger_guest_network_receive_bytes_total",
        "Bytes that a guest's network interface has received.",
    );
    for (vm, guest) in guests() {
        for nic in &guest.network {
            received.sample(&with(vm, ("device", &nic.name)), nic.received.bytes());
        }
    }
    let mut sent = page.counter(
        "banger_guest_network_transmit_bytes_total",
        "Bytes that a guest's network interface has sent.",
    );
    for (vm, guest) in guests() {
        for nic in &guest.network {
            sent.sample(&with(vm, ("device", &nic.name)), nic.sent.bytes());
        }
    }
}

/// The labels of everything that is about one VM.
fn labels(vm: &VmStats) -> [(&str, &str); 2] {
    [("vm", vm.vm_name.as_str()), ("id", vm.vm.as_str())]
}

fn with<'a>(vm: &'a VmStats, more: (&'a str, &'a str)) -> [(&'a str, &'a str); 3] {
    let [name, id] = labels(vm);
    [name, id, more]
}

fn seconds(microseconds: u64) -> f64 {
    std::time::Duration::from_micros(microseconds).as_secs_f64()
}

/// The text as it grows, one family of samples after the other.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn gauge(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "gauge", help)
    }

    fn counter(&mut self, name: &'static str, help: &str) -> Family<'_> {
        debug_assert!(name.ends_with("_total"), "counters are named so: {name}");
        self.family(name, "counter", help)
    }

    /// `help` holds neither a line's end nor a backslash, which would have to be escaped.
    fn family(&mut self, name: &'static str, kind: &str, help: &str) -> Family<'_> {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
        Family { page: self, name }
    }

    fn line(&mut self, line: fmt::Arguments<'_>) {
        writeln!(self.text, "{line}").expect("a string takes all");
    }
}

/// The samples of one name.
struct Family<'a> {
    page: &'a mut Page,
    name: &'static str,
}

impl Family<'_> {
    fn sample(&mut self, labels: &[(&str, &str)], value: impl fmt::Display) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
            .collect();
        match labels.is_empty() {
            true => self.page.line(format_args!("{} {value}", self.name)),
            false => {
                let labels = labels.join(",");
                self.page
                    .line(format_args!("{}{{{labels}}} {value}", self.name));
            }
        }
    }
}

/// A label's value as the format wants it.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::vms::tests::row;
    use crate::vm::lifecycle::Phase;
    use banger_engine::Counters;
    use banger_proto::agent::{DiskUsage, NetworkUsage, Stats};
    use banger_proto::api::{HostUsage, StageTime};

    fn look() -> Look {
        let mut row = row("calm-otter");
        row.id = "0123456789abcdef0123456789abcdef".parse().unwrap();
        row.phase = Phase::Running;
        row.stages = vec![StageTime {
            stage: "agent".to_owned(),
            begin_ms: 10.0,
            took_ms: 1500.0,
            failed: false,
        }];
        let mut counters = Counters::default();
        counters.add("block_work", "write_bytes", 4096);
        let counted = Counted {
            vm: row.id.clone(),
            vm_name: row.name.clone(),
            counters,
        };
        let usage = HostUsage {
            pid: 7,
            cpu_us: 1_250_000,
            memory: ByteSize::from_mib(3),
        };
        let stats = VmStats {
            vm: row.id.clone(),
            vm_name: row.name.clone(),
            node: "host".to_owned(),
            state: VmState::Running,
            at_us: 1,
            host: Some(usage.clone()),
            guest: Some(Stats {
                cpu_us: 500_000,
                load: [0.5, 0.25, 0.0],
                memory_total: Some(ByteSize::from_mib(512)),
                memory_available: None,
                disks: vec![DiskUsage {
                    mount: "/a \"b\"\\\n".to_owned(),
                    total: ByteSize::from_mib(64),
                    available: ByteSize::from_mib(60),
                }],
                network: vec![NetworkUsage {
                    name: "eth0".to_owned(),
                    received: ByteSize::from_bytes(10),
                    sent: ByteSize::from_bytes(20),
                }],
                processes: 12,
                uptime_us: 1,
            }),
            guest_error: None,
            disk_used: ByteSize::from_mib(1),
        };
        Look {
            node: "host".to_owned(),
            started_at: 1_700_000_000,
            process: Some(usage),
            vms: vec![Status {
                row,
                pid: Some(7),
                machine: None,
                guest: None,
                warnings: Vec::new(),
                gone: false,
            }],
            stats: vec![stats],
            counted: vec![counted],
            tally: Tally::default(),
        }
    }

    #[test]
    fn the_page_as_a_whole() {
        insta::assert_snapshot!(render(&look()).replace(banger_proto::VERSION, "VERSION"));
    }

    #[test]
    fn a_daemon_without_vms_has_metrics_too() {
        let mut look = look();
        look.vms.clear();
        look.stats.clear();
        look.counted.clear();
        let text = render(&look);
        assert!(text.contains("banger_vms{state=\"running\"} 0\n"), "{text}");
    }
}

//! VMs as a table, and one VM in full.

use std::time::Duration;

use banger_proto::agent::Health;
use banger_proto::api::{StageTime, Vm, VmState};
use jiff::Timestamp;

use crate::render::error::error_text;
use crate::render::style::Style;
use crate::render::table::Table;
use crate::render::time::{age, moment, moment_to_come, took};

/// The table of `vm list` and `vm ps`.
pub(crate) fn vm_table(vms: &[Vm], now: Timestamp) -> String {
    let mut table = Table::new([
        "NAME", "ID", "STATE", "IMAGE", "VCPU", "MEMORY", "DISK", "ADDRESS", "CREATED",
    ]);
    for vm in vms {
        table.row([
            vm.name.to_string(),
            vm.id.short().to_owned(),
            vm.state.to_string(),
            vm.image.to_string(),
            vm.vcpu.to_string(),
            vm.memory.to_string(),
            vm.disk_size.to_string(),
            vm.ip.clone().unwrap_or_else(|| "-".into()),
            age(&vm.created_at, now),
        ]);
    }
    table.render()
}

/// Everything about one VM, one fact a line; with what its agent tells, if that was asked.
pub(crate) fn vm_text(vm: &Vm, now: Timestamp, style: Style) -> String {
    let mut facts: Vec<(&str, String)> = vec![
        ("name", vm.name.to_string()),
        ("id", vm.id.to_string()),
        ("state", state(vm.state, style)),
    ];
    facts.extend(vm.reason.iter().map(|reason| ("reason", reason.clone())));
    facts.extend([("node", vm.node.clone()), ("image", vm.image.to_string())]);
    facts.extend(
        vm.kernel
            .iter()
            .map(|kernel| ("kernel", kernel.to_string())),
    );
    facts.extend([
        ("engine", format!("{} ({})", vm.engine, vm.engine_reason)),
        ("vcpu", vm.vcpu.to_string()),
        ("memory", vm.memory.to_string()),
        ("work disk", vm.disk_size.to_string()),
        ("system disk", vm.system_size.to_string()),
        (
            "outside",
            if vm.nat { "reachable" } else { "not reachable" }.to_owned(),
        ),
    ]);
    facts.extend(vm.ip.iter().map(|ip| ("address", ip.clone())));
    let loopback = vm.loopback.iter();
    facts.extend(loopback.map(|address| ("on this host", address.to_string())));
    facts.extend(vm.pid.iter().map(|pid| ("process", pid.to_string())));
    facts.extend(
        vm.labels
            .iter()
            .map(|(key, value)| ("label", format!("{key}={value}"))),
    );
    if vm.ephemeral {
        facts.push((
            "ephemeral",
            "deleted when the client that made it goes".into(),
        ));
    }
    facts.push(("created", moment(&vm.created_at, now)));
    facts.extend(
        vm.started_at
            .iter()
            .map(|started| ("started", moment(started, now))),
    );
    facts.extend(
        vm.last_used_at
            .iter()
            .map(|used| ("last used", moment(used, now))),
    );
    facts.extend(
        vm.expires_at
            .iter()
            .map(|end| ("deleted at", moment_to_come(end, now))),
    );
    facts.extend(vm.guest.iter().flat_map(guest_facts));
    let warnings = vm.warnings.iter();
    facts.extend(warnings.map(|warning| ("warning", warning.clone())));
    let mut text: String = facts
        .iter()
        .map(|(name, value)| format!("{name:12} {value}\n"))
        .collect();
    if !vm.stages.is_empty() {
        let end = |stage: &StageTime| stage.begin_ms + stage.took_ms;
        let whole = vm.stages.iter().map(end).fold(0.0, f64::max);
        text.push_str(&format!("{:12} {}\n", "last start", millis(whole)));
        text.push_str(&stage_lines(&vm.stages));
    }
    if let Some(failure) = &vm.failure {
        text.push_str(&error_text(failure, style));
    }
    text
}

fn guest_facts(guest: &Health) -> Vec<(&'static str, String)> {
    let up = took(Duration::from_micros(guest.uptime_us));
    let mut facts = vec![
        ("guest kernel", guest.kernel.clone()),
        ("guest init", format!("{}, up {up}", guest.init)),
        ("guest agent", guest.version.clone()),
    ];
    let warnings = guest.warnings.iter();
    facts.extend(warnings.map(|warning| ("warning", warning.clone())));
    facts
}

/// The stages of a start in the order in which they began, one a line.
pub(crate) fn stage_lines(stages: &[StageTime]) -> String {
    let mut stages: Vec<&StageTime> = stages.iter().collect();
    stages.sort_by(|a, b| a.begin_ms.total_cmp(&b.begin_ms));
    let line = |stage: &StageTime| format!("  {:10} {}\n", stage.stage, how_long(stage));
    stages.into_iter().map(line).collect()
}

/// The same in one line: `image 2 ms, engine 1.2 s, agent 2.1 s`.
pub(crate) fn stages_in_short(stages: &[StageTime]) -> String {
    let mut stages: Vec<&StageTime> = stages.iter().collect();
    stages.sort_by(|a, b| a.begin_ms.total_cmp(&b.begin_ms));
    let words = stages
        .into_iter()
        .map(|stage| format!("{} {}", stage.stage, how_long(stage)));
    words.collect::<Vec<_>>().join(", ")
}

fn how_long(stage: &StageTime) -> String {
    match stage.failed {
        false => millis(stage.took_ms),
        true => format!("failed after {}", millis(stage.took_ms)),
    }
}

fn millis(millis: f64) -> String {
    took(Duration::try_from_secs_f64(millis / 1000.0).unwrap_or_default())
}

fn state(state: VmState, style: Style) -> String {
    let word = state.as_str();
    match state {
        VmState::Running => style.green(word),
        VmState::Failed => style.red(word),
        VmState::Starting | VmState::Stopping | VmState::Paused => style.yellow(word),
        VmState::Created | VmState::Stopped => word.to_owned(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use banger_proto::api::EngineKind;
    use banger_proto::error::{ApiError, ErrorKind};
    use banger_proto::size::ByteSize;

    fn now() -> Timestamp {
        "2026-03-02T12:00:00Z".parse().unwrap()
    }

    pub(crate) fn vm(name: &str, state: VmState) -> Vm {
        Vm {
            id: "0123456789abcdef0123456789abcdef".parse().unwrap(),
            name: name.parse().unwrap(),
            node: "workstation".into(),
            state,
            failure: None,
            warnings: Vec::new(),
            reason: None,
            guest: None,
            image: "debian-bookworm".parse().unwrap(),
            image_id: None,
            kernel: Some("generic-6.12".parse().unwrap()),
            vcpu: 2,
            memory: ByteSize::from_gib(1),
            disk_size: ByteSize::from_gib(8),
            system_size: ByteSize::from_gib(8),
            engine: EngineKind::Qemu,
            engine_reason: "no usable KVM: software emulation".into(),
            nat: true,
            ip: Some("172.16.0.2".into()),
            loopback: Some([127, 77, 28, 1].into()),
            labels: [("team".to_owned(), "a".to_owned())].into(),
            ephemeral: true,
            created_at: "2026-03-02T11:55:00Z".into(),
            started_at: Some("2026-03-02T11:55:04Z".into()),
            expires_at: None,
            last_used_at: None,
            pid: Some(4242),
            stages: vec![StageTime {
                stage: "engine".into(),
                begin_ms: 3.2,
                took_ms: 2210.04,
                failed: false,
            }],
        }
    }

    #[test]
    fn vms_line_up() {
        let mut failed = vm("ox", VmState::Failed);
        failed.ip = None;
        let vms = [vm("calm-otter", VmState::Running), failed];
        insta::assert_snapshot!(vm_table(&vms, now()));
    }

    #[test]
    fn no_vms_are_a_line_of_headings() {
        assert_eq!(vm_table(&[], now()).lines().count(), 1);
    }

    #[test]
    fn a_vm_tells_everything() {
        let mut vm = vm("calm-otter", VmState::Failed);
        vm.failure = Some(
            ApiError::new(ErrorKind::Failed, "the engine died")
                .with_hint("look at `banger vm logs`"),
        );
        vm.expires_at = Some("2026-03-03T12:00:00Z".into());
        vm.last_used_at = Some("2026-03-02T11:58:00Z".into());
        vm.guest = Some(Health {
            version: "0.1.0".into(),
            protocol: 1,
            kernel: "6.12.1-cloud-amd64".into(),
            boot_id: "x".into(),
            uptime_us: 296_000_000,
            init: "systemd".into(),
            boot: Vec::new(),
            warnings: vec!["no time from the host".into()],
        });
        vm.stages.push(StageTime {
            stage: "agent".into(),
            begin_ms: 2213.3,
            took_ms: 30_000.0,
            failed: true,
        });
        insta::assert_snapshot!(vm_text(&vm, now(), Style::Plain));
        assert_eq!(
            stages_in_short(&vm.stages),
            "engine 2.2 s, agent failed after 30.0 s"
        );
    }

    #[test]
    fn a_vm_that_banger_stopped_says_why() {
        let mut vm = vm("calm-otter", VmState::Stopped);
        vm.reason = Some("nobody has used it for 30 min".into());
        let text = vm_text(&vm, now(), Style::Plain);
        assert!(
            text.contains("reason       nobody has used it for 30 min\n"),
            "{text}"
        );
    }
}

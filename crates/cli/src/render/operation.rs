//! Operations as a table, and one in full.

use banger_proto::api::{Operation, OperationKind, OperationState};
use jiff::Timestamp;

use crate::render::error::error_text;
use crate::render::style::Style;
use crate::render::table::Table;
use crate::render::time::{age, moment};
use crate::render::vm::stage_lines;

/// What an operation does, such as `creating VM`.
pub(crate) fn doing(kind: OperationKind) -> &'static str {
    match kind {
        OperationKind::CreateVm => "creating VM",
        OperationKind::StartVm => "starting VM",
        OperationKind::StopVm => "stopping VM",
        OperationKind::RestartVm => "restarting VM",
        OperationKind::KillVm => "killing VM",
        OperationKind::PauseVm => "pausing VM",
        OperationKind::ResumeVm => "resuming VM",
        OperationKind::SetVm => "changing VM",
        OperationKind::DeleteVm => "deleting VM",
        OperationKind::PullImage => "getting an image",
        OperationKind::PullKernel => "getting a kernel",
        OperationKind::InstallEngine => "installing an engine",
        OperationKind::UninstallEngine => "removing an engine",
        OperationKind::PromoteImage => "promoting an image",
        OperationKind::CommitVm => "making an image of VM",
        OperationKind::BuildImage => "building an image",
    }
}

/// What an operation does, and to which VM: ``creating VM `calm-otter` ``.
pub(crate) fn title(operation: &Operation) -> String {
    let doing = doing(operation.kind);
    match (&operation.vm_name, &operation.vm) {
        (Some(name), _) => format!("{doing} `{name}`"),
        (None, Some(id)) => format!("{doing} `{}`", id.short()),
        (None, None) => doing.to_owned(),
    }
}

/// The table of `operation list`.
pub(crate) fn operation_table(operations: &[Operation], now: Timestamp) -> String {
    let mut table = Table::new(["ID", "WHAT", "VM", "STATE", "BEGAN"]);
    for operation in operations {
        let name = operation.vm_name.as_ref().map(ToString::to_string);
        table.row([
            operation.id.short().to_owned(),
            doing(operation.kind).to_owned(),
            name.unwrap_or_else(|| "-".into()),
            operation.state.as_str().to_owned(),
            age(&operation.created_at, now),
        ]);
    }
    table.render()
}

/// Everything about one operation, one fact a line.
pub(crate) fn operation_text(operation: &Operation, now: Timestamp, style: Style) -> String {
    let word = operation.state.as_str();
    let word = match operation.state {
        OperationState::Running => style.yellow(word),
        OperationState::Succeeded => style.green(word),
        OperationState::Failed => style.red(word),
        OperationState::Cancelled => word.to_owned(),
    };
    let mut text = format!(
        "id           {}\nwhat         {}\nstate        {word}\nnode         {}\nbegan        {}\n",
        operation.id,
        title(operation),
        operation.node,
        moment(&operation.created_at, now),
    );
    if let Some(reason) = &operation.reason {
        text.push_str(&format!("reason       {reason}\n"));
    }
    if !operation.stages.is_empty() {
        text.push_str("stages\n");
        text.push_str(&stage_lines(&operation.stages));
    }
    for warning in &operation.warnings {
        text.push_str(&format!("warning      {warning}\n"));
    }
    if let Some(error) = &operation.error {
        text.push_str(&error_text(error, style));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_proto::api::StageTime;
    use banger_proto::error::{ApiError, ErrorKind};

    fn operation() -> Operation {
        let stage = |stage: &str, begin_ms, took_ms| StageTime {
            stage: stage.into(),
            begin_ms,
            took_ms,
            failed: false,
        };
        Operation {
            id: "fedcba9876543210fedcba9876543210".parse().unwrap(),
            kind: OperationKind::CreateVm,
            state: OperationState::Failed,
            node: "workstation".into(),
            vm: Some("0123456789abcdef0123456789abcdef".parse().unwrap()),
            vm_name: Some("calm-otter".parse().unwrap()),
            reason: None,
            error: Some(ApiError::new(ErrorKind::Failed, "the engine died")),
            created_at: "2026-03-02T11:55:00Z".into(),
            stages: vec![stage("engine", 15.0, 2210.0), stage("disks", 3.0, 12.0)],
            warnings: Vec::new(),
        }
    }

    fn now() -> Timestamp {
        "2026-03-02T12:00:00Z".parse().unwrap()
    }

    #[test]
    fn operations_line_up() {
        let pull = Operation {
            kind: OperationKind::PullImage,
            state: OperationState::Running,
            vm: None,
            vm_name: None,
            ..operation()
        };
        insta::assert_snapshot!(operation_table(&[operation(), pull], now()), @r"
        ID            WHAT              VM          STATE    BEGAN
        fedcba987654  creating VM       calm-otter  failed   5 min ago
        fedcba987654  getting an image  -           running  5 min ago
        ");
    }

    #[test]
    fn an_operation_of_bangers_own_tells_why_and_one_that_was_called_off_has_not_failed() {
        let own = Operation {
            kind: OperationKind::StopVm,
            state: OperationState::Cancelled,
            reason: Some("nobody has used it for 30 min".into()),
            error: None,
            stages: Vec::new(),
            warnings: Vec::new(),
            ..operation()
        };
        insta::assert_snapshot!(operation_text(&own, now(), Style::Plain), @"
        id           fedcba9876543210fedcba9876543210
        what         stopping VM `calm-otter`
        state        cancelled
        node         workstation
        began        2026-03-02T11:55:00Z (5 min ago)
        reason       nobody has used it for 30 min
        ");
    }

    #[test]
    fn an_operation_tells_everything() {
        insta::assert_snapshot!(operation_text(&operation(), now(), Style::Plain), @r"
        id           fedcba9876543210fedcba9876543210
        what         creating VM `calm-otter`
        state        failed
        node         workstation
        began        2026-03-02T11:55:00Z (5 min ago)
        stages
          disks      12 ms
          engine     2.2 s
        error: the engine died
        ");
    }
}

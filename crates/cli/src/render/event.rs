//! One event, one line.

use banger_proto::api::{Event, Happened, OperationState, VmState};
use jiff::Timestamp;

use crate::render::operation::doing;

/// When, and what: `2026-03-02T12:00:00Z  VM calm-otter is running`.
pub(crate) fn event_line(event: &Event) -> String {
    let at = match event.at.parse::<Timestamp>() {
        Ok(at) => at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        Err(_) => event.at.clone(),
    };
    format!("{at}  {}\n", words(&event.what))
}

fn words(what: &Happened) -> String {
    match what {
        Happened::VmCreated { vm_name, .. } => format!("VM {vm_name} has its name and place"),
        Happened::VmState {
            vm_name,
            state: VmState::Failed,
            failure: Some(failure),
            ..
        } => format!("VM {vm_name} is failed: {failure}"),
        Happened::VmState {
            vm_name,
            state,
            reason,
            ..
        } => format!("VM {vm_name} is {state}{}", because(reason)),
        Happened::VmWarning {
            vm_name, warning, ..
        } => format!("VM {vm_name}: warning: {warning}"),
        Happened::VmChanged { vm_name, .. } => format!("VM {vm_name} has changed"),
        Happened::VmDeleted {
            vm_name, reason, ..
        } => format!("VM {vm_name} is deleted{}", because(reason)),
        Happened::Operation {
            operation,
            kind,
            state,
            vm_name,
            reason,
            error,
            ..
        } => {
            let about = match vm_name {
                Some(name) => format!(" {name}"),
                None => String::new(),
            };
            let how = match (state, error) {
                (OperationState::Running, _) => format!("began{}", because(reason)),
                (OperationState::Succeeded, _) => "is done".to_owned(),
                (OperationState::Failed, Some(error)) => format!("failed: {error}"),
                (OperationState::Failed, None) => "failed".to_owned(),
                (OperationState::Cancelled, Some(error)) => format!("was called off: {error}"),
                (OperationState::Cancelled, None) => "was called off".to_owned(),
            };
            format!(
                "operation {} ({}{about}) {how}",
                operation.short(),
                doing(*kind)
            )
        }
        Happened::Missed => "events before this one are forgotten".to_owned(),
    }
}

/// Why, where nobody asked.
fn because(reason: &Option<String>) -> String {
    match reason {
        Some(reason) => format!(": {reason}"),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_proto::api::OperationKind;
    use banger_proto::error::{ApiError, ErrorKind};

    #[test]
    fn every_event_is_a_line() {
        let vm: banger_proto::id::VmId = "0123456789abcdef0123456789abcdef".parse().unwrap();
        let vm_name: banger_proto::name::VmName = "calm-otter".parse().unwrap();
        let failure = ApiError {
            causes: vec!["the disk is full".into()],
            ..ApiError::new(ErrorKind::Failed, "could not start VM `calm-otter`")
        };
        let state = |state, failure| Happened::VmState {
            vm: vm.clone(),
            vm_name: vm_name.clone(),
            state,
            reason: None,
            failure,
        };
        let operation = |state, error| Happened::Operation {
            operation: "fedcba9876543210fedcba9876543210".parse().unwrap(),
            kind: OperationKind::StartVm,
            state,
            vm: Some(vm.clone()),
            vm_name: Some(vm_name.clone()),
            reason: None,
            error,
        };
        let lines: String = [
            Happened::VmCreated {
                vm: vm.clone(),
                vm_name: vm_name.clone(),
            },
            operation(OperationState::Running, None),
            state(VmState::Running, None),
            operation(OperationState::Succeeded, None),
            state(VmState::Failed, Some(failure.clone())),
            operation(OperationState::Failed, Some(failure)),
            Happened::VmChanged {
                vm: vm.clone(),
                vm_name: vm_name.clone(),
            },
            Happened::VmDeleted {
                vm: vm.clone(),
                vm_name: vm_name.clone(),
                reason: None,
            },
            operation(
                OperationState::Cancelled,
                Some(ApiError::new(ErrorKind::Cancelled, "it was called off")),
            ),
            Happened::Operation {
                operation: "fedcba9876543210fedcba9876543210".parse().unwrap(),
                kind: OperationKind::StopVm,
                state: OperationState::Running,
                vm: Some(vm.clone()),
                vm_name: Some(vm_name.clone()),
                reason: Some("nobody has used it for 30 min".into()),
                error: None,
            },
            Happened::VmState {
                vm: vm.clone(),
                vm_name: vm_name.clone(),
                state: VmState::Stopped,
                reason: Some("nobody has used it for 30 min".into()),
                failure: None,
            },
            Happened::VmDeleted {
                vm: vm.clone(),
                vm_name: vm_name.clone(),
                reason: Some("its time to live is over".into()),
            },
            Happened::Missed,
        ]
        .into_iter()
        .map(|what| {
            event_line(&Event {
                id: "7-1".into(),
                at: "2026-03-02T12:00:00.123456Z".into(),
                node: "here".into(),
                what,
            })
        })
        .collect();
        insta::assert_snapshot!(lines);
    }
}

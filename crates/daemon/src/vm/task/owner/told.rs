//! What is told of operations that did not come to what was asked for. Pure: no I/O.

use banger_proto::api::OperationKind;
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::name::VmName;

use crate::store::StoreError;
use crate::vm::lifecycle::Phase;

/// An operation was overtaken by what the VM does now, and maybe for a reason of banger's own.
pub(super) fn overtaken(
    kind: OperationKind,
    vm: &VmName,
    now: Phase,
    reason: Option<String>,
) -> ApiError {
    let mut error = called_off(kind, vm);
    add_why(&mut error, now, reason);
    error
}

/// Adds what the VM does now, and maybe a reason of banger's own, to the error of an operation
/// that it has overtaken.
pub(super) fn add_why(error: &mut ApiError, now: Phase, reason: Option<String>) {
    let why = match now {
        Phase::Deleting => "it is being deleted",
        Phase::Restarting => "it is being restarted",
        Phase::Pausing => "it is being paused",
        Phase::Resuming => "it is being resumed",
        _ => "it is being stopped",
    };
    error.causes.push(why.to_owned());
    error.causes.extend(reason);
}

/// An operation was called off.
pub(super) fn called_off(kind: OperationKind, vm: &VmName) -> ApiError {
    let what = match kind {
        OperationKind::CreateVm => "create",
        OperationKind::StartVm => "start",
        OperationKind::StopVm => "stop",
        OperationKind::RestartVm => "restart",
        OperationKind::KillVm => "end",
        OperationKind::PauseVm => "pause",
        OperationKind::ResumeVm => "resume",
        OperationKind::SetVm => "change",
        OperationKind::DeleteVm => "delete",
        OperationKind::PullImage | OperationKind::PullKernel => "pull",
        OperationKind::InstallEngine | OperationKind::UninstallEngine => "installation",
        OperationKind::PromoteImage => "promotion",
        OperationKind::CommitVm => "commit",
        OperationKind::BuildImage => "build",
    };
    let message = format!("the {what} of VM `{vm}` was called off");
    ApiError::new(ErrorKind::Cancelled, message)
}

/// A stop came while the VM was being created, which called that off.
pub(super) fn never_was(vm: &VmName) -> ApiError {
    let message = format!("there is no VM `{vm}` any more");
    let mut error = ApiError::new(ErrorKind::NotFound, message);
    error.causes = vec![
        "it was still being created: that was called off, and nothing of it is left".to_owned(),
    ];
    error
}

/// What an operation came to could not be written down.
pub(super) fn not_written(verb: &str, vm: &VmName, error: &StoreError) -> ApiError {
    let message = format!("could not {verb} VM `{vm}`");
    let mut api = ApiError::new(ErrorKind::Failed, message).caused_by(error);
    api.hint = error.hint();
    api
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_come_about_is_told_with_the_reason() {
        let vm: VmName = "a".parse().unwrap();
        let full = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL);
        let full = rusqlite::Error::SqliteFailure(full, None);
        let full = StoreError::query("remove a VM")(full);
        let own = Some("its time to live is over".to_owned());
        let mut errors = vec![
            overtaken(OperationKind::CreateVm, &vm, Phase::Deleting, own),
            not_written("create", &vm, &full),
            not_written("delete", &vm, &full),
            not_written("restart", &vm, &full),
        ];
        for phase in [
            Phase::Deleting,
            Phase::Restarting,
            Phase::Pausing,
            Phase::Resuming,
            Phase::Stopping,
        ] {
            errors.push(overtaken(OperationKind::StartVm, &vm, phase, None));
        }
        errors.extend(OperationKind::ALL.map(|kind| called_off(kind, &vm)));
        let lines: Vec<String> = errors
            .into_iter()
            .map(|error| {
                let hint = error.hint.as_deref().unwrap_or("-");
                format!("{error} ({:?}); hint: {hint}", error.kind)
            })
            .collect();
        insta::assert_snapshot!(lines.join("\n"));
    }
}

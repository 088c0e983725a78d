//! What the engines need of the host, as `banger doctor` shows it.

use std::error::Error;
use std::path::Path;

use banger_proto::doctor::Check;

use crate::{Qemu, probe};

/// Checks for QEMU (at `qemu_bin`, or in `PATH`) and for KVM. Blocks for tens of
/// milliseconds.
pub fn checks(qemu_bin: Option<&Path>) -> Vec<Check> {
    let qemu = match Qemu::find(qemu_bin) {
        Ok(qemu) => Check::pass("engine.qemu", "QEMU", qemu.summary()),
        Err(error) => Check::fail("engine.qemu", "QEMU", with_causes(&error), error.fix()),
    };
    let kvm = match probe::kvm() {
        Ok(()) => Check::pass(
            "engine.kvm",
            "hardware virtualisation",
            "KVM made a VM and a CPU",
        ),
        Err(error) => Check::warn(
            "engine.kvm",
            "hardware virtualisation",
            format!(
                "{}; VMs run in software, several times slower",
                with_causes(&error)
            ),
            error.fix(),
        ),
    };
    vec![qemu, kvm]
}

/// An error and all below it, in one line.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_proto::doctor::CheckStatus;

    #[test]
    fn a_qemu_that_is_not_there_fails_with_its_fix() {
        let checks = checks(Some(Path::new("/nonexistent/qemu")));
        assert_eq!(checks[0].status, CheckStatus::Fail);
        insta::assert_snapshot!(
            checks[0].detail,
            @"could not start `/nonexistent/qemu`: No such file or directory (os error 2)"
        );
        assert!(
            checks[0]
                .fix
                .as_deref()
                .is_some_and(|fix| fix.contains("qemu_bin"))
        );
        assert_ne!(checks[1].status, CheckStatus::Fail);
    }
}

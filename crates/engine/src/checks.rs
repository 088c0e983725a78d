//! What the engines need of the host, as `banger doctor` shows it.

use std::error::Error;
use std::path::Path;

use banger_proto::doctor::Check;

use crate::{Firecracker, FirecrackerMissing, FirecrackerUnusable, Qemu, probe};

/// Checks for QEMU (at `qemu_bin`, or in `PATH`), for KVM, and where that is usable for
/// Firecracker (at `firecracker_bin`, or in `PATH`, or at `installed`). Blocks for tens of
/// milliseconds.
pub fn checks(
    qemu_bin: Option<&Path>,
    firecracker_bin: Option<&Path>,
    installed: Option<&Path>,
) -> Vec<Check> {
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
    let firecracker = firecracker(Firecracker::find(firecracker_bin, installed));
    vec![qemu, kvm, firecracker]
}

fn firecracker(found: Result<Firecracker, FirecrackerUnusable>) -> Check {
    const ID: &str = "engine.firecracker";
    const TITLE: &str = "Firecracker";
    match found {
        Ok(firecracker) => Check::pass(ID, TITLE, firecracker.summary()),
        // Without KVM it is not missed, and the check before has said so.
        Err(FirecrackerUnusable::Kvm(_)) => {
            Check::pass(ID, TITLE, "not used: it runs VMs with KVM only")
        }
        Err(error @ FirecrackerUnusable::Missing(FirecrackerMissing::NotFound)) => Check::warn(
            ID,
            TITLE,
            format!("{}; VMs run in QEMU", with_causes(&error)),
            error.fix(),
        ),
        Err(error) => Check::warn(ID, TITLE, with_causes(&error), error.fix()),
    }
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
        let checks = checks(Some(Path::new("/nonexistent/qemu")), None, None);
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

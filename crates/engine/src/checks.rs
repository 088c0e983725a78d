//! What the engines need of the host, as `banger doctor` shows it.

use std::error::Error;

use banger_proto::doctor::Check;

use crate::{FirecrackerMissing, Program, QemuMissing, Survey, probe};

/// Checks for QEMU, for KVM, and where that is usable for Firecracker.
pub fn checks(survey: &Survey) -> Vec<Check> {
    let kvm = match &survey.kvm {
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
                with_causes(error)
            ),
            error.fix(),
        ),
    };
    vec![
        qemu(&survey.qemu),
        kvm,
        firecracker(&survey.firecracker, &survey.kvm),
    ]
}

fn qemu(found: &Result<Program, QemuMissing>) -> Check {
    const ID: &str = "engine.qemu";
    const TITLE: &str = "QEMU";
    match found {
        Ok(program) => Check::pass(ID, TITLE, summary(TITLE, program)),
        Err(error) => Check::fail(ID, TITLE, with_causes(error), error.fix()),
    }
}

fn firecracker(
    found: &Result<Program, FirecrackerMissing>,
    kvm: &Result<(), probe::Unusable>,
) -> Check {
    const ID: &str = "engine.firecracker";
    const TITLE: &str = "Firecracker";
    match (found, kvm) {
        (Ok(program), Ok(())) if program.may_be_jailed => {
            Check::pass(ID, TITLE, summary(TITLE, program))
        }
        (Ok(program), Ok(())) => Check::warn(
            ID,
            TITLE,
            format!(
                "{}: it is linked dynamically, and so not kept from the host's files",
                summary(TITLE, program)
            ),
            "use a release, which is static: `banger engine install firecracker`",
        ),
        // Without KVM it is not missed, and the check before has said so.
        (Ok(program), Err(_)) => {
            let summary = summary(TITLE, program);
            Check::pass(ID, TITLE, format!("{summary}; not used: it needs KVM"))
        }
        (Err(_), Err(_)) => Check::pass(ID, TITLE, "not used: it needs KVM"),
        (Err(error @ FirecrackerMissing::NotFound), Ok(())) => Check::warn(
            ID,
            TITLE,
            format!("{}; VMs run in QEMU", with_causes(error)),
            error.fix(),
        ),
        (Err(error), Ok(())) => Check::warn(ID, TITLE, with_causes(error), error.fix()),
    }
}

fn summary(title: &str, program: &Program) -> String {
    format!("{title} {} at {}", program.version, program.path.display())
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
    use crate::{Places, survey};
    use banger_proto::api::ProgramOrigin;
    use banger_proto::doctor::CheckStatus;

    #[test]
    fn a_qemu_that_is_not_there_fails_with_its_fix() {
        let places = Places {
            qemu: Some("/nonexistent/qemu".into()),
            ..Places::default()
        };
        let checks = checks(&survey(&places));
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

    #[test]
    fn firecracker_is_missed_only_where_it_could_be_used() {
        let program = || Program {
            path: "/state/engines/firecracker/current/firecracker".into(),
            version: "1.16.1".to_owned(),
            origin: ProgramOrigin::Installed,
            may_be_jailed: true,
        };
        let dynamic = || Program {
            may_be_jailed: false,
            ..program()
        };
        let no_kvm = || Err(probe::Unusable::NoVirtualisation);
        let told: Vec<String> = [
            firecracker(&Ok(program()), &Ok(())),
            firecracker(&Ok(dynamic()), &Ok(())),
            firecracker(&Ok(program()), &no_kvm()),
            firecracker(&Err(FirecrackerMissing::NotFound), &no_kvm()),
            firecracker(&Err(FirecrackerMissing::NotFound), &Ok(())),
        ]
        .into_iter()
        .map(|check| {
            let fix = check.fix.unwrap_or_default();
            format!("{:?} {} [{fix}]", check.status, check.detail)
        })
        .collect();
        insta::assert_snapshot!(told.join("\n"));
    }
}

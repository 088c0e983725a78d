//! What `banger doctor` found.

use banger_proto::doctor::{CheckStatus, Report};

use crate::render::style::Style;

/// One line per check, its fix below it, and the sum.
pub(crate) fn report_text(report: &Report, style: Style) -> String {
    let mut text = String::new();
    for check in &report.checks {
        let verdict = match check.status {
            CheckStatus::Pass => style.green("pass"),
            CheckStatus::Warn => style.yellow("warn"),
            CheckStatus::Fail => style.red("FAIL"),
        };
        text.push_str(&format!("{verdict}  {}: {}\n", check.title, check.detail));
        for line in check.fix.iter().flat_map(|fix| fix.lines()) {
            text.push_str(&format!("      fix: {line}\n"));
        }
    }
    let count = |status| {
        report
            .checks
            .iter()
            .filter(|check| check.status == status)
            .count()
    };
    text.push_str(&format!(
        "\n{} passed, {} warned, {} failed\n",
        count(CheckStatus::Pass),
        count(CheckStatus::Warn),
        count(CheckStatus::Fail)
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_proto::doctor::Check;

    #[test]
    fn a_report_says_how_to_mend_what_failed() {
        let report = Report {
            version: "0.1.0".into(),
            checks: vec![
                Check::pass("engine.qemu", "QEMU", "7.2 at /usr/bin/qemu-system-x86_64"),
                Check::warn(
                    "engine.kvm",
                    "KVM",
                    "/dev/kvm is missing",
                    "emulation is slower; use a host with KVM",
                ),
                Check::fail(
                    "net.pasta",
                    "pasta",
                    "not in PATH",
                    "sudo apt-get install passt",
                ),
            ],
        };
        insta::assert_snapshot!(report_text(&report, Style::Plain), @r"
        pass  QEMU: 7.2 at /usr/bin/qemu-system-x86_64
        warn  KVM: /dev/kvm is missing
              fix: emulation is slower; use a host with KVM
        FAIL  pasta: not in PATH
              fix: sudo apt-get install passt

        1 passed, 1 warned, 1 failed
        ");
    }
}

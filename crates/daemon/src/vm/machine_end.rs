//! What to tell of a machine that ended by itself.

use std::path::Path;

use banger_engine::{Exit, ExitCause, tail};
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::name::VmName;

/// How many of the console's lines an error shows.
const CONSOLE_LINES: usize = 6;
/// How many of its last lines are searched for a panic, whose traces and registers follow it.
const SEARCHED_LINES: usize = 100;
/// What a Linux kernel says first when it panics, and what begins the trace behind that.
const PANIC: &str = "Kernel panic";
const TRACE: &str = "Call Trace:";

/// Why the VM is to be called failed; `None` if its machine ended in an orderly way.
pub fn failure(vm: &VmName, exit: &Exit, console: &Path) -> Option<ApiError> {
    match exit.cause {
        ExitCause::PoweredOff | ExitCause::Unseen => return None,
        ExitCause::Reset | ExitCause::Killed { .. } | ExitCause::Failed(_) => {}
    }
    let mut error = ApiError::new(ErrorKind::Failed, format!("VM `{vm}` ended unexpectedly"))
        .with_hint(format!(
            "see `banger vm logs {vm}`, then `banger vm start {vm}`"
        ));
    error.causes.push(exit.cause.to_string());
    error
        .causes
        .extend(last_words(&tail(console, SEARCHED_LINES)));
    Some(error)
}

/// What the console's last `lines` say of an end, as one cause of an error: the kernel's panic, or
/// else the last of them. `None` if there are none.
pub fn last_words(lines: &[String]) -> Option<String> {
    if let Some(panic) = lines.iter().rposition(|line| is_panic(line)) {
        let told = lines[panic..].iter().take(CONSOLE_LINES);
        let told: Vec<&str> = told
            .map(String::as_str)
            .take_while(|line| !line.contains(TRACE))
            .collect();
        return Some(format!("the guest's kernel panicked: {}", told.join(" | ")));
    }
    let last = &lines[lines.len().saturating_sub(CONSOLE_LINES)..];
    (!last.is_empty()).then(|| format!("the console's last lines: {}", last.join(" | ")))
}

/// Whether a panic begins here; `---[ end Kernel panic` is what a kernel says that stays.
fn is_panic(line: &str) -> bool {
    line.contains(PANIC) && !line.contains("end Kernel panic")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_orderly_end_is_no_failure() {
        let dir = tempfile::tempdir().unwrap();
        let console = dir.path().join("console.log");
        std::fs::write(&console, "booting\r\nlogin:\r\n").unwrap();
        let name: VmName = "a".parse().unwrap();
        let exit = |cause| Exit {
            cause,
            engine_log: Vec::new(),
        };
        assert_eq!(failure(&name, &exit(ExitCause::PoweredOff), &console), None);
        let error = failure(
            &name,
            &exit(ExitCause::Killed { signal: Some(9) }),
            &console,
        )
        .unwrap();
        insta::assert_snapshot!(error, @"VM `a` ended unexpectedly: the engine was ended by signal 9: the console's last lines: booting | login:");
    }

    #[test]
    fn a_panic_is_told_from_its_first_line_and_not_by_its_registers() {
        // Linux 6.12 after `echo c >/proc/sysrq-trigger`, some of it left out.
        let console = "\
[   57.386191] sysrq: Trigger a crash
[   57.387584] Kernel panic - not syncing: sysrq triggered crash
[   57.388236] CPU: 0 UID: 0 PID: 185 Comm: sh Not tainted 6.12.117+deb12-cloud-amd64 #1
[   57.389306] Call Trace:
[   57.390455]  <TASK>
[   57.390751]  panic+0x344/0x3a0
[   57.391578]  sysrq_handle_crash+0x1a/0x20
[   57.393132] RIP: 0033:0x7fce32511350
[   57.394697] RAX: ffffffffffffffda RBX: 0000000000000002 RCX: 00007fce32511350
[   57.395130] R10: 0000000000000000 R11: 0000000000000202 R12: 0000000000000001
[   57.395679]  </TASK>
[   57.396634] Kernel Offset: disabled
[   57.396634] ---[ end Kernel panic - not syncing: sysrq triggered crash ]---";
        let lines: Vec<String> = console.lines().map(str::to_owned).collect();
        insta::assert_snapshot!(last_words(&lines).unwrap(), @"the guest's kernel panicked: [   57.387584] Kernel panic - not syncing: sysrq triggered crash | [   57.388236] CPU: 0 UID: 0 PID: 185 Comm: sh Not tainted 6.12.117+deb12-cloud-amd64 #1");
    }
}

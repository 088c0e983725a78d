//! What to tell of a machine that ended by itself.

use std::path::Path;

use banger_engine::{Exit, ExitCause, tail};
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::name::VmName;

/// How many of the console's last lines an error shows.
const CONSOLE_LINES: usize = 6;

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
        .extend(last_words(&tail(console, CONSOLE_LINES)));
    Some(error)
}

/// The last of the console's `lines`, as one cause of an error; `None` if there are none.
pub fn last_words(lines: &[String]) -> Option<String> {
    let last = &lines[lines.len().saturating_sub(CONSOLE_LINES)..];
    (!last.is_empty()).then(|| format!("the console's last lines: {}", last.join(" | ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_orderly_end_is_no_failure() {
        let dir = tempfile::tempdir().unwrap();
        let console = dir.path().join("console.log");
        std::fs::write(&console, "booting\r\nKernel panic\r\n").unwrap();
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
        insta::assert_snapshot!(error, @"VM `a` ended unexpectedly: the engine was ended by signal 9: the console's last lines: booting | Kernel panic");
    }
}

//! How a process is cut loose from the one that starts it.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Lets the process have a session of its own, so that no signal of a terminal reaches it,
/// nothing of this process's descriptors but the standard ones, and `/` as its directory.
///
/// Steps that the caller adds to `command` later run after that, and may keep descriptors open
/// by taking their close-on-exec flags.
pub fn detach(command: &mut Command) -> &mut Command {
    command.current_dir("/");
    // SAFETY: `cut_loose` makes two system calls and touches no memory, which is what is
    // allowed between fork and exec (signal-safety(7)).
    unsafe { command.pre_exec(cut_loose) }
}

/// Runs in the child.
fn cut_loose() -> io::Result<()> {
    rustix::process::setsid()?;
    // Everything of ours is opened close-on-exec; this is for what a library has forgotten, and
    // for what this process was given, such as a script's pipe or lock, which must not stay
    // open for as long as the other one lives. Marking instead of closing keeps the pipe by
    // which the standard library learns of a failure.
    // SAFETY: plain numbers. Kernels before 5.11 know no such call, and change nothing.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_detached_process_leads_a_session_and_has_no_descriptor_of_ours() {
        let (leaked, _other) = rustix::pipe::pipe().unwrap();
        let script = format!(
            "pwd; [ -e /proc/self/fd/{} ] && echo leaked; ps -o sid= -p $$ | tr -d ' '; echo $$",
            leaked.as_raw_fd()
        );
        let mut command = crate::command("sh");
        command.args(["-c", &script]);
        let printed = crate::run(detach(&mut command), Some(Duration::from_secs(60))).unwrap();
        let printed = String::from_utf8(printed).unwrap();
        let lines: Vec<&str> = printed.lines().collect();
        assert_eq!((lines.len(), lines[0]), (3, "/"), "{printed}");
        assert_eq!(lines[1], lines[2]);
    }
}

//! How an engine's process is started.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit};

use crate::Mark;
use crate::process::{Cgroup, Identity, Jail, Process, Space, first, jail};

/// Most descriptors that an engine may have open.
const OPEN_FILES: u64 = 4096;

/// A process to be started: detached from the daemon, unprivileged, and marked.
#[derive(Debug)]
pub(crate) struct Detached {
    /// The program; looked for in `PATH` if it has no slash.
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    pub mark: Mark,
    /// Descriptors that the process inherits, under the numbers that they have here.
    pub inherited: Vec<OwnedFd>,
    /// Where its output goes, if not to the log.
    pub output: Option<File>,
    /// Where its output and its errors go.
    pub log: File,
    /// Its working directory, if not the root, and where it has no jail.
    pub directory: Option<OwnedFd>,
    /// The namespaces that it enters; `None`: it stays in this process's.
    pub space: Option<Space>,
    /// What it has in place of the host's files and processes; `None`: it has these.
    pub jail: Option<Jail>,
    /// Whom it becomes; `None`: nobody else.
    pub identity: Option<Identity>,
    /// What bounds its use of the host; `None`: what bounds this process's.
    pub cgroup: Option<Cgroup>,
}

impl Detached {
    /// Starts it. Nothing in here awaits: the caller's future, when dropped, has started
    /// the process and can find it by its mark, or has not.
    ///
    /// # Errors
    /// The program cannot be executed, or the system refuses one of the measures.
    pub(crate) fn spawn(mut self) -> io::Result<Process> {
        let image = self.image()?;
        let (told, first) = match self.jail {
            Some(_) => first::pipe().map(|(told, teller)| (Some(told), Some(teller)))?,
            None => (None, None),
        };
        let bounds = Bounds {
            inherited: self.inherited.iter().map(AsRawFd::as_raw_fd).collect(),
            directory: self.directory,
            space: self.space,
            first,
            jail: self.jail,
            identity: self.identity,
            cgroup: self.cgroup,
        };
        let output = match self.output {
            Some(output) => output,
            None => self.log.try_clone()?,
        };
        let mut command = banger_process::command(&image);
        banger_process::detach(&mut command)
            .arg0(&self.program)
            .args(&self.arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("LC_ALL", "C.UTF-8")
            .env(Mark::VARIABLE, self.mark.to_string())
            .stdout(output)
            .stderr(self.log);
        // SAFETY: between fork and exec only async-signal-safe calls are allowed. `confine`
        // makes system calls and nothing else; it does not allocate, not even on failure.
        unsafe { command.pre_exec(move || bounds.confine()) };
        let spawned = command.spawn();
        // And with it what was only for the child.
        drop(command);
        match told {
            Some(told) => told.engine(spawned),
            None => Process::child(spawned?.id()),
        }
    }

    /// By which path the program is executed. The one that it becomes need not be able to go to
    /// where it is, such as below a private directory; then this process goes there for it and
    /// the path is that of a descriptor, one more that is inherited.
    fn image(&mut self) -> io::Result<PathBuf> {
        if self.jail.is_some() {
            return Ok(jail::IMAGE.into());
        }
        let looked_for = self.program.components().count() == 1;
        if self.identity.is_none() || looked_for || is_open_to_all(&self.program)? {
            return Ok(self.program.clone());
        }
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let program = rustix::fs::open(&self.program, flags, Mode::empty())?;
        let path = format!("/proc/self/fd/{}", program.as_raw_fd());
        self.inherited.push(program);
        Ok(path.into())
    }
}

/// Whether everybody may go to where `program` is: as it is named, and as it is without links.
/// Such a program keeps its name where processes are listed; a descriptor's would be a number.
fn is_open_to_all(program: &Path) -> io::Result<bool> {
    for path in [program, &program.canonicalize()?] {
        for directory in path.ancestors().skip(1) {
            if !directory.as_os_str().is_empty() && directory.metadata()?.mode() & 0o001 == 0 {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// What a process is kept to.
struct Bounds {
    inherited: Vec<RawFd>,
    directory: Option<OwnedFd>,
    space: Option<Space>,
    first: Option<first::Teller>,
    jail: Option<Jail>,
    identity: Option<Identity>,
    cgroup: Option<Cgroup>,
}

impl Bounds {
    /// Runs in the child, after it is cut loose.
    fn confine(&self) -> io::Result<()> {
        close_all_on_exec();
        for fd in &self.inherited {
            // SAFETY: the parent holds the descriptor open for as long as it spawns.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(*fd) };
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
        }
        if let Some(cgroup) = &self.cgroup {
            cgroup.enter()?;
        }
        limit(Resource::Core, 0)?;
        limit(Resource::Nofile, OPEN_FILES)?;
        if let Some(directory) = &self.directory {
            // While this process may still go there by right of its user.
            rustix::process::fchdir(directory)?;
        }
        if let Some(space) = &self.space {
            space.enter()?;
        }
        if let Some(first) = &self.first {
            // Before the jail, which has the part of /proc of who makes it.
            first.become_first()?;
        }
        if let Some(jail) = &self.jail {
            jail.enter(self.identity.as_ref())?;
        }
        if let Some(identity) = &self.identity {
            rustix::thread::set_thread_groups(&identity.groups)?;
            rustix::thread::set_thread_res_gid(identity.gid, identity.gid, identity.gid)?;
            rustix::thread::set_thread_res_uid(identity.uid, identity.uid, identity.uid)?;
        }
        if let Some(space) = &self.space {
            space.renounce()?;
        }
        rustix::thread::set_no_new_privs(true)?;
        Ok(())
    }
}

/// Everything in this program is opened to be closed on exec. This holds it for whatever is not,
/// such as what the daemon itself was started with.
fn close_all_on_exec() {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 1 << 2;
    // SAFETY: close_range takes numbers. Kernels before 5.11 do not know it: there the first
    // sentence must do.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3 as libc::c_uint,
            libc::c_uint::MAX,
            CLOSE_RANGE_CLOEXEC,
        );
    }
}

/// Lowers a limit, never raises it.
fn limit(resource: Resource, most: u64) -> io::Result<()> {
    let now = rustix::process::getrlimit(resource);
    let least = |limit: Option<u64>| Some(limit.map_or(most, |limit| limit.min(most)));
    let new = Rlimit {
        current: least(now.current),
        maximum: least(now.maximum),
    };
    Ok(rustix::process::setrlimit(resource, new)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use banger_proto::id::{InstanceId, VmId};

    use super::*;
    use crate::process::Ended;

    fn mark() -> Mark {
        Mark {
            instance: "0".repeat(32).parse::<InstanceId>().unwrap(),
            slot: 1,
            vm: VmId::new(),
        }
    }

    #[tokio::test]
    async fn a_program_below_a_private_directory_runs_as_another_user() {
        let Some(identity) = Identity::for_engine(&mark().instance, 1, None) else {
            eprintln!("skipped: only root starts processes of other users");
            return;
        };
        let directory = tempfile::tempdir().unwrap();
        let private = directory.path().join("private");
        fs::DirBuilder::new().mode(0o700).create(&private).unwrap();
        let program = private.join("engine");
        fs::copy("/bin/sh", &program).unwrap();
        // One that the system hands to an interpreter, which opens it once more.
        let script = private.join("script");
        fs::write(&script, "#!/bin/sh\nid -u\n").unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let link = directory.path().join("link");
        symlink(&program, &link).unwrap();

        let uid = identity.uid.as_raw();
        let named = |path: &Path| format!("{uid} {}\n", path.display());
        for (program, printed) in [
            (&program, named(&program)),
            (&link, named(&link)),
            (&script, format!("{uid}\n")),
        ] {
            let output = directory.path().join("output");
            let process = Detached {
                program: program.clone(),
                arguments: ["-c", "echo $(id -u) $0"].map(Into::into).into(),
                mark: mark(),
                inherited: Vec::new(),
                output: Some(File::create(&output).unwrap()),
                log: File::create(directory.path().join("log")).unwrap(),
                directory: None,
                space: None,
                jail: None,
                identity: Some(identity.clone()),
                cgroup: None,
            }
            .spawn()
            .unwrap();
            let ended = process.wait().await;
            assert_eq!(fs::read_to_string(&output).unwrap(), printed);
            assert_eq!(ended, Ended::Status(ExitStatus::from_raw(0)));
        }
    }

    #[test]
    fn a_program_that_everybody_can_go_to_keeps_its_name() {
        assert!(is_open_to_all(Path::new("/bin/sh")).unwrap());
    }
}

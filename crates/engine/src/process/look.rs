//! The host's processes at one moment, and whose they are.
//!
//! A look at every process takes milliseconds, so whoever asks about many machines looks once.
//! What it shows may be over a moment later: [`super::Process::open`] tells.
//!
//! Reading another process's memory, which its environment is a part of, waits for a lock that
//! the process may hold for as long as it is stuck in the kernel. So that is done by a thread
//! that can be left behind; what it did not come to see is unknown.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use banger_proto::id::InstanceId;

use crate::process::running::{boot_id, start_time};
use crate::process::{Identity, Marked, ProcessId};
use crate::{MachineHandle, Mark, Place};

/// How long a look at one process may take. As a rule it takes microseconds.
const LIMIT: Duration = Duration::from_secs(2);

/// The processes at which a thread has looked for too long and still looks: another one would be
/// stuck as well.
static STUCK: Mutex<Vec<ProcessId>> = Mutex::new(Vec::new());

/// All processes of the host at one moment, but this one.
#[derive(Clone, Debug, Default)]
pub struct Look {
    processes: Vec<Looked>,
}

#[derive(Clone, Debug)]
struct Looked {
    process: ProcessId,
    parent: u32,
    seen: Seen,
}

/// What a look at a process's environment shows.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    /// It carries this mark.
    Mark(Mark),
    /// It carries none, or has ended.
    NoMark,
    /// It cannot be told, as a rule for want of permission (ptrace(2), "Ptrace access mode
    /// checking"). What everybody may read must do.
    Hidden {
        /// Its real user.
        user: Option<u32>,
        /// Its command line, as `/proc/<pid>/cmdline` has it.
        arguments: Vec<u8>,
    },
    /// Whoever looks at it is stuck.
    Stuck {
        /// Its real user.
        user: Option<u32>,
    },
}

/// Whether a machine runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is this process.
    Runs(ProcessId),
    /// No process is its.
    Absent,
    /// A process seems to be its, and may not be looked at closely enough.
    Unknown {
        /// That process.
        pid: u32,
    },
}

impl Look {
    /// Looks at the host. Blocks for some milliseconds, and for two seconds when a process is
    /// found to be stuck.
    ///
    /// # Errors
    /// `/proc` cannot be read, or this process lacks what that takes, such as file descriptors.
    pub fn take() -> io::Result<Self> {
        let own = std::process::id();
        let mut pids = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let pid = name.to_str().and_then(|name| name.parse::<u32>().ok());
            pids.extend(pid.filter(|pid| *pid != own));
        }
        let processes = look_at_all(&pids, &boot_id()?, LIMIT, see)?;
        tracing::debug!(count = processes.len(), "looked at the host's processes");
        Ok(Self { processes })
    }

    /// The same on a thread that may block.
    ///
    /// # Errors
    /// As with [`Look::take`].
    pub async fn take_aside() -> io::Result<Self> {
        let taken = tokio::task::spawn_blocking(Self::take).await;
        taken.map_err(io::Error::other)?
    }

    /// The processes with a mark of this instance. Those of other users are seen only by root.
    pub fn marked(&self, instance: &InstanceId) -> Vec<Marked> {
        let marked = self.processes.iter().filter_map(|looked| {
            let mark = looked.mark()?;
            // One that may not be looked at is as a rule someone else's.
            (mark.instance == *instance).then(|| looked.marked(mark))
        });
        marked.collect()
    }

    /// Whether the machine of `place` runs: as the process that `handle` names, if that one
    /// does not visibly lack the mark, or else as the oldest process that carries it.
    pub fn presence(&self, place: &Place, handle: Option<&MachineHandle>) -> Presence {
        let own = place.mark();
        let named = handle.and_then(|handle| {
            self.processes.iter().find(|looked| {
                looked.process == handle.process
                    // Its pid, start time and boot name it for ever; the mark would only
                    // confirm it.
                    && (looked.mark() == Some(&own)
                        || matches!(looked.seen, Seen::Hidden { .. } | Seen::Stuck { .. }))
            })
        });
        if let Some(looked) = named {
            return Presence::Runs(looked.process.clone());
        }
        let carrying = self
            .processes
            .iter()
            .filter(|looked| looked.mark() == Some(&own));
        match carrying.min_by_key(|looked| looked.process.start_time) {
            Some(oldest) => Presence::Runs(oldest.process.clone()),
            None => match self.hidden(place) {
                Some(pid) => Presence::Unknown { pid },
                None => Presence::Absent,
            },
        }
    }

    /// Every process of the machine of `place`: those that carry its mark, and all that
    /// descends from them. A child may have cleared its environment; it is of the machine all
    /// the same.
    ///
    /// # Errors
    /// A process seems to be the machine's and may not be looked at: what runs is unknown.
    pub(crate) fn machine(&self, place: &Place) -> io::Result<Vec<Marked>> {
        if let Some(pid) = self.hidden(place) {
            return Err(unreadable(pid));
        }
        let mark = place.mark();
        let roots = self
            .processes
            .iter()
            .filter(|looked| looked.mark() == Some(&mark));
        let family = self.family(roots.map(|looked| looked.process.pid));
        Ok(family
            .into_iter()
            .map(|process| Marked {
                mark: mark.clone(),
                process,
            })
            .collect())
    }

    /// These processes, and all that descends from them.
    pub fn family(&self, roots: impl IntoIterator<Item = u32>) -> Vec<ProcessId> {
        let mut known: HashSet<u32> = HashSet::new();
        let mut next: Vec<u32> = roots.into_iter().filter(|pid| known.insert(*pid)).collect();
        if next.is_empty() {
            return Vec::new();
        }
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        for looked in &self.processes {
            children
                .entry(looked.parent)
                .or_default()
                .push(looked.process.pid);
        }
        while let Some(parent) = next.pop() {
            let born = children.get(&parent).into_iter().flatten().copied();
            next.extend(born.filter(|pid| known.insert(*pid)));
        }
        let family = self
            .processes
            .iter()
            .filter(|looked| known.contains(&looked.process.pid));
        family.map(|looked| looked.process.clone()).collect()
    }

    /// A process that cannot be looked at and seems to be the machine's: it has the engine's
    /// user, and its arguments, where they are to be had, name the machine, as every engine's do,
    /// by its name or socket.
    fn hidden(&self, place: &Place) -> Option<u32> {
        let mut user = None;
        let mut is_engines = |found| *user.get_or_insert_with(|| engine_user(place)) == found;
        let found = self.processes.iter().find(|looked| match &looked.seen {
            Seen::Hidden {
                user: Some(found),
                arguments,
            } => is_engines(*found) && names(arguments, place),
            Seen::Stuck { user: Some(found) } => is_engines(*found),
            _ => false,
        });
        found.map(|looked| looked.process.pid)
    }
}

impl Looked {
    fn mark(&self) -> Option<&Mark> {
        match &self.seen {
            Seen::Mark(mark) => Some(mark),
            Seen::NoMark | Seen::Hidden { .. } | Seen::Stuck { .. } => None,
        }
    }

    fn marked(&self, mark: &Mark) -> Marked {
        Marked {
            mark: mark.clone(),
            process: self.process.clone(),
        }
    }
}

/// Why it cannot be told what runs.
pub(crate) fn unreadable(pid: u32) -> io::Error {
    let message = format!(
        "process {pid} may be the machine's, but its environment cannot be read: that takes the \
         capability CAP_SYS_PTRACE, and a process that is not stuck in the kernel"
    );
    io::Error::new(io::ErrorKind::PermissionDenied, message)
}

/// What a file of a process says.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    This(Vec<u8>),
    /// The process has ended.
    Ended,
    /// It may not be read.
    Withheld,
}

/// Looks at processes, one after the other, on a thread. One that takes too long is left with its
/// thread, and another thread goes on.
fn look_at_all(
    pids: &[u32],
    boot_id: &str,
    limit: Duration,
    see: impl Fn(u32) -> io::Result<Seen> + Clone + Send + 'static,
) -> io::Result<Vec<Looked>> {
    let mut processes = Vec::new();
    let mut rest = pids;
    while !rest.is_empty() {
        let looks = begin_looks(rest, boot_id, see.clone())?;
        while let Some((pid, others)) = rest.split_first() {
            rest = others;
            match await_look(&looks, *pid, boot_id, limit)? {
                Await::Done(looked) => processes.extend(looked),
                Await::Stuck(looked) => {
                    processes.extend(looked);
                    break;
                }
            }
        }
    }
    Ok(processes)
}

type Looks = Receiver<io::Result<Option<Looked>>>;

/// What comes of waiting for a look.
enum Await {
    Done(Option<Looked>),
    /// It was waited for in vain: the thread is lost.
    Stuck(Option<Looked>),
}

fn begin_looks(
    pids: &[u32],
    boot_id: &str,
    see: impl Fn(u32) -> io::Result<Seen> + Send + 'static,
) -> io::Result<Looks> {
    let (tell, looks) = mpsc::channel();
    let (pids, boot_id) = (pids.to_vec(), boot_id.to_owned());
    let thread = thread::Builder::new().name("look".to_owned());
    thread.spawn(move || {
        for pid in pids {
            let looked = look_at(pid, &boot_id, |process| {
                let known = stuck().contains(process);
                if known { seen_stuck(pid) } else { see(pid) }
            });
            let mut stuck = stuck();
            if tell.send(looked).is_err() {
                // Nobody waits any more, mostly because this process took too long.
                stuck.retain(|process| process.pid != pid);
                return;
            }
        }
    })?;
    Ok(looks)
}

fn await_look(looks: &Looks, pid: u32, boot_id: &str, limit: Duration) -> io::Result<Await> {
    let broken = || io::Error::other("the thread that looks at processes broke down");
    match looks.recv_timeout(limit) {
        Ok(looked) => return Ok(Await::Done(looked?)),
        Err(RecvTimeoutError::Disconnected) => return Err(broken()),
        Err(RecvTimeoutError::Timeout) => {}
    }
    let mut stuck = stuck();
    // The thread tells while it holds the same lock, so that this is its last chance.
    if let Ok(looked) = looks.try_recv() {
        return Ok(Await::Done(looked?));
    }
    let looked = look_at(pid, boot_id, |_| seen_stuck(pid))?;
    if let Some(looked) = &looked {
        tracing::warn!(
            pid,
            "a process cannot be looked at: it is stuck in the kernel"
        );
        stuck.push(looked.process.clone());
    }
    Ok(Await::Stuck(looked))
}

fn stuck() -> MutexGuard<'static, Vec<ProcessId>> {
    STUCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What everybody may read without waiting must do (proc_pid_status(5)).
fn seen_stuck(pid: u32) -> io::Result<Seen> {
    Ok(Seen::Stuck {
        user: user_of(pid)?,
    })
}

/// `None`: it has ended meanwhile, or is of those that are hidden from this user altogether
/// (proc(5), `hidepid`).
fn look_at(
    pid: u32,
    boot_id: &str,
    see: impl FnOnce(&ProcessId) -> io::Result<Seen>,
) -> io::Result<Option<Looked>> {
    let Told::This(stat) = tell(fs::read(format!("/proc/{pid}/stat")))? else {
        return Ok(None);
    };
    // A process chooses its name, in any bytes.
    let stat = String::from_utf8_lossy(&stat);
    let (Some(start_time), Some(parent)) = (start_time(&stat), parent(&stat)) else {
        return Ok(None);
    };
    let process = ProcessId {
        pid,
        start_time,
        boot_id: boot_id.to_owned(),
    };
    Ok(Some(Looked {
        seen: see(&process)?,
        process,
        parent,
    }))
}

fn see(pid: u32) -> io::Result<Seen> {
    Ok(match tell(fs::read(format!("/proc/{pid}/environ")))? {
        Told::This(environment) => mark_in(&environment).map_or(Seen::NoMark, Seen::Mark),
        Told::Ended => Seen::NoMark,
        Told::Withheld => Seen::Hidden {
            user: user_of(pid)?,
            arguments: match tell(fs::read(format!("/proc/{pid}/cmdline")))? {
                Told::This(arguments) => arguments,
                Told::Ended | Told::Withheld => Vec::new(),
            },
        },
    })
}

/// What came of reading a file of a process. A want of this process's own says nothing of the
/// other one, least of all that it has ended.
fn tell(read: io::Result<Vec<u8>>) -> io::Result<Told> {
    match read {
        Ok(content) => Ok(Told::This(content)),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT | libc::ESRCH) => Ok(Told::Ended),
            Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM) => Err(error),
            _ => Ok(Told::Withheld),
        },
    }
}

/// As whom the engine at `place` runs.
fn engine_user(place: &Place) -> u32 {
    Identity::for_engine(&place.instance, place.slot, None)
        .map_or_else(rustix::process::geteuid, |identity| identity.uid)
        .as_raw()
}

/// The real user of a process (`/proc/<pid>/status`, which everybody may read).
fn user_of(pid: u32) -> io::Result<Option<u32>> {
    let Told::This(status) = tell(fs::read(format!("/proc/{pid}/status")))? else {
        return Ok(None);
    };
    let status = String::from_utf8_lossy(&status);
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    Ok(ids.and_then(|ids| ids.split_ascii_whitespace().next()?.parse().ok()))
}

fn names(arguments: &[u8], place: &Place) -> bool {
    let socket = place.agent_socket();
    let (name, socket) = (place.machine_name(), socket.as_os_str().as_bytes());
    arguments
        .split(|byte| *byte == 0)
        .any(|argument| argument == name.as_bytes() || argument == socket)
}

/// Field 4 of `/proc/<pid>/stat`.
fn parent(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The mark in an environment, as `/proc/<pid>/environ` shows it.
fn mark_in(environment: &[u8]) -> Option<Mark> {
    let value = environment.split(|byte| *byte == 0).find_map(|variable| {
        variable
            .strip_prefix(Mark::VARIABLE.as_bytes())?
            .strip_prefix(b"=")
    })?;
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Detached, Process};
    use banger_proto::api::EngineKind;
    use banger_proto::id::VmId;
    use proptest::prelude::*;
    use rustix::thread::CapabilitySet;

    fn place() -> Place {
        Place {
            instance: InstanceId::new(),
            slot: 7,
            vm: VmId::new(),
            runtime_dir: "/nonexistent/run".into(),
            log_dir: "/nonexistent/log".into(),
        }
    }

    fn looked(pid: u32, parent: u32, seen: Seen) -> Looked {
        let process = ProcessId {
            pid,
            start_time: u64::from(pid),
            boot_id: "this".to_owned(),
        };
        Looked {
            process,
            parent,
            seen,
        }
    }

    fn handle(process: &ProcessId) -> MachineHandle {
        MachineHandle {
            engine: EngineKind::Qemu,
            process: process.clone(),
        }
    }

    #[test]
    fn a_mark_is_found_among_other_variables() {
        let mark = place().mark();
        let environment = format!("PATH=/bin\0BANGER_MARKS=no\0BANGER_MARK={mark}\0A=b\0");
        assert_eq!(mark_in(environment.as_bytes()), Some(mark));
    }

    #[test]
    fn a_machine_is_the_process_of_its_handle_or_the_oldest_with_its_mark() {
        let place = place();
        let other = Place {
            slot: 8,
            ..place.clone()
        };
        let elsewhere = Place {
            instance: InstanceId::new(),
            ..place.clone()
        };
        let look = Look {
            processes: vec![
                looked(2, 1, Seen::Mark(elsewhere.mark())),
                looked(5, 1, Seen::Mark(place.mark())),
                looked(4, 1, Seen::Mark(place.mark())),
                looked(3, 1, Seen::NoMark),
            ],
        };
        let runs = |pid: u32| Presence::Runs(looked(pid, 1, Seen::NoMark).process);
        let at = |pid: u32| handle(&looked(pid, 1, Seen::NoMark).process);
        assert_eq!(look.presence(&place, None), runs(4));
        assert_eq!(look.presence(&place, Some(&at(5))), runs(5));
        // The handle's pid is another process's by now, or the handle is rubbish.
        for wrong in [at(3), at(2), at(99)] {
            assert_eq!(look.presence(&place, Some(&wrong)), runs(4));
            assert_eq!(look.presence(&other, Some(&wrong)), Presence::Absent);
        }
        let mut rebooted = at(5);
        rebooted.process.boot_id = "earlier".to_owned();
        assert_eq!(look.presence(&place, Some(&rebooted)), runs(4));
    }

    #[test]
    fn what_descends_from_a_marked_process_is_the_machines_too() {
        let place = place();
        let look = Look {
            processes: vec![
                looked(9, 8, Seen::NoMark),
                looked(8, 7, Seen::NoMark),
                looked(7, 1, Seen::Mark(place.mark())),
                looked(6, 1, Seen::NoMark),
            ],
        };
        let pids: Vec<u32> = look
            .machine(&place)
            .unwrap()
            .iter()
            .map(|it| it.process.pid)
            .collect();
        assert_eq!(pids, [9, 8, 7]);
        assert_eq!(parent("42 (a) R) S 17 42 42 0"), Some(17));
    }

    #[tokio::test]
    async fn what_may_not_be_looked_at_is_known_by_its_handle_and_else_unknown() {
        let directory = tempfile::tempdir().unwrap();
        let place = Place {
            runtime_dir: directory.path().to_owned(),
            log_dir: directory.path().to_owned(),
            ..place()
        };
        let (Some(identity), Ok(capabilities)) = (
            Identity::for_engine(&place.instance, place.slot, None),
            rustix::thread::capabilities(None),
        ) else {
            eprintln!("skipped: only root starts processes of other users");
            return;
        };
        let process: Process = Detached {
            program: "sh".into(),
            arguments: ["-c", "kill -STOP $$", &place.machine_name()]
                .map(Into::into)
                .into(),
            mark: place.mark(),
            inherited: Vec::new(),
            output: None,
            log: fs::File::create(place.engine_log()).unwrap(),
            directory: None,
            space: None,
            jail: None,
            cgroup: None,
            identity: Some(identity),
        }
        .spawn()
        .unwrap();
        let mut without = capabilities;
        // All that lets root read another user's environment, the file's mode included.
        let needed = CapabilitySet::SYS_PTRACE
            | CapabilitySet::PERFMON
            | CapabilitySet::DAC_OVERRIDE
            | CapabilitySet::DAC_READ_SEARCH;
        without.effective.remove(needed);
        // Of this thread alone.
        rustix::thread::set_capabilities(None, without).unwrap();
        let look = Look::take().unwrap();
        let released = crate::release::release(&place).await;
        rustix::thread::set_capabilities(None, capabilities).unwrap();
        let seen = Look::take().unwrap().presence(&place, None);
        process.kill().await.unwrap();

        let pid = process.id().pid;
        let runs = Presence::Runs(process.id().clone());
        assert_eq!(look.presence(&place, Some(&handle(process.id()))), runs);
        let stale = ProcessId {
            start_time: process.id().start_time - 1,
            ..process.id().clone()
        };
        for unknown in [None, Some(handle(&stale))] {
            assert_eq!(
                look.presence(&place, unknown.as_ref()),
                Presence::Unknown { pid }
            );
        }
        let error = look.machine(&place).unwrap_err();
        assert!(error.to_string().contains(&pid.to_string()), "{error}");
        assert!(matches!(released, Err(crate::ReleaseError::Processes(_))));
        let elsewhere = Place {
            slot: 8,
            ..place.clone()
        };
        assert_eq!(look.presence(&elsewhere, None), Presence::Absent);
        assert_eq!(seen, runs);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any process will do")]
    fn a_process_at_which_a_look_hangs_is_unknown_and_no_second_look_hangs_at_it() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let (pid, own) = (child.id(), std::process::id());
        let boot_id = boot_id().unwrap();
        let (release, held) = mpsc::channel::<()>();
        let held = std::sync::Arc::new(Mutex::new(held));
        let hang = move |looked: u32| {
            if looked == pid {
                // Until the test drops the other end.
                let _ = held.lock().unwrap().recv();
            }
            Ok(Seen::NoMark)
        };
        let look_at = |pids: &[u32], limit| {
            let see = hang.clone();
            Look {
                processes: look_at_all(pids, &boot_id, limit, see).unwrap(),
            }
        };
        let look = |limit| look_at(&[pid, own], limit);
        // Alone, so that the limit is that of no other.
        look_at(&[pid], Duration::from_millis(20));
        let user = rustix::process::geteuid().as_raw();
        for limit in [Duration::from_secs(60), Duration::from_secs(3600)] {
            let look = look(limit);
            let seen: Vec<&Seen> = look.processes.iter().map(|looked| &looked.seen).collect();
            assert_eq!(seen, [&Seen::Stuck { user: Some(user) }, &Seen::NoMark]);
            // It may be any machine's whose engine has this user.
            if user != 0 {
                assert_eq!(look.presence(&place(), None), Presence::Unknown { pid });
            }
            let process = look.processes[0].process.clone();
            let known = handle(&process);
            assert_eq!(
                look.presence(&place(), Some(&known)),
                Presence::Runs(process)
            );
        }
        drop(release);
        while stuck().iter().any(|process| process.pid == pid) {
            thread::yield_now();
        }
        let seen = look(Duration::from_secs(3600)).processes.remove(0).seen;
        assert_eq!(seen, Seen::NoMark);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_want_of_this_process_is_not_the_end_of_another() {
        let read = |errno| tell(Err(io::Error::from_raw_os_error(errno)));
        for gone in [libc::ENOENT, libc::ESRCH] {
            assert_eq!(read(gone).unwrap(), Told::Ended);
        }
        for own in [libc::EMFILE, libc::ENFILE, libc::ENOMEM] {
            assert_eq!(read(own).unwrap_err().raw_os_error(), Some(own));
        }
        assert_eq!(read(libc::EACCES).unwrap(), Told::Withheld);
    }

    proptest! {
        #[test]
        fn any_environment_can_be_looked_at(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = mark_in(&bytes);
        }
    }
}

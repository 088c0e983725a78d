//! What VMs use at the moment: the engine's process and the disks on the host, and what the
//! guest tells. Nothing here looks by itself: every look is somebody's request.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use banger_engine::Counters;
use banger_proto::agent::Stats;
use banger_proto::api::{HostUsage, VmHealth, VmState, VmStats};
use banger_proto::error::{ApiError, ErrorKind};
use banger_proto::id::{RequestId, VmId};
use banger_proto::name::VmName;
use banger_proto::size::ByteSize;
use futures_util::future::join_all;
use rustix::time::{ClockId, clock_gettime};

use crate::fleet::{Fleet, refused};
use crate::guest::RequestError;
use crate::vm::lifecycle::Request;
use crate::vm::task::{Handle, Status};

/// How long a guest may take to tell what it uses. Others are asked at the same time, so that
/// one that hangs holds a look up for just that long.
const STATS_LIMIT: Duration = Duration::from_secs(5);
/// How long a guest may take to answer whether it is well, a link being mended included.
const HEALTH_LIMIT: Duration = Duration::from_secs(10);
/// `USER_HZ`: 100 wherever banger runs (time(7), proc_pid_stat(5)).
const MICROSECONDS_PER_TICK: u64 = 10_000;

/// What every VM uses of which anything runs, the oldest first.
pub async fn of_running(fleet: &Fleet, request: &RequestId) -> Vec<VmStats> {
    let handles = fleet.handles();
    let runs = |vm: &&Handle| {
        let state = vm.look(|status| status.row.phase.state());
        matches!(state, VmState::Running | VmState::Paused)
    };
    let looks = handles.iter().filter(runs);
    join_all(looks.map(|vm| of_vm(fleet, vm, request))).await
}

/// What one VM uses. What cannot be known is left out, and for the guest it is said why.
pub async fn of_vm(fleet: &Fleet, vm: &Handle, request: &RequestId) -> VmStats {
    let status = vm.status();
    let row = &status.row;
    let layout = fleet.host().layout(&row.id, row.slot);
    let pid = status.pid;
    let on_host = crate::blocking(move || {
        let disks = [&layout.system_disk, &layout.work_disk];
        let used = disks.map(|disk| used(disk)).iter().sum();
        (pid.and_then(of_process), ByteSize::from_bytes(used))
    });
    let ((host, disk_used), guest) = tokio::join!(on_host, of_guest(&status, request));
    let (guest, guest_error) = match guest {
        Ok(stats) => (Some(stats), None),
        Err(error) => (None, Some(error)),
    };
    VmStats {
        vm: row.id.clone(),
        vm_name: row.name.clone(),
        node: fleet.host().node.clone(),
        state: row.phase.state(),
        at_us: now_us(),
        host,
        guest,
        guest_error,
        disk_used,
    }
}

/// What a VM's engine has counted.
#[derive(Clone, Debug)]
pub struct Counted {
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub vm_name: VmName,
    /// What.
    pub counters: Counters,
}

/// What the engines of these VMs have counted. One that gives no answer is left out.
pub async fn counted(vms: &[Status]) -> Vec<Counted> {
    let asked = vms.iter().filter_map(|vm| {
        let machine = vm.machine.clone()?;
        Some(async move {
            let counters = tokio::time::timeout(STATS_LIMIT, machine.counters()).await;
            let counters = counters
                .inspect_err(|_| tracing::debug!(vm = %vm.row.name, "its engine does not answer"))
                .ok()?
                .inspect_err(|error| tracing::debug!(vm = %vm.row.name, %error, "no metrics"))
                .ok()?;
            Some(Counted {
                vm: vm.row.id.clone(),
                vm_name: vm.row.name.clone(),
                counters,
            })
        })
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// Whether a VM runs and its agent answers.
pub async fn health(vm: &Handle, request: &RequestId) -> VmHealth {
    let asked = async {
        let guest = vm.guest().await;
        let guest = guest.map_err(|error| refused(vm, Request::Attach, &error))?;
        let begin = Instant::now();
        let answer = guest.for_request(request).health().await;
        let answer = answer.map_err(|error| unanswered(vm, &error))?;
        Ok((answer, begin.elapsed()))
    };
    let answer = match tokio::time::timeout(HEALTH_LIMIT, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(unanswered(vm, &too_slow(HEALTH_LIMIT))),
    };
    let status = vm.status();
    let (agent, round_trip_ms, error) = match answer {
        Ok((agent, took)) => (Some(agent), Some(took.as_secs_f64() * 1e3), None),
        Err(error) => (None, None, Some(error)),
    };
    VmHealth {
        vm: status.row.id,
        vm_name: status.row.name,
        state: status.row.phase.state(),
        healthy: agent.is_some(),
        round_trip_ms,
        agent,
        error,
    }
}

/// The error of a guest that was asked and gave no good answer.
pub fn unanswered(vm: &Handle, error: &RequestError) -> ApiError {
    let name = vm.name();
    ApiError::new(error.kind(), format!("could not ask VM `{name}`"))
        .caused_by(error)
        .with_hint(format!(
            "see `banger vm logs {name}`; `banger vm stop {name}` ends it in any case"
        ))
}

async fn of_guest(status: &Status, request: &RequestId) -> Result<Stats, ApiError> {
    let could_not = |kind| {
        let name = &status.row.name;
        ApiError::new(kind, format!("could not ask the guest of VM `{name}`"))
    };
    let guest = match (status.row.phase.state(), &status.guest) {
        (VmState::Running, Some(guest)) => guest.for_request(request),
        (VmState::Running, None) => {
            let mut error = could_not(ErrorKind::Unavailable);
            error.causes.push("the link to its agent is down".into());
            return Err(error);
        }
        (state, _) => {
            let mut error = could_not(ErrorKind::Conflict);
            error.causes.push(format!("it is {state}"));
            return Err(error);
        }
    };
    let answer = match tokio::time::timeout(STATS_LIMIT, guest.stats()).await {
        Ok(answer) => answer,
        Err(_) => Err(too_slow(STATS_LIMIT)),
    };
    answer.map_err(|error| could_not(error.kind()).caused_by(&error))
}

fn too_slow(limit: Duration) -> RequestError {
    RequestError::Timeout {
        seconds: limit.as_secs(),
    }
}

/// What a process uses; `None` if it has ended.
pub fn of_process(pid: u32) -> Option<HostUsage> {
    let read = |file| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    Some(HostUsage {
        pid,
        cpu_us: cpu_us(&read("stat")?)?,
        memory: resident(&read("status")?)?,
    })
}

/// The time that all threads have spent, in the kernel and out of it (proc_pid_stat(5), fields
/// 14 and 15). The process's name, which may hold anything, ends at the last parenthesis.
fn cpu_us(stat: &str) -> Option<u64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some((ticks()? + ticks()?) * MICROSECONDS_PER_TICK)
}

/// Memory that the process holds (proc_pid_status(5)). One that is ending holds none.
fn resident(status: &str) -> Option<ByteSize> {
    let Some(line) = status.lines().find_map(|line| line.strip_prefix("VmRSS:")) else {
        return Some(ByteSize::from_bytes(0));
    };
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(ByteSize::from_bytes(kib << 10))
}

/// Bytes that a sparse file takes; none if there is no such file.
fn used(path: &Path) -> u64 {
    // st_blocks counts 512 bytes each, whatever the file system's blocks (inode(7)).
    std::fs::metadata(path).map_or(0, |metadata| metadata.blocks() * 512)
}

fn now_us() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).expect("the monotonic clock is not negative");
    let nanoseconds = u64::try_from(time.tv_nsec).expect("it is a part of a second");
    seconds * 1_000_000 + nanoseconds / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_confuses_nobody() {
        let stat = "7 (a) b (c) 1 2) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 3 0 99 1 1";
        assert_eq!(cpu_us(stat), Some(2_000_000));
        assert_eq!(cpu_us("rubbish"), None);
    }

    #[test]
    fn memory_is_what_is_resident() {
        let resident_of = |status| resident(status).unwrap().bytes();
        assert_eq!(resident_of("Name:\ta\nVmRSS:\t    2048 kB\n"), 2 << 20);
        assert_eq!(resident_of("Name:\ta\nState:\tZ (zombie)\n"), 0);
    }

    #[test]
    fn this_process_uses_something_and_one_that_is_gone_nothing() {
        let own = of_process(std::process::id()).unwrap();
        assert!(own.memory.bytes() > 0);
        assert_eq!(of_process(u32::MAX), None);
    }

    #[test]
    fn a_sparse_file_takes_what_is_written_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(1 << 30).unwrap();
        assert!(used(&path) < 1 << 20);
        assert_eq!(used(&dir.path().join("none")), 0);
    }
}

//! The QEMU engine with real QEMUs whose guests are a few instructions.

#![expect(clippy::disallowed_methods, reason = "tests start what they test")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use banger_engine::{
    Access, Activity, ControlError, Engine, ExitCause, LaunchError, MachineHandle, Qemu, process,
};
use banger_proto::agent::DiskRole;
use rustix::process::Signal;
use support::{HELLO, Home, IDLE, POWER_OFF, RESET, has_open, look, session, status};

/// Longest wait for anything in here.
const LIMIT: Duration = Duration::from_secs(60);

fn qemu() -> Option<Qemu> {
    match Qemu::find(None) {
        Ok(qemu) => Some(qemu),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

macro_rules! qemu_or_skip {
    () => {
        match qemu() {
            Some(qemu) => qemu,
            None => return,
        }
    };
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future)
        .await
        .expect("it happens in time")
}

#[tokio::test]
async fn a_guest_that_powers_off_ends_its_machine_and_everybody_learns_it() {
    let qemu = qemu_or_skip!();
    let home = Home::new();
    let machine = qemu.launch(home.spec(POWER_OFF)).await.unwrap();
    let (first, second) = in_time(async { tokio::join!(machine.exited(), machine.exited()) }).await;
    assert_eq!(first.cause, ExitCause::PoweredOff, "{:?}", first.engine_log);
    assert_eq!(first, second);
    assert!(matches!(machine.pause().await, Err(ControlError::Ended)));
    machine.kill().await.unwrap();
    banger_engine::release(&home.place).await.unwrap();
    home.assert_released(&qemu).await;
}

#[tokio::test]
async fn a_guest_that_restarts_ends_its_machine() {
    let qemu = qemu_or_skip!();
    let home = Home::new();
    let machine = qemu.launch(home.spec(RESET)).await.unwrap();
    assert_eq!(in_time(machine.exited()).await.cause, ExitCause::Reset);
    banger_engine::release(&home.place).await.unwrap();
}

#[tokio::test]
async fn the_console_goes_to_its_log_and_the_log_before_is_kept() {
    let qemu = qemu_or_skip!();
    let home = Home::new();
    home.file("console.log", b"of the boot before\n");
    let machine = qemu.launch(home.spec(HELLO)).await.unwrap();
    let console = home.place.console_log();
    in_time(async {
        while fs::read(&console).unwrap() != b"hi\n" {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(
        fs::read(home.path("console.log.1")).unwrap(),
        b"of the boot before\n"
    );
    machine.kill().await.unwrap();
    banger_engine::release(&home.place).await.unwrap();
}

#[tokio::test]
async fn a_machine_is_paused_and_resumed_and_killed() {
    let qemu = qemu_or_skip!();
    let home = Home::new();
    let machine = qemu.launch(home.spec(IDLE)).await.unwrap();
    assert_eq!(machine.activity().await.unwrap(), Activity::Running);
    machine.pause().await.unwrap();
    assert_eq!(machine.activity().await.unwrap(), Activity::Paused);
    machine.resume().await.unwrap();
    assert_eq!(machine.activity().await.unwrap(), Activity::Running);
    machine.power_button().await.unwrap();
    in_time(machine.kill()).await.unwrap();
    assert_eq!(
        in_time(machine.exited()).await.cause,
        ExitCause::Killed { signal: Some(9) }
    );
    banger_engine::release(&home.place).await.unwrap();
    home.assert_released(&qemu).await;
}

#[tokio::test]
async fn an_engine_is_detached_unprivileged_and_inherits_only_its_own() {
    let qemu = qemu_or_skip!();
    let home = Home::new();
    let mut spec = home.spec(IDLE);
    spec.disks = vec![
        home.disk(DiskRole::Base, Access::ReadOnly),
        home.disk(DiskRole::System, Access::ReadWrite),
    ];
    // What a careless library would leave open across an exec.
    let leaked = fs::File::create(home.path("leaked")).unwrap();
    // SAFETY: changes a flag of a descriptor that is open.
    unsafe { libc_fcntl_clear_cloexec(&leaked) };
    let machine = qemu.launch(spec).await.unwrap();
    let pid = machine.handle().process.pid;

    assert_eq!(session(pid), pid);
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    assert_eq!(status(pid, "Seccomp"), "2");
    assert!(!has_open(pid, &home.path("leaked")));
    assert!(has_open(pid, &home.path("system")));
    for socket in [home.place.agent_socket(), home.place.control_socket()] {
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&socket).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"));
    if is_root() {
        let users: Vec<u32> = status(pid, "Uid")
            .split(' ')
            .map(|uid| uid.parse().unwrap())
            .collect();
        assert!(
            users.iter().all(|uid| *uid == users[0] && *uid != 0),
            "{users:?}"
        );
        assert_eq!(status(pid, "Groups"), "");
        assert_eq!(status(pid, "CapEff"), "0000000000000000");
    } else {
        eprintln!("skipped: only root's engines change their user");
    }
    machine.kill().await.unwrap();
    banger_engine::release(&home.place).await.unwrap();
}

/// `fcntl(F_SETFD, 0)`.
unsafe fn libc_fcntl_clear_cloexec(file: &fs::File) {
    // SAFETY: the descriptor is open, the command takes a number.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFD, 0) };
    assert_eq!(result, 0);
}

fn is_root() -> bool {
    // SAFETY: takes and changes nothing.
    unsafe { libc::geteuid() == 0 }
}

#[tokio::test]
async fn what_is_written_before_the_guest_is_up_waits() {
    let qemu = qemu_or_skip!();
    let home = Home::new();
    let machine = qemu.launch(home.spec(IDLE)).await.unwrap();
    let mut stream = machine.connect().await.unwrap();
    assert!(stream.all_taken().unwrap());
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"hello")
        .await
        .unwrap();
    assert!(!stream.all_taken().unwrap());
    machine.kill().await.unwrap();
    banger_engine::release(&home.place).await.unwrap();
}

#[tokio::test]
async fn a_launch_that_is_called_off_leaves_nothing_after_its_release() {
    let qemu = qemu_or_skip!();
    let home = Home::new();
    let called_off = tokio::time::timeout(Duration::ZERO, qemu.launch(home.spec(IDLE))).await;
    assert!(called_off.is_err());
    assert_eq!(process::marked(&home.place.instance).unwrap().len(), 1);
    banger_engine::release(&home.place).await.unwrap();
    home.assert_released(&qemu).await;
    // Once more: there is nothing to release, and that is no failure.
    banger_engine::release(&home.place).await.unwrap();
}

#[tokio::test]
async fn a_released_place_can_be_launched_again() {
    let qemu = qemu_or_skip!();
    let home = Home::new();
    for _ in 0..2 {
        qemu.launch(home.spec(IDLE)).await.unwrap();
        banger_engine::release(&home.place).await.unwrap();
        home.assert_released(&qemu).await;
    }
}

#[tokio::test]
async fn a_launch_says_what_cannot_be_used() {
    let qemu = qemu_or_skip!();
    let home = Home::new();
    let mut shown = Vec::new();
    let mut fails = async |what: &str, change: &dyn Fn(&mut banger_engine::MachineSpec)| {
        let mut spec = home.spec(IDLE);
        change(&mut spec);
        let error = qemu.launch(spec).await.unwrap_err();
        shown.push(format!("--- {what}\n{}", home.shown(&error)));
        banger_engine::release(&home.place).await.unwrap();
        home.assert_released(&qemu).await;
    };
    fails("no kernel", &|spec| spec.kernel = home.path("missing")).await;
    fails("a kernel that is none", &|spec| {
        spec.kernel = home.file("text", b"no kernel")
    })
    .await;
    fails("no initrd", &|spec| spec.initrd = home.path("missing")).await;
    let disk = |path: &str| banger_engine::Disk {
        path: home.path(path),
        role: DiskRole::Base,
        access: Access::ReadOnly,
    };
    fails("no disk", &|spec| spec.disks = vec![disk("missing")]).await;
    fails("a disk that is a directory", &|spec| {
        spec.disks = vec![disk(".")]
    })
    .await;
    fails("more memory than there is", &|spec| {
        spec.memory = banger_proto::size::ByteSize::from_gib(1 << 19);
    })
    .await;
    fails("a tap that is none", &|spec| {
        spec.nic = Some(banger_engine::Nic {
            mac: "02:00:00:00:00:01".to_owned(),
            tap: OwnedFd::from(fs::File::open("/dev/null").unwrap()),
            mtu: 1500,
        });
    })
    .await;
    insta::with_settings!({filters => vec![(r"/proc/self/fd/\d+", "/proc/self/fd/N"), (r"fd=\d+", "fd=N"), (r"FD \d+", "FD N")]}, {
        insta::assert_snapshot!(shown.join("\n"));
    });
}

#[tokio::test]
async fn two_machines_cannot_write_to_one_disk() {
    let qemu = qemu_or_skip!();
    let (first, second) = (Home::new(), Home::new());
    let disk = first.disk(DiskRole::Work, Access::ReadWrite);
    let mut spec = first.spec(IDLE);
    spec.disks = vec![disk.clone()];
    let machine = qemu.launch(spec).await.unwrap();
    let mut spec = second.spec(IDLE);
    spec.disks = vec![disk];
    let error = qemu.launch(spec).await.unwrap_err();
    assert!(matches!(&error, LaunchError::Refused(_)));
    assert!(
        second.shown(&error).contains("lock"),
        "{}",
        second.shown(&error)
    );
    machine.kill().await.unwrap();
    banger_engine::release(&first.place).await.unwrap();
    banger_engine::release(&second.place).await.unwrap();
}

#[tokio::test]
async fn a_program_that_is_gone_is_named() {
    let home = Home::new();
    // Root's engine is no longer root when it is executed.
    fs::set_permissions(
        home.path(""),
        std::os::unix::fs::PermissionsExt::from_mode(0o711),
    )
    .unwrap();
    let program = home.path("qemu");
    fs::write(&program, "#!/bin/sh\necho QEMU emulator version 8.1.0\n").unwrap();
    fs::set_permissions(
        &program,
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let qemu = Qemu::find(Some(&program)).unwrap();
    fs::remove_file(&program).unwrap();
    let error = qemu.launch(home.spec(IDLE)).await.unwrap_err();
    insta::assert_snapshot!(home.shown(&error), @r"
    could not start `HOME/qemu`
    No such file or directory (os error 2)
    ");
    banger_engine::release(&home.place).await.unwrap();
}

/// Set for the process that launches a machine and dies.
const LAUNCHER: &str = "BANGER_TEST_LAUNCHER";

/// Not a test of its own: the daemon that dies in the next one.
#[tokio::test]
async fn launcher() {
    let Some(directory) = std::env::var_os(LAUNCHER) else {
        return;
    };
    let home = Home::new();
    let qemu = Qemu::find(None).unwrap();
    let mut spec = home.spec(IDLE);
    spec.place.log_dir = directory.into();
    let file = fs::read_to_string(spec.place.log_dir.join("place")).unwrap();
    let (instance, vm) = file.split_once(' ').unwrap();
    spec.place.instance = instance.parse().unwrap();
    spec.place.vm = vm.parse().unwrap();
    spec.place.runtime_dir = spec.place.log_dir.clone();
    let log_dir = spec.place.log_dir.clone();
    let machine = qemu.launch(spec).await.unwrap();
    fs::write(
        log_dir.join("handle"),
        serde_json::to_vec(machine.handle()).unwrap(),
    )
    .unwrap();
    drop(home);
    // As a daemon that is killed: nothing is taken down.
    // SAFETY: signals this process.
    unsafe { libc::raise(libc::SIGKILL) };
}

/// Launches a machine whose daemon is killed.
fn outlive_daemon(home: &Home) -> MachineHandle {
    fs::write(
        home.path("place"),
        format!("{} {}", home.place.instance, home.place.vm),
    )
    .unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "launcher", "--nocapture"])
        .env(LAUNCHER, home.path(""))
        .output()
        .unwrap();
    assert!(!output.status.success());
    serde_json::from_slice(&fs::read(home.path("handle")).unwrap()).unwrap()
}

#[tokio::test]
async fn a_machine_outlives_its_daemon_and_is_adopted_by_the_next() {
    let qemu = qemu_or_skip!();
    let home = Home::new();
    let handle = outlive_daemon(&home);

    // By the handle; by the mark alone; and by the mark if the handle is of something else.
    let stale = MachineHandle {
        process: process::ProcessId::of(std::process::id()).unwrap(),
        ..handle.clone()
    };
    for known in [Some(&handle), None, Some(&stale)] {
        let machine = banger_engine::adopt(qemu.kind(), &home.place, known, &look())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(machine.handle(), &handle);
    }
    let machine = banger_engine::adopt(qemu.kind(), &home.place, Some(&handle), &look())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        in_time(machine.activity()).await.unwrap(),
        Activity::Running
    );
    machine.connect().await.unwrap();

    let (exit, killed) = in_time(async { tokio::join!(machine.exited(), machine.kill()) }).await;
    killed.unwrap();
    assert_eq!(exit.cause, ExitCause::Killed { signal: Some(9) });
    assert!(
        banger_engine::adopt(qemu.kind(), &home.place, Some(&handle), &look())
            .await
            .unwrap()
            .is_none()
    );
    banger_engine::release(&home.place).await.unwrap();
    home.assert_released(&qemu).await;
}

#[tokio::test]
async fn an_adopted_machine_that_another_kills_has_failed() {
    let qemu = qemu_or_skip!();
    let home = Home::new();
    let handle = outlive_daemon(&home);
    let machine = banger_engine::adopt(qemu.kind(), &home.place, Some(&handle), &look())
        .await
        .unwrap()
        .unwrap();
    // It has negotiated by now.
    in_time(machine.activity()).await.unwrap();
    machine.signal(Signal::KILL).unwrap();
    let exit = in_time(machine.exited()).await;
    assert!(matches!(exit.cause, ExitCause::Failed(_)), "{exit:?}");
    banger_engine::release(&home.place).await.unwrap();
}

#[tokio::test]
async fn a_socket_left_over_from_a_crash_is_an_error_until_it_is_released() {
    let qemu = qemu_or_skip!();
    let home = Home::new();
    drop(std::os::unix::net::UnixListener::bind(home.place.agent_socket()).unwrap());
    let error = qemu.launch(home.spec(IDLE)).await.unwrap_err();
    let is_in_use = |error: &LaunchError| match error {
        LaunchError::Socket { source, .. } => source.kind() == io::ErrorKind::AddrInUse,
        _ => false,
    };
    assert!(is_in_use(&error), "{error:?}");
    banger_engine::release(&home.place).await.unwrap();
    qemu.launch(home.spec(IDLE)).await.unwrap();
    banger_engine::release(&home.place).await.unwrap();
    assert!(!Path::new(&home.place.agent_socket()).exists());
}

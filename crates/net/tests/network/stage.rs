//! A host of its own for one case: an interface with MTU 1400, a default route, a resolver,
//! and `/dev/net/tun` open to everybody.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::world;

/// How long the host's interface may take to have a carrier.
const CARRIER_MAX: Duration = Duration::from_secs(20);
/// The host's MTU.
pub const MTU: u16 = 1400;
/// The host's address.
pub const HOST: &str = "192.0.2.2";
/// Whom ordinary cases run as. It needs no entry in /etc/passwd.
const ORDINARY: &str = "61234";

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// What these tests need and is not there.
pub fn lack() -> Option<String> {
    let tools = ["unshare", "setpriv", "ip", "nft", "pasta"];
    let directories = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin".split(':');
    let there = |tool: &&str| {
        directories
            .clone()
            .any(|d| Path::new(d).join(tool).exists())
    };
    if let Some(tool) = tools.iter().find(|tool| !there(tool)) {
        return Some(format!("{tool} is not installed"));
    }
    let tun = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun");
    tun.err()
        .map(|error| format!("/dev/net/tun cannot be opened: {error}"))
}

/// Sets the stage in the namespaces of this process, and runs the case on it.
pub fn set(case: &str, user: &str) -> Result<(), String> {
    let directory = tempfile::Builder::new().prefix("banger-net.").tempdir();
    let directory = directory.map_err(|error| format!("no directory: {error}"))?;
    let directory = directory.path();
    run("mount --make-rprivate /")?;
    run("mount -t sysfs sysfs /sys")?;
    run("ip link set lo up")?;
    let mut world = start_world()?;
    run(&format!(
        "ip link add host0 mtu {MTU} type veth peer name world0 netns {}",
        world.id()
    ))?;
    // Its own address for IPv6 would come up some time later, and look like a change.
    run("ip link set host0 addrgenmode none")?;
    run(&format!("ip addr add {HOST}/24 dev host0"))?;
    run("ip link set host0 up")?;
    // The world waits for its end of the cable, and says when it serves.
    world::wait_until_it_serves(&mut world)?;
    await_carrier()?;
    run(&format!("ip route add default via {}", world::GATEWAY))?;
    let ping = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
    ping.or_else(|_| fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0"))
        .map_err(|error| format!("no ping: {error}"))?;
    give_resolver(directory)?;
    if is_root()
        && fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| map.contains("4294967295"))
    {
        give_tun(directory)?;
    }
    let program = directory.join("network");
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    fs::copy(own, &program).map_err(|error| error.to_string())?;
    let place = directory.join("case");
    fs::create_dir(&place).map_err(|error| error.to_string())?;
    mode(directory, 0o755)?;
    let mut case_process = match user {
        "Root" => Command::new(&program),
        _ => {
            let owner = ORDINARY.parse().ok();
            std::os::unix::fs::chown(&place, owner, owner).map_err(|error| error.to_string())?;
            let mut setpriv = Command::new("setpriv");
            setpriv
                .args([
                    "--reuid",
                    ORDINARY,
                    "--regid",
                    ORDINARY,
                    "--clear-groups",
                    "--",
                ])
                .arg(&program);
            setpriv
        }
    };
    let case_process = case_process.arg("case").arg(case).arg(&place);
    let status = case_process.status().map_err(|error| error.to_string())?;
    if !status.success() {
        let log = fs::read_to_string(place.join("log/net.log")).unwrap_or_default();
        return Err(format!("{case}: {status}; the holder's log:\n{log}"));
    }
    Ok(())
}

/// The kernel notices some time after the other end is up that there is a carrier, which would look
/// like a change of the host's.
fn await_carrier() -> Result<(), String> {
    let end = Instant::now() + CARRIER_MAX;
    while Instant::now() < end {
        let state = fs::read_to_string("/sys/class/net/host0/operstate");
        if state.map_err(|error| error.to_string())?.trim() == "up" {
            return Ok(());
        }
        std::thread::yield_now();
    }
    Err("the host's interface gets no carrier".to_owned())
}

/// Runs a command line of plain words.
pub fn run(line: &str) -> Result<(), String> {
    let mut words = line.split(' ');
    let program = words.next().ok_or("no program")?;
    let output = Command::new(program).args(words).output();
    let output = output.map_err(|error| format!("{line}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "{line}: {}",
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}

fn start_world() -> Result<Child, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut world = Command::new("unshare")
        .args(["--net", "--"])
        .arg(own)
        .arg("world")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    world::wait_until_it_is_apart(&mut world)?;
    Ok(world)
}

fn give_resolver(directory: &Path) -> Result<(), String> {
    let resolver = directory.join("resolv.conf");
    let text = format!("nameserver {}\n", world::SERVER);
    fs::write(&resolver, text).map_err(|error| error.to_string())?;
    mode(&resolver, 0o644)?;
    run(&format!(
        "mount --bind {} /etc/resolv.conf",
        resolver.display()
    ))
}

fn give_tun(directory: &Path) -> Result<(), String> {
    let tun = directory.join("tun");
    run(&format!("mknod -m 666 {} c 10 200", tun.display()))?;
    run(&format!("mount --bind {} /dev/net/tun", tun.display()))
}

fn mode(path: &Path, mode: u32) -> Result<(), String> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(|error| error.to_string())
}

//! What the network needs of the host, for doctor and for failures that lack it.

use std::error::Error;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use banger_proto::doctor::Check;

use crate::config::NetworkConfig;
use crate::holder::{Arguments, TUN, open_tun};
use crate::host;
use crate::plan::Subnet;

/// How long a program may take to tell its version.
const RUN_MAX: Duration = Duration::from_secs(5);

/// Checks what the network needs of the host. It runs `pasta`, `nft` and the holder for a
/// moment, which takes some ten milliseconds: call it where blocking is fine.
pub fn checks(config: &NetworkConfig) -> Vec<Check> {
    let found = |result: Result<Check, Check>| result.unwrap_or_else(|check| check);
    vec![
        found(tun()),
        found(namespaces(config)),
        found(NFT.check()),
        found(pasta()),
        way_out(),
        range(config),
        ping(),
    ]
}

/// What keeps a VM from being attached, as far as can be told without starting anything.
pub fn missing(nat: bool) -> Option<Check> {
    tun()
        .err()
        .or_else(|| NFT.find().err())
        .or_else(|| pasta_missing().filter(|_| nat))
}

/// What is wrong if pasta is not there.
pub(crate) fn pasta_missing() -> Option<Check> {
    PASTA.find().err()
}

fn tun() -> Result<Check, Check> {
    const ID: &str = "net.tun";
    const TITLE: &str = "tap devices";
    match open_tun() {
        Ok(_) => Ok(Check::pass(ID, TITLE, format!("{TUN} can be opened"))),
        Err(error) => {
            let fix = match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    "as root: chmod 0666 /dev/net/tun; to keep it so, add the udev rule \
                     KERNEL==\"tun\", MODE=\"0666\""
                }
                _ => "as root: modprobe tun",
            };
            Err(Check::fail(
                ID,
                TITLE,
                format!("{TUN} cannot be opened: {error}"),
                fix,
            ))
        }
    }
}

/// Whether the holder's namespaces can be had: a holder makes them and ends.
fn namespaces(config: &NetworkConfig) -> Result<Check, Check> {
    const ID: &str = "net.namespaces";
    const TITLE: &str = "user namespaces";
    let Some((program, first)) = config.holder.split_first() else {
        let detail = "no program is given for the network's holder";
        return Err(Check::fail(ID, TITLE, detail, "reinstall banger"));
    };
    let mut probe = banger_process::command(program);
    probe.args(first).args(Arguments::Probe.render());
    match output_of(&mut probe) {
        Ok(_) => Ok(Check::pass(
            ID,
            TITLE,
            "user, PID and network namespaces can be made",
        )),
        Err(detail) => Err(Check::fail(ID, TITLE, detail, namespaces_fix())),
    }
}

/// The switches that systems have for this, and the one that is off.
fn namespaces_fix() -> &'static str {
    let is = |path: &str, value: &str| {
        fs::read_to_string(path).is_ok_and(|content| content.trim() == value)
    };
    if is(
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
    ) {
        // Ubuntu 24.04 and later.
        return "as root: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, \
                or give bangerd an AppArmor profile with `userns,`";
    }
    if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        return "as root: sysctl -w kernel.unprivileged_userns_clone=1";
    }
    if is("/proc/sys/user/max_user_namespaces", "0") {
        return "as root: sysctl -w user.max_user_namespaces=15000";
    }
    "the kernel needs CONFIG_USER_NS, CONFIG_PID_NS and CONFIG_NET_NS, and a container \
     around banger must allow unshare(2)"
}

const NFT: Program = Program {
    id: "net.nft",
    name: "nft",
    fix: "as root: apt install nftables",
};

const PASTA: Program = Program {
    id: "net.pasta",
    name: "pasta",
    fix: "as root: apt install passt",
};

/// A program that the network runs.
struct Program {
    id: &'static str,
    name: &'static str,
    fix: &'static str,
}

impl Program {
    fn find(&self) -> Result<PathBuf, Check> {
        banger_process::find(self.name).ok_or_else(|| {
            let detail = format!("{} is not installed", self.name);
            Check::fail(self.id, self.name, detail, self.fix)
        })
    }

    fn check(&self) -> Result<Check, Check> {
        let path = self.find()?;
        match output_of(banger_process::command(&path).arg("--version")) {
            Ok(output) => {
                let version = output.lines().next().unwrap_or_default().trim();
                let detail = format!("{}: {version}", path.display());
                Ok(Check::pass(self.id, self.name, detail))
            }
            Err(error) => {
                let detail = format!("{} does not run: {error}", path.display());
                Err(Check::fail(self.id, self.name, detail, self.fix))
            }
        }
    }
}

/// Whether pasta is there and not too old. Distributions build it without a version, so its
/// age is told by an option that came in August 2024.
fn pasta() -> Result<Check, Check> {
    let check = PASTA.check()?;
    let options =
        output_of(banger_process::command(PASTA.find()?).arg("--help")).unwrap_or_default();
    if options.contains("--map-guest-addr") {
        return Ok(check);
    }
    let detail = format!(
        "{}; it is older than August 2024, and that of Debian 12 is known to repeat data to a \
         guest that has closed its own side of a TCP connection, as `nc -N` does",
        check.detail
    );
    let fix = "use a newer passt, such as Debian 13's, where such connections matter";
    Ok(Check::warn(&check.id, &check.title, detail, fix))
}

/// Runs a command of few words for at most [`RUN_MAX`].
fn output_of(command: &mut Command) -> Result<String, String> {
    match banger_process::run(command, Some(RUN_MAX)) {
        Ok(printed) => Ok(String::from_utf8_lossy(&printed).into_owned()),
        // Those who ask name the program themselves.
        Err(error) => Err(error
            .source()
            .map_or_else(|| error.to_string(), ToString::to_string)),
    }
}

fn way_out() -> Check {
    const ID: &str = "net.way-out";
    const TITLE: &str = "way out";
    let routes = host::routes().unwrap_or_default();
    match host::way_out(&routes) {
        Some(route) => {
            let mtu = host::mtu(&route.interface);
            let mtu = mtu.map_or("unknown".to_owned(), |mtu| mtu.to_string());
            Check::pass(
                ID,
                TITLE,
                format!("by {}, whose MTU is {mtu}", route.interface),
            )
        }
        None => Check::warn(
            ID,
            TITLE,
            "the host has no IPv4 default route, so VMs reach nothing outside",
            "connect the host to a network",
        ),
    }
}

fn range(config: &NetworkConfig) -> Check {
    const ID: &str = "net.range";
    const TITLE: &str = "addresses of VMs";
    let fix = "set `cidr` in the config to a private range that the host does not use";
    let subnet = match Subnet::new(config.bridge) {
        Ok(subnet) => subnet,
        Err(error) => return Check::fail(ID, TITLE, error.to_string(), fix),
    };
    let range = format!("{}/{}", subnet.network(), subnet.prefix);
    let routes = host::routes().unwrap_or_default();
    match routes.iter().find(|route| route.overlaps(subnet)) {
        None => Check::pass(ID, TITLE, format!("{range} is not among the host's routes")),
        Some(route) => {
            let detail = format!(
                "{range} overlaps {} of {}, which VMs therefore cannot reach",
                route.destination, route.interface
            );
            Check::warn(ID, TITLE, detail, fix)
        }
    }
}

/// pasta sends guests' echo requests by ping sockets (icmp(7)).
fn ping() -> Check {
    const ID: &str = "net.ping";
    const TITLE: &str = "ping from VMs";
    const RANGE: &str = "/proc/sys/net/ipv4/ping_group_range";
    let range = fs::read_to_string(RANGE).unwrap_or_default();
    let bounds: Vec<u32> = range
        .split_whitespace()
        .filter_map(|n| n.parse().ok())
        .collect();
    let group = rustix::process::getegid().as_raw();
    match bounds[..] {
        [first, last] if (first..=last).contains(&group) => {
            Check::pass(ID, TITLE, "VMs can send echo requests outside")
        }
        _ => Check::warn(
            ID,
            TITLE,
            format!("{RANGE} leaves out group {group}, so VMs cannot ping the outside"),
            "as root: sysctl -w net.ipv4.ping_group_range=\"0 2147483647\"",
        ),
    }
}

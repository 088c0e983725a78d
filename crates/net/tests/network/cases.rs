//! The cases: what the network promises.

#![expect(
    clippy::unwrap_used,
    reason = "a case fails by panicking, as any test does"
)]

use std::fs;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use banger_net::{AttachError, ControlError, Network, NetworkConfig};
use banger_proto::doctor::CheckStatus;

use crate::guest::{Guest, next_line};
use crate::leftovers::{self, traces};
use crate::{stage, world};

/// One promise.
pub struct Case {
    pub name: &'static str,
    /// Whether it changes the stage, which an ordinary user cannot.
    pub root_only: bool,
    run: fn(&Place),
}

macro_rules! cases {
    (anybody { $($any:ident,)* } root { $($root:ident,)* }) => {
        pub const CASES: &[Case] = &[
            $(Case { name: stringify!($any), root_only: false, run: $any },)*
            $(Case { name: stringify!($root), root_only: true, run: $root },)*
        ];
    };
}

cases! {
    anybody {
        a_guest_reaches_the_gateway_the_outside_and_a_resolver,
        a_guest_without_nat_reaches_the_gateway_only,
        nat_can_be_switched_while_packets_flow,
        guests_do_not_reach_each_other,
        a_guest_speaks_with_its_own_addresses_only,
        a_guest_does_not_reach_the_hosts_loopback,
        the_last_detach_leaves_nothing,
        a_detached_slot_can_be_attached_again,
        attaching_and_detaching_at_the_same_time_is_safe,
        a_killed_holder_takes_all_with_it_and_a_new_one_works,
        a_holder_outlives_the_daemon_and_is_found_again,
        a_tap_in_use_is_not_given_out_twice,
        a_killed_pasta_comes_back,
        a_holder_that_nobody_waits_for_ends,
        two_instances_stand_side_by_side,
        shutting_down_takes_running_vms_off_the_network,
        a_missing_pasta_is_named_with_the_fix,
        a_pasta_that_refuses_is_quoted_and_nothing_stays,
        rubbish_on_the_socket_does_no_harm,
        a_program_that_is_no_holder_is_told_of,
        doctor_finds_the_stage_in_order,
    }
    root {
        a_resolver_on_the_hosts_loopback_serves_guests,
        a_host_without_a_way_out_still_attaches,
        a_tun_that_cannot_be_opened_is_named_with_the_fix,
    }
}

/// Runs the case called `name` in this process.
pub fn run(name: &str, directory: &Path) -> Result<(), String> {
    let case = CASES.iter().find(|case| case.name == name);
    let case = case.ok_or_else(|| format!("there is no case {name}"))?;
    (case.run)(&Place {
        directory: directory.to_owned(),
    });
    Ok(())
}

/// Where a case runs.
pub struct Place {
    directory: PathBuf,
}

/// Taps are called `bgr-1f2e-<slot>`.
const INSTANCE: &str = "1f2e0000000000000000000000000000";

impl Place {
    fn runtime_dir(&self) -> PathBuf {
        self.directory.join("run")
    }

    fn config(&self) -> NetworkConfig {
        let own = std::env::current_exe().unwrap();
        NetworkConfig {
            instance: INSTANCE.parse().unwrap(),
            bridge: (Ipv4Addr::new(172, 16, 0, 1), 24),
            runtime_dir: self.runtime_dir(),
            log_dir: self.directory.join("log"),
            holder: vec![own.into(), "net-holder".into()],
        }
    }

    fn network(&self) -> Network {
        Network::new(self.config()).unwrap()
    }

    fn traces(&self) -> leftovers::Traces {
        traces(&self.runtime_dir())
    }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(future)
}

/// Waits, for a bounded time, until something outside of this process is so.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        thread::yield_now();
    }
}

#[track_caller]
fn refused(result: Result<String, String>) {
    let error = result.unwrap_err();
    let refused = ["ConnectionRefused", "HostUnreachable", "NetworkUnreachable"];
    assert!(
        refused.iter().any(|kind| error.starts_with(kind)),
        "{error}"
    );
}

#[track_caller]
fn unanswered(result: Result<String, String>) {
    let error = result.unwrap_err();
    let silence = ["WouldBlock", "TimedOut", "HostUnreachable"];
    assert!(
        silence.iter().any(|kind| error.starts_with(kind)),
        "{error}"
    );
}

const MEGABYTE: usize = 1_000_000;

fn a_guest_reaches_the_gateway_the_outside_and_a_resolver(place: &Place) {
    let network = place.network();
    let begun = Instant::now();
    let attachment = wait(network.attach(7, true)).unwrap();
    let first = begun.elapsed();
    assert_eq!(attachment.no_way_out, None);
    let plan = &attachment.plan;
    assert_eq!(
        (plan.ip, plan.mtu),
        (Ipv4Addr::new(172, 16, 0, 8), stage::MTU)
    );
    let guest = Guest::of(&attachment);
    let (server, echo) = (world::SERVER, world::ECHO);
    for deed in [
        format!("ping {}", plan.gateway),
        format!("ping {server}"),
        format!("tcp {server} {echo} 1"),
        format!("tcp {server} {echo} {}", 8 * MEGABYTE),
        format!("udp {server} {echo} 32"),
        // As large as a packet gets, and larger: fragments.
        format!("udp {server} {echo} {}", stage::MTU - 28),
        format!("udp {server} {echo} 9000"),
        format!("dns udp {}", plan.dns),
        format!("dns tcp {}", plan.dns),
    ] {
        guest
            .does(&deed)
            .unwrap_or_else(|error| panic!("{deed}: {error}"));
    }
    let begun = Instant::now();
    let second = wait(network.attach(8, true)).unwrap();
    let further = begun.elapsed();
    Guest::of(&second)
        .does(&format!("tcp {server} {echo} 1000"))
        .unwrap();
    let begun = Instant::now();
    wait(network.detach(8)).unwrap();
    let detach = begun.elapsed();
    eprintln!("first attach {first:?}, further attach {further:?}, detach {detach:?}");
}

fn a_guest_without_nat_reaches_the_gateway_only(place: &Place) {
    let network = place.network();
    let attachment = wait(network.attach(1, false)).unwrap();
    let guest = Guest::of(&attachment);
    guest
        .does(&format!("ping {}", attachment.plan.gateway))
        .unwrap();
    refused(guest.does(&format!("tcp {} {} 1", world::SERVER, world::ECHO)));
    refused(guest.does(&format!("udp {} {} 1", world::SERVER, world::ECHO)));
    refused(guest.does(&format!("dns udp {}", attachment.plan.dns)));
    refused(guest.does(&format!("dns tcp {}", attachment.plan.dns)));
    assert!(guest.does(&format!("ping {}", world::SERVER)).is_err());
    // Nobody asked for the way out, so nobody made it.
    assert_eq!(leftovers::find("pasta "), [0; 0]);
}

fn nat_can_be_switched_while_packets_flow(place: &Place) {
    let network = place.network();
    let attachment = wait(network.attach(1, false)).unwrap();
    let guest = Guest::of(&attachment);
    let stream = format!("stream {} {}", world::SERVER, world::ECHO);
    refused(guest.does(&stream));
    wait(network.set_nat(1, true)).unwrap();
    let mut flowing = guest.start(&stream);
    assert_eq!(next_line(flowing.stdout.as_mut().unwrap()), "flowing");
    wait(network.set_nat(1, false)).unwrap();
    assert!(!flowing.wait().unwrap().success());
    refused(guest.does(&stream));
    let error = wait(network.set_nat(2, true)).unwrap_err();
    assert!(matches!(error, ControlError::NotAttached(2)), "{error:?}");
}

fn guests_do_not_reach_each_other(place: &Place) {
    let network = place.network();
    let first = wait(network.attach(1, true)).unwrap();
    let second = wait(network.attach(2, true)).unwrap();
    // The second is there while it streams.
    let other = Guest::of(&second);
    let mut there = other.start(&format!("stream {} {}", world::SERVER, world::ECHO));
    assert_eq!(next_line(there.stdout.as_mut().unwrap()), "flowing");
    unanswered(Guest::of(&first).does(&format!("ping {}", second.plan.ip)));
    // Nor by way of the gateway, which a host's route to it makes the guest try.
    let mut roundabout = Guest::of(&first);
    roundabout.plan.prefix = 32;
    assert!(
        roundabout
            .does(&format!("ping {}", second.plan.ip))
            .is_err()
    );
    there.kill().unwrap();
    there.wait().unwrap();
}

fn a_guest_speaks_with_its_own_addresses_only(place: &Place) {
    let network = place.network();
    let attachment = wait(network.attach(1, true)).unwrap();
    let gateway = attachment.plan.gateway;
    let ping = format!("ping {gateway}");
    let mut guest = Guest::of(&attachment);
    guest.does(&ping).unwrap();
    guest.plan.ip = Ipv4Addr::new(172, 16, 0, 99);
    unanswered(guest.does(&ping));
    let config = place.config();
    guest.plan = attachment.plan.clone();
    guest.plan.mac = banger_net::plan::plan(&config, 2, 1500).unwrap().mac;
    unanswered(guest.does(&ping));
    guest.plan.mac = attachment.plan.mac;
    guest.does(&ping).unwrap();
}

fn a_guest_does_not_reach_the_hosts_loopback(place: &Place) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let network = place.network();
    let attachment = wait(network.attach(1, true)).unwrap();
    let guest = Guest::of(&attachment);
    let connect = |address: &str| guest.does(&format!("connect {address} {port}"));
    for address in ["172.16.0.1", stage::HOST, world::GATEWAY] {
        let error = connect(address).unwrap_err();
        assert!(error.starts_with("ConnectionRefused"), "{address}: {error}");
    }
    listener.set_nonblocking(true).unwrap();
    let error = listener.accept().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
}

fn a_resolver_on_the_hosts_loopback_serves_guests(place: &Place) {
    // As systemd-resolved does.
    fs::write("/etc/resolv.conf", "nameserver 127.0.0.53\n").unwrap();
    let resolver = UdpSocket::bind("127.0.0.53:53").unwrap();
    thread::spawn(move || world::serve_udp(&resolver, world::answer));
    let attachment = wait(place.network().attach(1, true)).unwrap();
    Guest::of(&attachment)
        .does(&format!("dns udp {}", attachment.plan.dns))
        .unwrap();
}

fn the_last_detach_leaves_nothing(place: &Place) {
    let before = place.traces();
    let network = place.network();
    wait(async {
        for slot in [1, 253] {
            drop(network.attach(slot, true).await.unwrap());
        }
        assert_eq!(network.attached().await.unwrap(), [1, 253].into());
        network.detach(1).await.unwrap();
        assert_eq!(network.attached().await.unwrap(), [253].into());
    });
    // The host is as it was while the network stands, too.
    let standing = place.traces();
    assert_ne!(before, standing);
    wait(network.detach(253)).unwrap();
    assert_eq!(before, place.traces());
    wait(async {
        network.detach(253).await.unwrap();
        network.shut_down().await.unwrap();
        assert!(network.attached().await.unwrap().is_empty());
    });
    assert_eq!(before, place.traces());
    let error = wait(network.attach(254, true)).unwrap_err();
    assert!(matches!(error, AttachError::Plan(_)), "{error:?}");
    assert_eq!(before, place.traces());
}

fn a_detached_slot_can_be_attached_again(place: &Place) {
    let network = place.network();
    let _other = wait(network.attach(2, false)).unwrap();
    for _ in 0..3 {
        let attachment = wait(network.attach(1, true)).unwrap();
        let guest = Guest::of(&attachment);
        guest
            .does(&format!("tcp {} {} 1000", world::SERVER, world::ECHO))
            .unwrap();
        wait(network.detach(1)).unwrap();
        // An engine that still has the tap open is off the network.
        assert!(
            guest
                .does(&format!("ping {}", attachment.plan.gateway))
                .is_err()
        );
    }
}

fn attaching_and_detaching_at_the_same_time_is_safe(place: &Place) {
    let before = place.traces();
    let network = place.network();
    let comings_and_goings = |slot: u16| {
        let network = network.clone();
        async move {
            for turn in 0..12u8 {
                let attachment = network.attach(slot, turn.is_multiple_of(2)).await;
                let attachment = attachment.unwrap_or_else(|error| panic!("{slot}: {error:?}"));
                assert!(network.attached().await.unwrap().contains(&slot), "{slot}");
                drop(attachment);
                network.detach(slot).await.unwrap();
                assert!(!network.attached().await.unwrap().contains(&slot), "{slot}");
            }
        }
    };
    wait(async {
        let tasks: Vec<_> = (1..=4)
            .map(|slot| tokio::spawn(comings_and_goings(slot)))
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
    assert_eq!(before, place.traces());
}

fn a_killed_holder_takes_all_with_it_and_a_new_one_works(place: &Place) {
    let before = place.traces();
    let network = place.network();
    let attachment = wait(network.attach(1, true)).unwrap();
    assert_ne!(leftovers::find("pasta "), [0; 0]);
    leftovers::kill(leftovers::find("net-holder")[0]);
    assert_eq!(leftovers::find("pasta "), [0; 0]);
    assert!(wait(network.attached()).unwrap().is_empty());
    let guest = Guest::of(&attachment);
    assert!(
        guest
            .does(&format!("tcp {} {} 1", world::SERVER, world::ECHO))
            .is_err()
    );
    // The socket's name is there, and nobody behind it.
    assert_ne!(before, place.traces());
    wait(network.detach(1)).unwrap();
    assert_eq!(before, place.traces());

    drop(wait(network.attach(1, true)).unwrap());
    leftovers::kill(leftovers::find("net-holder")[0]);
    let again = wait(network.attach(1, true)).unwrap();
    let again = Guest::of(&again);
    again
        .does(&format!("tcp {} {} 1", world::SERVER, world::ECHO))
        .unwrap();
    wait(network.detach(1)).unwrap();
    assert_eq!(before, place.traces());
}

fn a_holder_outlives_the_daemon_and_is_found_again(place: &Place) {
    let before = place.traces();
    let attachment = wait(place.network().attach(1, true)).unwrap();
    let holder = leftovers::find("net-holder");
    let own = i32::try_from(std::process::id()).unwrap();
    assert_ne!(leftovers::session(holder[0]), leftovers::session(own));
    // Another daemon, as far as the network can tell.
    let network = place.network();
    assert_eq!(wait(network.attached()).unwrap(), [1].into());
    Guest::of(&attachment)
        .does(&format!("ping {}", attachment.plan.gateway))
        .unwrap();
    drop(wait(network.attach(2, true)).unwrap());
    assert_eq!(leftovers::find("net-holder"), holder);
    wait(async {
        network.detach(1).await.unwrap();
        network.detach(2).await.unwrap();
    });
    assert_eq!(before, place.traces());
}

fn a_tap_in_use_is_not_given_out_twice(place: &Place) {
    let network = place.network();
    let attachment = wait(network.attach(1, true)).unwrap();
    let error = wait(network.attach(1, true)).unwrap_err();
    assert!(
        matches!(error, AttachError::Control(ControlError::Refused(_))),
        "{error:?}"
    );
    Guest::of(&attachment)
        .does(&format!("ping {}", attachment.plan.gateway))
        .unwrap();
    // A daemon that died between attaching and launching left a tap that nobody uses.
    drop(attachment);
    let attachment = wait(network.attach(1, true)).unwrap();
    Guest::of(&attachment)
        .does(&format!("ping {}", attachment.plan.gateway))
        .unwrap();
}

fn a_killed_pasta_comes_back(place: &Place) {
    let network = place.network();
    let attachment = wait(network.attach(1, true)).unwrap();
    let guest = Guest::of(&attachment);
    let outside = format!("tcp {} {} 1000", world::SERVER, world::ECHO);
    guest.does(&outside).unwrap();
    let pasta = leftovers::find("pasta ");
    leftovers::kill(pasta[0]);
    eventually("pasta is started again", || {
        let again = leftovers::find("pasta ");
        !again.is_empty() && again != pasta
    });
    // Attaching waits for the way out.
    drop(wait(network.attach(2, true)).unwrap());
    guest.does(&outside).unwrap();
}

fn a_holder_that_nobody_waits_for_ends(place: &Place) {
    let before = place.traces();
    fs::create_dir(place.runtime_dir()).unwrap();
    let log_dir = place.directory.join("log");
    fs::create_dir(&log_dir).unwrap();
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args([
            "net-holder",
            "--instance",
            INSTANCE,
            "--bridge",
            "172.16.0.1/24",
        ])
        .arg("--runtime-dir")
        .arg(place.runtime_dir())
        .arg("--log-dir")
        .arg(log_dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // As when the daemon is killed while it starts a holder.
    drop(holder.stdout.take());
    holder.wait().unwrap();
    eventually("the holder ends", || {
        leftovers::find("net-holder").is_empty()
    });
    assert_eq!(before, place.traces());
    // And it is in nobody's way.
    drop(wait(place.network().attach(1, false)).unwrap());
}

fn two_instances_stand_side_by_side(place: &Place) {
    let before = place.traces();
    let one = place.network();
    let mut config = place.config();
    config.instance = "abcd".repeat(8).parse().unwrap();
    config.runtime_dir = place.directory.join("run2");
    config.log_dir = place.directory.join("log2");
    let two = Network::new(config).unwrap();
    let first = wait(one.attach(1, true)).unwrap();
    let second = wait(two.attach(1, true)).unwrap();
    assert_eq!(first.plan.ip, second.plan.ip);
    let outside = format!("tcp {} {} 1000", world::SERVER, world::ECHO);
    Guest::of(&first).does(&outside).unwrap();
    wait(one.detach(1)).unwrap();
    Guest::of(&second).does(&outside).unwrap();
    wait(two.detach(1)).unwrap();
    assert_eq!(before, place.traces());
}

fn shutting_down_takes_running_vms_off_the_network(place: &Place) {
    let before = place.traces();
    let network = place.network();
    let attachment = wait(network.attach(1, true)).unwrap();
    wait(network.shut_down()).unwrap();
    assert_eq!(before, place.traces());
    let guest = Guest::of(&attachment);
    assert!(
        guest
            .does(&format!("ping {}", attachment.plan.gateway))
            .is_err()
    );
}

/// A directory of programs that stands for all that is installed.
fn only(place: &Place, program: &str, text: Option<&str>) {
    use std::os::unix::fs::PermissionsExt;
    let bin = place.directory.join("bin");
    fs::create_dir_all(&bin).unwrap();
    match text {
        Some(text) => {
            fs::write(bin.join(program), text).unwrap();
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(bin.join(program), mode).unwrap();
        }
        None => {
            std::os::unix::fs::symlink(format!("/usr/sbin/{program}"), bin.join(program)).unwrap()
        }
    }
    // SAFETY: the case has one thread.
    unsafe { std::env::set_var("PATH", &bin) };
}

fn a_missing_pasta_is_named_with_the_fix(place: &Place) {
    only(place, "nft", None);
    let before = place.traces();
    let network = place.network();
    let error = wait(network.attach(1, true)).unwrap_err();
    assert_eq!(error.to_string(), "pasta is not installed");
    assert_eq!(error.hint().unwrap(), "as root: apt install passt");
    assert_eq!(before, place.traces());
    // Who needs no way out needs no pasta, and a holder without one says so later.
    drop(wait(network.attach(1, false)).unwrap());
    let error = wait(network.attach(2, true)).unwrap_err();
    assert_eq!(error.to_string(), "pasta is not installed");
    assert_eq!(wait(network.attached()).unwrap(), [1].into());
    wait(network.detach(1)).unwrap();
    assert_eq!(before, place.traces());
}

fn a_pasta_that_refuses_is_quoted_and_nothing_stays(place: &Place) {
    only(
        place,
        "pasta",
        Some("#!/bin/sh\necho 'no such luck' >&2\nexit 3\n"),
    );
    let before = place.traces();
    let network = place.network();
    let error = wait(network.attach(1, true)).unwrap_err();
    let chain: Vec<String> =
        std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source())
            .map(ToString::to_string)
            .collect();
    let expected = [
        "could not open the way out of the network",
        "`pasta` ended with exit status 3: no such luck",
    ];
    assert_eq!(chain, expected);
    assert_eq!(before, place.traces());
}

fn a_host_without_a_way_out_still_attaches(place: &Place) {
    stage::run("ip route del default").unwrap();
    let network = place.network();
    let attachment = wait(network.attach(1, true)).unwrap();
    assert_eq!(
        attachment.no_way_out.as_deref(),
        Some("the host has no IPv4 default route")
    );
    let guest = Guest::of(&attachment);
    guest
        .does(&format!("ping {}", attachment.plan.gateway))
        .unwrap();
    // When the host gets one, so do the guests.
    stage::run(&format!("ip route add default via {}", world::GATEWAY)).unwrap();
    assert_eq!(wait(network.attach(2, true)).unwrap().no_way_out, None);
    guest
        .does(&format!("tcp {} {} 1000", world::SERVER, world::ECHO))
        .unwrap();
}

fn a_tun_that_cannot_be_opened_is_named_with_the_fix(place: &Place) {
    let before = place.traces();
    // What is not there cannot be opened, not even by root.
    stage::run("mount -t tmpfs tmpfs /dev/net").unwrap();
    let error = wait(place.network().attach(1, true)).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("/dev/net/tun cannot be opened"),
        "{error}"
    );
    assert_eq!(error.hint().unwrap(), "as root: modprobe tun");
    assert_eq!(before, place.traces());
}

fn rubbish_on_the_socket_does_no_harm(place: &Place) {
    use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketType};
    let network = place.network();
    let attachment = wait(network.attach(1, true)).unwrap();
    let address = SocketAddrUnix::new(place.runtime_dir().join("net.sock")).unwrap();
    let connect = || {
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        rustix::net::connect(&socket, &address).unwrap();
        socket
    };
    let mute = connect();
    drop(connect());
    for rubbish in [
        &b"\xff\0"[..],
        b"{\"fly\":{}}",
        b"\"list\" or so",
        &[b' '; 70_000],
    ] {
        let socket = connect();
        rustix::net::send(&socket, rubbish, SendFlags::empty()).unwrap();
        let mut answer = [0; 4096];
        let mut receive =
            || rustix::net::recv(&socket, &mut answer, rustix::net::RecvFlags::empty());
        let (_, hello) = receive().unwrap();
        assert!(hello > 0);
        let (_, length) = receive().unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]);
        assert!(answer.starts_with("{\"refused\""), "{answer}");
    }
    assert_eq!(wait(network.attached()).unwrap(), [1].into());
    Guest::of(&attachment)
        .does(&format!("ping {}", attachment.plan.gateway))
        .unwrap();
    drop(mute);
}

fn a_program_that_is_no_holder_is_told_of(place: &Place) {
    let attach = |holder: &str| {
        let mut config = place.config();
        config.holder = vec![holder.into()];
        let error = wait(Network::new(config).unwrap().attach(1, true)).unwrap_err();
        let AttachError::Start(error) = error else {
            panic!("{error:?}");
        };
        error.to_string()
    };
    assert_eq!(
        attach("/bin/false"),
        "/bin/false ended without becoming a network's holder: exit status: 1"
    );
    assert_eq!(attach("/nowhere"), "could not execute /nowhere");
}

fn doctor_finds_the_stage_in_order(place: &Place) {
    let checks = banger_net::checks(&place.config());
    let verdicts: Vec<String> = checks
        .iter()
        .map(|check| format!("{} {:?} {}", check.id, check.status, check.detail))
        .collect();
    // Debian 12's pasta is old, and said to be.
    let passed = checks.iter().all(|check| match check.id.as_str() {
        "net.pasta" => check.status != CheckStatus::Fail,
        _ => check.status == CheckStatus::Pass,
    });
    assert!(passed, "{verdicts:#?}");
    assert_eq!(checks.len(), 7);
}

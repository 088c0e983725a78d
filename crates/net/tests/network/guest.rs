//! A guest without a machine: a network namespace whose one interface is cross-connected
//! with a VM's tap, as an engine would connect a NIC. Standard input is the tap.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use banger_net::Attachment;
use banger_net::plan::Plan;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketType, ipproto};
use rustix::thread::UnshareFlags;

use crate::{stage, world};

/// How long a guest waits for an answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// A VM's NIC, as it is configured in the guest.
pub struct Guest<'a> {
    pub attachment: &'a Attachment,
    pub plan: Plan,
}

impl<'a> Guest<'a> {
    /// A guest that is configured as planned.
    pub fn of(attachment: &'a Attachment) -> Self {
        Self {
            attachment,
            plan: attachment.plan.clone(),
        }
    }

    /// Does one thing in the guest; what it says, or why it fails.
    pub fn does(&self, words: &str) -> Result<String, String> {
        let output = self.start(words).wait_with_output();
        let output = output.map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        match output.status.success() {
            true => Ok(said),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        }
    }

    /// Begins to do one thing in the guest.
    pub fn start(&self, words: &str) -> Child {
        let tap = self
            .attachment
            .tap
            .try_clone()
            .expect("descriptors can be copied");
        let plan = &self.plan;
        Command::new("/proc/self/exe")
            .arg("guest")
            .args([
                plan.ip.to_string(),
                plan.prefix.to_string(),
                plan.gateway.to_string(),
            ])
            .args([plan.mac.to_string(), plan.mtu.to_string()])
            .args(words.split(' '))
            .stdin(tap)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("this program runs")
    }
}

/// The next line of what a guest says, without the rest.
pub fn next_line(output: &mut ChildStdout) -> String {
    let mut line = Vec::new();
    let mut output = BufReader::with_capacity(1, output);
    output
        .read_until(b'\n', &mut line)
        .expect("guests can be heard");
    String::from_utf8_lossy(&line).trim().to_owned()
}

/// The guest's process.
pub fn run(words: &[&str]) -> Result<(), String> {
    let [ip, prefix, gateway, mac, mtu, deed @ ..] = words else {
        return Err("a guest needs its configuration".to_owned());
    };
    enter_namespace().map_err(|error| format!("no namespace: {error}"))?;
    let nic = open_nic().map_err(|error| format!("no NIC: {error}"))?;
    stage::run(&format!("ip link set eth0 address {mac} mtu {mtu} up"))?;
    stage::run(&format!("ip addr add {ip}/{prefix} dev eth0"))?;
    stage::run(&format!("ip route add default via {gateway}"))?;
    let tap = rustix::io::dup(io::stdin().as_fd()).map_err(|error| error.to_string())?;
    thread::spawn(move || cross_connect(&tap, &nic));
    match deed {
        ["ping", address] => ping(parse(address)?),
        ["tcp", address, port, length] => tcp(parse(address)?, parse(port)?, parse(length)?),
        ["udp", address, port, length] => udp(parse(address)?, parse(port)?, parse(length)?),
        ["connect", address, port] => connect(parse(address)?, parse(port)?).map(drop),
        ["stream", address, port] => stream(parse(address)?, parse(port)?),
        ["dns", "udp", address] => dns_udp(parse(address)?),
        ["dns", "tcp", address] => dns_tcp(parse(address)?),
        _ => return Err(format!("a guest cannot {deed:?}")),
    }
    .map_err(|error| format!("{:?}: {error}", error.kind()))
}

fn parse<T: std::str::FromStr>(word: &str) -> Result<T, String> {
    word.parse()
        .map_err(|_| format!("{word} makes no sense here"))
}

fn enter_namespace() -> io::Result<()> {
    let user = rustix::process::geteuid().as_raw();
    let group = rustix::process::getegid().as_raw();
    // SAFETY: the descriptors' table stays shared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNET) }?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {group} 1"))?;
    fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0")
}

fn open_nic() -> io::Result<OwnedFd> {
    let nic = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: zeros are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"eth0") {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).expect("15 bits");
    // SAFETY: TUNSETIFF reads and writes one `ifreq`.
    match unsafe { libc::ioctl(nic.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(nic.into()),
    }
}

/// Carries frames between the tap and the NIC, both ways, until the process ends.
fn cross_connect(tap: &OwnedFd, nic: &OwnedFd) -> io::Result<()> {
    let mut frame = vec![0; 65536 + 64];
    loop {
        let mut ready = [
            PollFd::new(tap, PollFlags::IN),
            PollFd::new(nic, PollFlags::IN),
        ];
        poll(&mut ready, None)?;
        for (at, (from, to)) in [(tap, nic), (nic, tap)].into_iter().enumerate() {
            if ready[at].revents().contains(PollFlags::IN) {
                let length = rustix::io::read(from, &mut frame)?;
                // A tap that is down refuses, and then the frame is lost as on a wire.
                let _ = rustix::io::write(to, &frame[..length]);
            }
        }
    }
}

/// Sends an echo request from a ping socket (icmp(7)).
fn ping(address: Ipv4Addr) -> io::Result<()> {
    let icmp = Some(ipproto::ICMP);
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, icmp)?;
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect((address, 0))?;
    // Type 8, code 0; the kernel adds checksum and identifier.
    socket.send(&[8, 0, 0, 0, 0, 0, 0, 1, b'?'])?;
    let mut reply = [0; 64];
    let length = socket.recv(&mut reply)?;
    match (reply[0], &reply[8..length]) {
        (0, b"?") => Ok(()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn connect(address: Ipv4Addr, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddrV4::new(address, port).into(), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Bytes that show where they belong.
fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| u8::try_from(at * 31 % 251).expect("less than 251"))
        .collect()
}

/// Does not close its own side before it has all, which pasta of 2023 does not bear.
fn tcp(address: Ipv4Addr, port: u16, length: usize) -> io::Result<()> {
    let mut stream = connect(address, port)?;
    let mut output = stream.try_clone()?;
    let sent = pattern(length);
    let copy = sent.clone();
    let sender = thread::spawn(move || output.write_all(&copy));
    let mut echoed = vec![0; length];
    stream.read_exact(&mut echoed)?;
    sender.join().expect("sending does not panic")?;
    same(&sent, &echoed)
}

fn udp(address: Ipv4Addr, port: u16, length: usize) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect((address, port))?;
    let sent = pattern(length);
    socket.send(&sent)?;
    let mut echoed = vec![0; 65536];
    let length = socket.recv(&mut echoed)?;
    same(&sent, &echoed[..length])
}

fn same(sent: &[u8], echoed: &[u8]) -> io::Result<()> {
    match sent == echoed {
        true => Ok(()),
        false => {
            let text = format!("{} bytes came back of {}", echoed.len(), sent.len());
            Err(io::Error::new(io::ErrorKind::InvalidData, text))
        }
    }
}

/// Says so at the first echo, and goes on until there is none.
fn stream(address: Ipv4Addr, port: u16) -> io::Result<()> {
    let mut stream = connect(address, port)?;
    let mut echo = [0];
    let mut said = false;
    loop {
        stream.write_all(b"x")?;
        stream.read_exact(&mut echo)?;
        if !said {
            println!("flowing");
            said = true;
        }
    }
}

/// A query for the address of `banger.test` (RFC 1035, section 4.1).
const QUERY: &[u8] = b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0\x06banger\x04test\0\0\x01\0\x01";

fn dns_udp(address: Ipv4Addr) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect((address, 53))?;
    socket.send(QUERY)?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    is_answer(&answer[..length])
}

fn dns_tcp(address: Ipv4Addr) -> io::Result<()> {
    let mut stream = connect(address, 53)?;
    let length = u16::try_from(QUERY.len()).expect("it is short");
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(QUERY)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    is_answer(answer.get(2..).unwrap_or_default())
}

fn is_answer(answer: &[u8]) -> io::Result<()> {
    match answer.starts_with(&QUERY[..2]) && answer.ends_with(&world::ANSWER.octets()) {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{answer:?}"),
        )),
    }
}

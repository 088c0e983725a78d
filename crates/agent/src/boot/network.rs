//! How the guest's interface gets its address: the ioctls of netdevice(7).

use std::io;
use std::mem;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::cmdline::Interface;

/// Why the guest has no network.
#[derive(Debug, thiserror::Error)]
#[error("could not set {what} of {device}")]
pub(super) struct NetworkError {
    what: &'static str,
    device: String,
    #[source]
    source: io::Error,
}

/// What exists once the kernel has the interface.
pub(super) fn device_path(interface: &Interface) -> PathBuf {
    Path::new("/sys/class/net").join(&interface.device)
}

/// Brings the loopback interface and the guest's own up.
pub(super) fn configure(interface: &Interface, mtu: Option<u32>) -> Result<(), NetworkError> {
    let device = interface.device.as_str();
    let failed = |what, device: &str| {
        let device = device.to_owned();
        move |source| NetworkError {
            what,
            device,
            source,
        }
    };
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|errno| failed("anything", device)(errno.into()))?;
    up(&socket, "lo").map_err(failed("the state", "lo"))?;
    if let Some(mtu) = mtu {
        set_mtu(&socket, device, mtu).map_err(failed("the MTU", device))?;
    }
    set_address(&socket, device, libc::SIOCSIFADDR, interface.address)
        .map_err(failed("the address", device))?;
    set_address(&socket, device, libc::SIOCSIFNETMASK, interface.netmask)
        .map_err(failed("the netmask", device))?;
    up(&socket, device).map_err(failed("the state", device))?;
    if let Some(gateway) = interface.gateway {
        add_default_route(&socket, gateway).map_err(failed("the route", device))?;
    }
    Ok(())
}

fn up(socket: &OwnedFd, device: &str) -> io::Result<()> {
    let mut request = request(device)?;
    // SAFETY: SIOCGIFFLAGS fills in the flags of the request.
    unsafe { ioctl(socket, libc::SIOCGIFFLAGS, (&raw mut request).cast())? };
    // SAFETY: the call before has made the flags the union's value.
    unsafe {
        request.ifr_ifru.ifru_flags |= i16::try_from(libc::IFF_UP).expect("bit 0");
    }
    // SAFETY: SIOCSIFFLAGS reads the flags of the request.
    unsafe { ioctl(socket, libc::SIOCSIFFLAGS, (&raw mut request).cast()) }
}

fn set_mtu(socket: &OwnedFd, device: &str, mtu: u32) -> io::Result<()> {
    let mut request = request(device)?;
    request.ifr_ifru.ifru_mtu = i32::try_from(mtu).map_err(io::Error::other)?;
    // SAFETY: SIOCSIFMTU reads the MTU of the request.
    unsafe { ioctl(socket, libc::SIOCSIFMTU, (&raw mut request).cast()) }
}

fn set_address(
    socket: &OwnedFd,
    device: &str,
    operation: libc::c_ulong,
    address: Ipv4Addr,
) -> io::Result<()> {
    let mut request = request(device)?;
    request.ifr_ifru.ifru_addr = socket_address(address);
    // SAFETY: both operations that this is called with read the address of the request.
    unsafe { ioctl(socket, operation, (&raw mut request).cast()) }
}

fn add_default_route(socket: &OwnedFd, gateway: Ipv4Addr) -> io::Result<()> {
    // SAFETY: rtentry is a C struct of numbers and pointers, for which zero is valid.
    let mut route: libc::rtentry = unsafe { mem::zeroed() };
    route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = socket_address(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: SIOCADDRT reads the route.
    unsafe { ioctl(socket, libc::SIOCADDRT, (&raw mut route).cast()) }
}

fn request(device: &str) -> io::Result<libc::ifreq> {
    // SAFETY: ifreq is a C struct of numbers and pointers, for which zero is valid.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if device.len() >= request.ifr_name.len() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the device's name is too long",
        ));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let address = libc::sockaddr_in {
        sin_family: libc::sa_family_t::try_from(libc::AF_INET).expect("AF_INET is 2"),
        sin_port: 0,
        sin_addr: libc::in_addr {
            s_addr: u32::from(address).to_be(),
        },
        sin_zero: [0; 8],
    };
    // SAFETY: both are 16 bytes of plain numbers; the family says which one it is.
    unsafe { mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) }
}

/// # Safety
/// `argument` must be what the operation reads and writes.
unsafe fn ioctl(
    socket: &OwnedFd,
    operation: libc::c_ulong,
    argument: *mut libc::c_void,
) -> io::Result<()> {
    // SAFETY: the caller's promise; the socket is open.
    match unsafe { libc::ioctl(socket.as_raw_fd(), operation, argument) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

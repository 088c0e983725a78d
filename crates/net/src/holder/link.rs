//! The devices in the namespace: the bridge, and a tap for each VM.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::mem;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::RouteType;
use rtnetlink::{
    Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder,
};

use super::HolderError;
use crate::plan::{Instance, Mac, Subnet, TapName};
use crate::rules::{BRIDGE, Reach};

/// The device that makes taps.
pub(crate) const TUN: &str = "/dev/net/tun";

/// The loopback interface's index, which is the same in every namespace
/// (`LOOPBACK_IFINDEX` in the kernel's `include/net/net_namespace.h`).
const LOOPBACK: u32 = 1;

/// What was being done to a device, and why it failed.
#[derive(Debug, thiserror::Error)]
#[error("could not {step}")]
pub(super) struct LinkError {
    pub(super) step: String,
    #[source]
    pub(super) source: io::Error,
}

/// The bridge and its taps.
#[derive(Clone, Debug)]
pub(super) struct Links {
    netlink: Handle,
    instance: Instance,
    bridge: u32,
}

impl Links {
    /// Furnishes an empty network namespace.
    pub(super) async fn furnish(
        netlink: Handle,
        instance: Instance,
        subnet: Subnet,
    ) -> Result<Self, HolderError> {
        let furnish = |step: &str| {
            let step = step.to_owned();
            move |source| HolderError::Furnish { step, source }
        };
        change(&netlink, LinkUnspec::new_with_index(LOOPBACK).up())
            .await
            .map_err(furnish("bring up the loopback interface"))?;
        let mac = Mac::of_bridge(instance).octets().to_vec();
        let bridge = LinkBridge::new(BRIDGE).address(mac).up().build();
        let bridge = netlink.link().add(bridge).execute().await;
        bridge.map_err(cause).map_err(furnish("make the bridge"))?;
        let bridge = index(&netlink, BRIDGE)
            .await
            .and_then(|index| index.ok_or_else(|| io::ErrorKind::NotFound.into()))
            .map_err(furnish("find the bridge"))?;
        let gateway = subnet.gateway.into();
        let address = netlink.address().add(bridge, gateway, subnet.prefix);
        let address = address.execute().await;
        address
            .map_err(cause)
            .map_err(furnish("give the bridge its address"))?;
        // Without pasta guests shall be told that there is no way, and not wait.
        let no_way = RouteMessageBuilder::<Ipv4Addr>::new()
            .kind(RouteType::Prohibit)
            .priority(u32::MAX)
            .build();
        let no_way = netlink.route().add(no_way).execute().await;
        no_way
            .map_err(cause)
            .map_err(furnish("prohibit ways that are not there"))?;
        set("ip_forward", "1").map_err(furnish("switch on forwarding"))?;
        // A guest without a way out shall be told so each time, and not once a second.
        set("icmp_ratemask", "0").map_err(furnish("let the gateway answer at once"))?;
        Ok(Self {
            netlink,
            instance,
            bridge,
        })
    }

    /// Makes the tap of `slot`, or takes the one that is there and not in use. When it fails
    /// there is no tap, except one that is in use.
    pub(super) async fn attach(
        &self,
        slot: u16,
        reach: Reach,
        mtu: u16,
    ) -> Result<OwnedFd, LinkError> {
        let tap = TapName::new(self.instance, slot);
        let opened = open_tap(tap).map_err(|source| LinkError {
            step: format!("open the tap device `{tap}`"),
            source,
        })?;
        let connected = self.connect(tap, reach, mtu).await;
        if connected.is_err() {
            // What is told is why it failed; the tap goes also if this does not work, as
            // it is made to stay only by the last step.
            let _ = self.detach(slot).await;
        }
        connected?;
        persist(&opened).map_err(|source| LinkError {
            step: format!("keep the tap device `{tap}`"),
            source,
        })?;
        Ok(opened)
    }

    async fn connect(&self, tap: TapName, reach: Reach, mtu: u16) -> Result<(), LinkError> {
        let failed = |source| LinkError {
            step: format!("connect the tap device `{tap}` to the bridge"),
            source,
        };
        let index = index(&self.netlink, &tap.to_string())
            .await
            .and_then(|index| index.ok_or_else(|| io::ErrorKind::NotFound.into()))
            .map_err(failed)?;
        let port = LinkUnspec::new_with_index(index)
            .mtu(u32::from(mtu))
            .link_group(reach.group())
            .controller(self.bridge);
        change(&self.netlink, port).await.map_err(failed)?;
        let isolated = LinkBridgePort::new(index).isolated(true).build();
        let isolated = self.netlink.link().set_port(isolated).execute().await;
        isolated.map_err(cause).map_err(failed)?;
        // Only now may packets flow.
        let up = LinkUnspec::new_with_index(index).up();
        change(&self.netlink, up).await.map_err(failed)
    }

    /// Deletes the tap of `slot`, in use or not, if there is one.
    pub(super) async fn detach(&self, slot: u16) -> Result<(), LinkError> {
        let tap = TapName::new(self.instance, slot);
        let failed = |source| LinkError {
            step: format!("delete the tap device `{tap}`"),
            source,
        };
        let index = index(&self.netlink, &tap.to_string()).await;
        let Some(index) = index.map_err(failed)? else {
            return Ok(());
        };
        match self
            .netlink
            .link()
            .del(index)
            .execute()
            .await
            .map_err(cause)
        {
            Err(error) if !is_absent(&error) => Err(failed(error)),
            _ => Ok(()),
        }
    }

    /// Changes the reach of the tap of `slot`; `false` if there is none.
    pub(super) async fn set_reach(&self, slot: u16, reach: Reach) -> Result<bool, LinkError> {
        let tap = TapName::new(self.instance, slot);
        let failed = |source| LinkError {
            step: format!("change the rules of the tap device `{tap}`"),
            source,
        };
        let index = index(&self.netlink, &tap.to_string()).await;
        let Some(index) = index.map_err(failed)? else {
            return Ok(false);
        };
        let group = LinkUnspec::new_with_index(index).link_group(reach.group());
        change(&self.netlink, group).await.map_err(failed)?;
        Ok(true)
    }

    /// The slots that have a tap.
    pub(super) async fn slots(&self) -> Result<BTreeSet<u16>, LinkError> {
        let links = self.netlink.link().get().execute();
        let links: Result<Vec<LinkMessage>, _> = links.try_collect().await;
        let links = links.map_err(cause).map_err(|source| LinkError {
            step: "list the tap devices".to_owned(),
            source,
        })?;
        let slot = |link: &LinkMessage| {
            link.attributes
                .iter()
                .find_map(|attribute| match attribute {
                    LinkAttribute::IfName(name) => TapName::slot_of(self.instance, name),
                    _ => None,
                })
        };
        Ok(links.iter().filter_map(slot).collect())
    }
}

/// Sets a parameter of IPv4 (Documentation/networking/ip-sysctl.rst) in the namespace of the
/// calling process, which is what /proc/sys/net shows wherever it was mounted.
fn set(parameter: &str, value: &str) -> io::Result<()> {
    fs::write(Path::new("/proc/sys/net/ipv4").join(parameter), value)
}

/// The index of the interface called `name`, if there is one.
async fn index(netlink: &Handle, name: &str) -> io::Result<Option<u32>> {
    let mut links = netlink.link().get().match_name(name).execute();
    match links.try_next().await.map_err(cause) {
        Ok(link) => Ok(link.map(|link| link.header.index)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn change(netlink: &Handle, link: LinkMessageBuilder<LinkUnspec>) -> io::Result<()> {
    let change = netlink.link().change(link.build());
    change.execute().await.map_err(cause)
}

fn cause(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

fn is_absent(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENODEV)
}

/// Opens the tap device called `tap` in this thread's network namespace, making it if it
/// is not there (Documentation/networking/tuntap.rst).
fn open_tap(tap: TapName) -> io::Result<OwnedFd> {
    let file = open_tun()?;
    // SAFETY: an `ifreq` is numbers and unions of numbers, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    let name = tap.to_string();
    debug_assert!(name.len() < request.ifr_name.len());
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // With the virtio header engines leave checksums and segmentation to the kernel.
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).expect("flags of 15 bits");
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(file.into()),
    }
}

/// Opens the device that makes taps.
pub(crate) fn open_tun() -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(TUN)
}

/// Lets the tap stay when it is closed: an engine may come later, or open it by name.
fn persist(tap: &OwnedFd) -> io::Result<()> {
    let yes: libc::c_ulong = 1;
    // SAFETY: TUNSETPERSIST takes a number.
    match unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETPERSIST, yes) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

//! What the kernel command line says: see [`banger_proto::agent::cmdline`].

use std::net::Ipv4Addr;

use banger_proto::agent::{DiskRole, cmdline};

/// The parameters that concern banger.
#[derive(Debug, Default, PartialEq)]
pub(super) struct CommandLine {
    /// Roles of `vda`, `vdb`, ...
    pub disks: Vec<DiskRole>,
    pub interface: Option<Interface>,
    pub mtu: Option<u32>,
    /// Stay PID 1.
    pub stay: bool,
    pub link: Link,
}

/// What the host is behind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Link {
    /// A virtio-serial port.
    #[default]
    Port,
    /// The vsock.
    Vsock,
}

/// The kernel's `ip=`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Interface {
    pub address: Ipv4Addr,
    pub gateway: Option<Ipv4Addr>,
    pub netmask: Ipv4Addr,
    pub hostname: Option<String>,
    pub device: String,
    pub resolver: Option<Ipv4Addr>,
}

/// Why parameters make no sense.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum InvalidCommandLine {
    /// Not a role.
    #[error("`{0}` is no role of a disk")]
    Disk(String),
    /// Not an address, or one is missing.
    #[error("`{0}` has no valid address and netmask")]
    Interface(String),
    /// Not a number.
    #[error("`{0}` is no MTU")]
    Mtu(String),
}

impl CommandLine {
    pub(super) fn parse(text: &str) -> Result<Self, InvalidCommandLine> {
        let mut parsed = Self::default();
        for word in text.split_ascii_whitespace() {
            let Some((name, value)) = word.split_once('=') else {
                continue;
            };
            match name {
                cmdline::DISKS => parsed.disks = disks(value)?,
                cmdline::MTU => {
                    let mtu = value.parse();
                    parsed.mtu = Some(mtu.map_err(|_| InvalidCommandLine::Mtu(value.to_owned()))?);
                }
                cmdline::LINK if value == "vsock" => parsed.link = Link::Vsock,
                cmdline::INIT => parsed.stay = value == "none",
                "ip" => parsed.interface = interface(value)?,
                _ => {}
            }
        }
        Ok(parsed)
    }

    /// The device of the disk with this role.
    pub(super) fn device(&self, role: DiskRole) -> Option<String> {
        let index = self.disks.iter().position(|it| *it == role)?;
        let letter = char::from(b'a' + u8::try_from(index).ok()?);
        Some(format!("/dev/vd{letter}"))
    }
}

fn disks(value: &str) -> Result<Vec<DiskRole>, InvalidCommandLine> {
    let roles = [
        DiskRole::Base,
        DiskRole::System,
        DiskRole::Modules,
        DiskRole::Work,
    ];
    let role = |word: &str| roles.into_iter().find(|role| role.as_str() == word);
    value
        .split(',')
        .map(|word| role(word).ok_or_else(|| InvalidCommandLine::Disk(word.to_owned())))
        .collect()
}

/// `<client>:<server>:<gateway>:<netmask>:<hostname>:<device>:<autoconf>:<dns0>`; `off`
/// and `none` alone mean no interface.
fn interface(value: &str) -> Result<Option<Interface>, InvalidCommandLine> {
    if matches!(value, "off" | "none" | "") {
        return Ok(None);
    }
    let invalid = || InvalidCommandLine::Interface(value.to_owned());
    let fields: Vec<&str> = value.split(':').collect();
    let field = |index: usize| fields.get(index).copied().filter(|text| !text.is_empty());
    let address = |index| match field(index) {
        Some(text) => text.parse().map(Some).map_err(|_| invalid()),
        None => Ok(None),
    };
    Ok(Some(Interface {
        address: address(0)?.ok_or_else(invalid)?,
        gateway: address(2)?,
        netmask: address(3)?.ok_or_else(invalid)?,
        hostname: field(4).map(str::to_owned),
        device: field(5).unwrap_or("eth0").to_owned(),
        resolver: address(7)?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_parameters_are_understood() {
        let line = CommandLine::parse(
            "console=ttyS0 quiet banger.disks=base,system,work banger.mtu=1400 \
             ip=172.16.0.9::172.16.0.1:255.255.255.0:calm-otter:eth0:off:172.16.0.1 \
             banger.init=none banger.link=vsock\n",
        )
        .unwrap();
        assert_eq!(line.link, Link::Vsock);
        assert_eq!(line.device(DiskRole::Base).as_deref(), Some("/dev/vda"));
        assert_eq!(line.device(DiskRole::Work).as_deref(), Some("/dev/vdc"));
        assert_eq!(line.device(DiskRole::Modules), None);
        assert_eq!(line.mtu, Some(1400));
        assert!(line.stay);
        let interface = line.interface.unwrap();
        assert_eq!(interface.address, Ipv4Addr::new(172, 16, 0, 9));
        assert_eq!(interface.gateway, Some(Ipv4Addr::new(172, 16, 0, 1)));
        assert_eq!(interface.hostname.as_deref(), Some("calm-otter"));
        assert_eq!(interface.resolver, interface.gateway);
    }

    #[test]
    fn nonsense_is_refused_and_absence_is_not() {
        assert_eq!(
            CommandLine::parse("quiet ip=off"),
            Ok(CommandLine::default())
        );
        let refused = |line| CommandLine::parse(line).unwrap_err().to_string();
        assert_eq!(
            refused("banger.disks=base,swap"),
            "`swap` is no role of a disk"
        );
        assert!(refused("ip=dhcp").contains("no valid address"));
        assert!(refused("ip=1.2.3.4::1.2.3.1").contains("no valid address"));
        assert_eq!(refused("banger.mtu=big"), "`big` is no MTU");
    }
}

//! Listening sockets as the kernel lists them (proc_net(5): `tcp`, `tcp6`, `udp`, `udp6`).

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use banger_proto::port::Protocol;

/// `TCP_LISTEN` and `TCP_CLOSE` of the kernel's `include/net/tcp_states.h`; a UDP socket that
/// is bound and connected to nobody is in the latter.
const LISTEN: &str = "0A";
const UNCONNECTED: &str = "07";

/// A socket that waits for others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Of which protocol it is.
    pub protocol: Protocol,
    /// The address that it is bound to: unspecified for all of the machine's.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// The number by which its owner is found.
    pub inode: u64,
}

/// The listening sockets of TCP, in this process' network namespace.
pub fn tcp() -> Vec<Socket> {
    read(&["tcp", "tcp6"], Protocol::Tcp, LISTEN)
}

/// The same, and the sockets of UDP that are connected to nobody.
pub fn all() -> Vec<Socket> {
    let mut sockets = tcp();
    sockets.extend(read(&["udp", "udp6"], Protocol::Udp, UNCONNECTED));
    sockets
}

fn read(files: &[&str], protocol: Protocol, state: &str) -> Vec<Socket> {
    let tables = files
        .iter()
        // A guest without IPv6 has no table of it.
        .map(|file| fs::read_to_string(format!("/proc/net/{file}")).unwrap_or_default());
    tables
        .flat_map(|table| parse(&table, protocol, state))
        .collect()
}

/// A heading, then one socket a line: number, local address, remote address, state, ...; the
/// inode is the tenth word.
fn parse(table: &str, protocol: Protocol, state: &str) -> Vec<Socket> {
    let socket = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let local = words.nth(1)?;
        if words.nth(1)? != state {
            return None;
        }
        let (address, port) = local.split_once(':')?;
        Some(Socket {
            protocol,
            address: parse_address(address)?,
            port: u16::from_str_radix(port, 16).ok()?,
            inode: words.nth(5)?.parse().ok()?,
        })
    };
    let sockets = table.lines().skip(1).filter_map(socket);
    sockets.filter(|socket| socket.port != 0).collect()
}

/// 32-bit words in the machine's byte order, in hexadecimal: one for IPv4, four for IPv6.
fn parse_address(text: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        let digits = text.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for (at, four) in bytes.chunks_exact_mut(4).enumerate() {
                four.copy_from_slice(&word(at)?);
            }
            Some(Ipv6Addr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 31337 1 00000000aed 100 0 0 10 0
   1: 0100007F:1F90 0100007F:D2F0 01 00000000:00000000 00:00000000 00000000     0        0 31338 1 00000000bed 20 4 30 10 -1
   2: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0000000 100 0 0 10 0
";
    const TCP6: &str = "\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000    33        0 44 1 0000 100 0 0 10 0
";

    #[cfg(target_endian = "little")]
    #[test]
    fn only_what_listens_is_found() {
        let mut found = parse(TCP, Protocol::Tcp, LISTEN);
        found.extend(parse(TCP6, Protocol::Tcp, LISTEN));
        let found: Vec<String> = found
            .iter()
            .map(|socket| format!("{} {} {}", socket.address, socket.port, socket.inode))
            .collect();
        assert_eq!(found, ["127.0.0.1 8080 31337", "0.0.0.0 22 1", "::1 80 44"]);
    }

    #[test]
    fn rubbish_is_no_socket() {
        for line in [
            "",
            "0:",
            "0: zz:1 0:0 0A",
            "0: 0100007F:1F90 0:0 0A 0 0 0 0 0 x",
        ] {
            assert_eq!(
                parse(&format!("heading\n{line}\n"), Protocol::Tcp, LISTEN),
                []
            );
        }
    }

    #[test]
    fn a_socket_of_this_process_is_found() {
        let listener = std::net::TcpListener::bind("[::1]:0")
            .or_else(|_| std::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let address = listener.local_addr().unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let has = |protocol, address: std::net::SocketAddr| {
            all().iter().any(|socket| {
                socket.protocol == protocol
                    && (socket.address, socket.port) == (address.ip(), address.port())
            })
        };
        assert!(has(Protocol::Tcp, address));
        assert!(has(Protocol::Udp, udp.local_addr().unwrap()));
        drop(listener);
        assert!(!has(Protocol::Tcp, address));
    }
}

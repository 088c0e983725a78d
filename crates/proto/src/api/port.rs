//! Ports of guests, and where the host reaches them.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::agent::ListenerProcess;
use crate::name::VmName;
use crate::port::Protocol;

/// A port of a running guest at which something waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The VM's name.
    pub vm: VmName,
    /// The port in the guest.
    pub port: u16,
    /// Of which protocol it is.
    pub protocol: Protocol,
    /// The guest's addresses at which it waits; an unspecified one stands for all of them.
    pub addresses: Vec<IpAddr>,
    /// The process that has it, where that is to be seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ListenerProcess>,
    /// Where the host reaches it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SocketAddr>,
    /// Why that is not the same port of the VM's loopback address, and what to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// What a browser opens, where it was asked and answered as a web server does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

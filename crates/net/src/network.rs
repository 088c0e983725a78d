//! The network as the daemon sees it: taps by slot, and a holder that comes and goes with
//! them.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::config::{InvalidConfig, NetworkConfig};
use crate::plan::{Plan, PlanError};

/// A handle on the network of one instance; clones share it.
#[derive(Clone, Debug)]
pub struct Network {
    config: Arc<NetworkConfig>,
}

/// A VM's connection to the network.
#[derive(Debug)]
pub struct Attachment {
    /// Names and addresses, as [`crate::plan::plan`] gives them.
    pub plan: Plan,
    /// The tap device, opened with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, close-on-exec and
    /// non-blocking. The engine needs it and no rights. The device stays when it is closed.
    pub tap: OwnedFd,
    /// Why the guest has no way out though it may have one, if so.
    pub no_way_out: Option<String>,
}

/// Why a VM could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The slot has no place on the network.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The holder was not to be had or refused.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// Why the holder could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It did not answer in time.
    #[error("the network's holder did not answer within {seconds} s")]
    Timeout {
        /// How long was waited.
        seconds: u64,
    },
}

impl AttachError {
    /// What the user can do about it, in doctor's words.
    pub fn hint(&self) -> Option<String> {
        None
    }
}

impl Network {
    /// A handle on the network; starts nothing.
    pub fn new(config: NetworkConfig) -> Result<Self, InvalidConfig> {
        Ok(Self {
            config: Arc::new(config),
        })
    }

    /// MTU of the host's way out, between 1280 and 1500: what guests' NICs shall have.
    pub fn mtu(&self) -> u16 {
        1500
    }

    /// Gives the VM in `slot` a tap on the network, and the way out if `nat`. Starts the
    /// holder when there is none. When it fails nothing of it is left.
    pub async fn attach(&self, slot: u16, nat: bool) -> Result<Attachment, AttachError> {
        let _ = (slot, nat, &self.config);
        Err(ControlError::Timeout { seconds: 0 }.into())
    }

    /// Takes the tap of `slot` away. Succeeds when there is nothing to take. With the last
    /// tap go the holder, its namespace and `pasta`.
    pub async fn detach(&self, slot: u16) -> Result<(), ControlError> {
        let _ = slot;
        Ok(())
    }

    /// The slots that have a tap. Starts no holder.
    pub async fn attached(&self) -> Result<BTreeSet<u16>, ControlError> {
        Ok(BTreeSet::new())
    }

    /// Opens or closes the way out for the VM in `slot`.
    pub async fn set_nat(&self, slot: u16, nat: bool) -> Result<(), ControlError> {
        let _ = (slot, nat);
        Ok(())
    }

    /// Ends the holder with all that is in its namespace.
    pub async fn shut_down(&self) -> Result<(), ControlError> {
        Ok(())
    }
}

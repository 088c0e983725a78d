//! The network of VMs in user mode: a namespace of banger's own with a bridge, one tap for
//! each VM, rules, and `pasta` for the way out. The host's own interfaces, routes and rules
//! are never touched, and no rights are needed beyond opening `/dev/net/tun`.
//!
//! ```text
//!  guest ── tap bgr-<instance>-<slot> ─┐
//!  guest ── tap bgr-<instance>-<slot> ─┴ bridge ── forward, masquerade ── pasta ── host's sockets
//! ```
//!
//! A [`holder`] process keeps the namespace, whatever becomes of the daemon; [`Network`]
//! starts it with the first VM and talks to it. It goes with the last VM.

mod channel;
mod check;
mod config;
pub mod holder;
mod host;
mod network;
pub mod plan;
mod protocol;
mod rules;
mod start;

pub use check::{checks, missing};
pub use config::{InvalidConfig, NetworkConfig};
pub use network::{AttachError, Attachment, ControlError, Network};
pub use protocol::Failure;
pub use start::StartError;

//! The way from the host into the agent: one byte stream, found again after each break.
//!
//! ```text
//! wire      bytes of a virtio-serial port or a socket, without polling
//! opening   rubbish -> hello -> ack -> HTTP/2 preface
//! serve     HTTP/2 connections one after another on one wire
//! ```
//!
//! A vsock gives one connected socket per connection of the daemon: it takes the same road as
//! the Unix socket of [`crate::serve`], with another listener ([`vsock`]).

mod opening;
mod serve;
pub mod vsock;
mod wire;

pub use opening::{break_off, open};
pub use serve::{Current, serve};
pub use wire::{End, Wire, WireStream};

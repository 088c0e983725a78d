//! The daemon's end of the agent link: one byte stream to a guest, on it the handshake of
//! [`banger_proto::hello`], and then HTTP/2 with the agent as the server.
//!
//! ```text
//! Machine::connect ─ bytes ─> handshake ─ HTTP/2 ─> Guest: typed requests and streams
//! ```

mod client;
pub mod command;
mod connect;
mod error;
mod ports;
mod stream;

pub use client::{FileStream, Guest};
pub use connect::connect;
pub use error::{ConnectError, RequestError};
pub use ports::WatchedPorts;
pub use stream::{GuestReader, GuestStream, GuestWriter};

#[cfg(test)]
mod tests;

//! Typed client of the banger daemon's API over its Unix socket: one method per row of the
//! table in [`banger_proto::api`].
//!
//! ```no_run
//! # async fn example() -> Result<(), banger_client::ClientError> {
//! let client = banger_client::Client::connect("/run/user/1000/banger/bangerd.sock").await?;
//! for vm in client.vms().await? {
//!     println!("{} is {}", vm.name, vm.state);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Needs a tokio runtime with I/O and time. Every request opens its own connection, so a
//! client is a plain value: cheap to clone, and any number of requests run at once.
//! [`launch`] starts the daemon where none runs.

mod client;
mod download;
mod error;
mod events;
pub mod launch;
mod lease;
pub mod sse;
mod stream;
mod transport;
mod upload;

pub use client::Client;
pub use download::Download;
pub use error::ClientError;
pub use events::{DaemonEvents, Events};
pub use lease::Lease;
pub use stream::{ByteStream, ByteStreamReader, ByteStreamWriter};

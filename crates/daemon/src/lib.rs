//! `bangerd`: owns the VMs of one user on one host, and serves banger's API on a Unix socket.
//!
//! ```text
//! api ──> fleet ──> vm::task ──> vm::start, vm::take_down ──> engine, image, net, guest
//!            │          └──────> store (rows), operations (what goes on)
//! reconcile ─┘   makes rows and host agree, first of all
//! ```
//!
//! [`host`] puts it together, [`server`] runs it.

pub mod api;
pub mod build;
pub mod capture;
pub mod clock;
mod descriptor;
pub mod doctor;
pub mod engines;
pub mod events;
pub mod faults;
pub mod files;
pub mod fleet;
pub mod guest;
pub mod host;
pub mod instance;
pub mod leaks;
pub mod leases;
pub mod names;
pub mod operations;
pub mod pulls;
pub mod reach;
pub mod reconcile;
pub mod server;
pub mod store;
pub mod superseded;
pub mod usage;
pub mod vm;
pub mod warnings;

use banger_proto::api::Version;

/// The version of the API that this daemon serves.
pub const API_VERSION: u32 = 1;
/// The first argument that makes this program the network's holder.
pub const NET_HOLDER: &str = "net-holder";

/// What `bangerd version` and the API say.
pub fn version() -> Version {
    Version {
        version: banger_proto::VERSION.to_owned(),
        api: API_VERSION,
    }
}

/// The present time, RFC 3339.
fn now() -> String {
    jiff::Timestamp::now().to_string()
}

/// Runs what blocks on a thread that may. Once begun it goes on even if the future is dropped.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends, and with it everything that could want the value.
            Err(_) => std::future::pending().await,
        },
    }
}

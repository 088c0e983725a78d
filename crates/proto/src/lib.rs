//! Types that cross a boundary: between the CLI and the daemon ([`api`]), between the
//! daemon and the guest agent ([`agent`], [`frame`], [`hello`]), and the values that all
//! of them share ([`id`], [`name`], [`mod@reference`], [`size`], [`url`]).
//!
//! Nothing in here does I/O, and nothing in here knows which side it runs on.

pub mod agent;
pub mod api;
pub mod datagram;
pub mod doctor;
pub mod error;
pub mod exit;
pub mod frame;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod hello;
pub mod id;
pub mod name;
pub mod port;
pub mod reference;
pub mod size;
pub mod url;

/// Version of banger, the same for the CLI, the daemon and the guest agent of one build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

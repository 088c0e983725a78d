//! Where banger keeps its things ([`paths`]), what its config file says ([`mod@file`]), what
//! a new VM gets by default ([`defaults`]), and whether this host can give that ([`mod@judge`]). Shared by the CLI and the daemon; nothing in here
//! changes the host.

pub mod bounds;
pub mod defaults;
pub mod file;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod instance;
pub mod judge;
pub mod paths;

pub use file::{Config, ConfigError};
pub use paths::{Paths, PathsError};

//! Where banger keeps its things ([`paths`]), what its config file says ([`mod@file`]), and what
//! a new VM gets by default ([`defaults`]). Shared by the CLI and the daemon; nothing in here
//! changes the host.

pub mod defaults;
pub mod file;
pub mod paths;

pub use file::{Config, ConfigError};
pub use paths::{Paths, PathsError};

//! The holder: the process that keeps the namespace of the network.

use std::ffi::OsString;

/// Why the holder ended with an error.
#[derive(Debug, thiserror::Error)]
pub enum HolderError {
    /// The command line is not one of [`crate::Network`]'s.
    #[error("the holder's command line is wrong: {0}")]
    Arguments(String),
}

/// Runs the holder until the network is not needed any more. `arguments` are those behind
/// [`crate::NetworkConfig::holder`]'s.
///
/// Call it first thing in `main`: the process must have one thread, as it forks and enters
/// namespaces of its own.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Result<(), HolderError> {
    let _ = arguments;
    Err(HolderError::Arguments("not built yet".to_owned()))
}

//! One file per command: its arguments, and what it does.

pub(crate) mod completion;
pub(crate) mod config;
pub(crate) mod daemon;
pub(crate) mod doctor;
pub(crate) mod engine;
pub(crate) mod events;
pub(crate) mod image;
pub(crate) mod kernel;
pub(crate) mod operation;
pub(crate) mod ssh_config;
pub(crate) mod ssh_proxy;
pub(crate) mod version;
pub(crate) mod vm;

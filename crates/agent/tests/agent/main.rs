//! The agent as an ordinary process, driven over its socket as the daemon does.

mod client;
mod exec;
mod files;
mod link;
mod process;
mod ssh;
mod tcp;

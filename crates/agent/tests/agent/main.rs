//! The agent as an ordinary process, driven over its socket as the daemon does.

#[cfg(test)]
mod client;
#[cfg(test)]
mod exec;
#[cfg(test)]
mod files;
#[cfg(test)]
mod link;
#[cfg(test)]
mod ports;
#[cfg(test)]
mod process;
#[cfg(test)]
mod ssh;
#[cfg(test)]
mod tcp;

//! `banger-vsock-agent`: banger's companion inside every VM.
//!
//! One binary in two roles. As PID 1 of the initramfs it is [`boot`]: it puts the image's
//! root together and hands PID 1 to the image's init, beside which a small keeper starts the
//! agent, again whenever it has ended. As the agent it answers the daemon
//! over the [`link`] until the guest goes down. The same agent also runs as an ordinary
//! process on a Unix socket, for the engine without a VM.
//!
//! ```text
//! kernel -> /init = boot -> image's init (systemd, openrc, ...)
//!                   └ fork -> keeper -> agent: link -> HTTP/2 -> exec, ssh, files, tcp, ...
//! ```

pub mod agent;
pub mod boot;
pub mod exec;
pub mod files;
pub mod grow;
pub mod guest;
pub mod http;
pub mod identity;
pub mod link;
pub mod log;
pub mod ports;
pub mod power;
pub mod report;
pub mod serve;
pub mod sftp;
pub mod ssh;
pub mod stats;
pub mod tcp;
pub mod udp;

mod watch;

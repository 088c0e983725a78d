//! The listening sockets of the machine that this runs on, and whose they are, as `/proc` shows
//! them. The guest's agent tells the host of them, and the daemon tells who has a port that it
//! wants.

mod processes;
mod table;

pub use processes::{Process, all as processes, descendants, owners};
pub use table::{Socket, all, tcp};

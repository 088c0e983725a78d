//! The `banger` program as its users have it: arguments, standard streams, signals and
//! terminals are real; the daemon is an HTTP server in the test, whose guest commands behave
//! as their names say.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod copies;
mod daemon;
mod engines;
mod facts;
mod guest;
mod lifecycle;
mod orders;
mod pipes;
mod process;
mod real;
mod ssh_config;
mod terminal;
mod watching;
